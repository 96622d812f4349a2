"""All sequences of a data set -> masks and overlays on disk.

A sequence is written into a hidden folder beside its place and renamed when complete.  So a folder that bears
the name of a sequence is finished, whatever happened before, and the next run leaves it out.
"""

import itertools
import shutil
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from core.errors import UserError
from core.palette import overlay, read_ids, write_indexed, write_picture
from labelprop.video import segment_video

WRITERS = 2
WAITING = 16  # frames that may wait to be written: what bounds the memory


class Sequence(Protocol):
    """What is asked of a video; T frames."""

    name: str
    length: int
    frame_names: tuple[str, ...]  # [T], names of the masks without suffix
    written: tuple[bool, ...]  # [T]

    def frames(self):
        """Iterator of uint8 RGB [H,W,3]."""

    def given(self):
        """{frame index: ids uint8 [H,W]}."""


def run(
    sequences, features, cfg, out, key, *, overwrite=False, visuals=True, device="cpu", quiet=False
) -> Path:
    """Segment every sequence -> the folder of masks, <out>/<key>_vos.

    features: frames [B,3,H,W], RGB in [0,1], on `device` -> [B,D,h,w].  cfg: core.schema.Propagation.
    Writes <key>_vos/<sequence>/<frame>.png and, with visuals, <key>_vis/<sequence>/<frame>.jpg.  A finished
    sequence is left out unless overwrite.  quiet: say nothing.
    """
    masks, pictures = Path(out) / f"{key}_vos", Path(out) / f"{key}_vis"
    with Progress(sequences, quiet) as progress, ThreadPoolExecutor(WRITERS) as pool:
        for sequence in sequences:
            shown = not visuals or (pictures / sequence.name).is_dir()
            if not overwrite and shown and finished(sequence, masks / sequence.name):
                progress.skip(sequence)
                continue
            progress.begin(sequence)
            if not visuals:  # those of an earlier run would not belong to these masks
                remove(pictures / sequence.name)
            # Left in reverse order: the masks, which say that the sequence is finished, come last.
            with (
                whole_folder(masks / sequence.name) as vos,
                whole_folder(pictures / sequence.name) if visuals else nullcontext() as vis,
            ):
                segment(sequence, features, cfg, device, vos, vis, pool, progress.frame)
            progress.end(sequence)
    return masks


def segment(sequence, features, cfg, device, vos, vis, pool, tick):
    """Write the masks of one sequence into folder vos, overlays into vis (None: none); tick() after each frame."""
    pending = deque()
    shown, read = itertools.tee(sequence.frames())
    masks = segment_video(read, sequence.given(), features, cfg, device=device)
    count = 0
    try:
        for ids, frame, name, written in zip(masks, shown, sequence.frame_names, sequence.written):
            if written:
                pending.append(pool.submit(write, name, np.asarray(ids), frame, vos, vis))
            while len(pending) > WAITING:
                pending.popleft().result()
            count += 1
            tick()
        while pending:
            pending.popleft().result()
    except UserError as error:
        raise UserError(f"{sequence.name}: {error}") from error
    finally:  # after an error nothing may be written any more: the folders are about to go
        wait([writing for writing in pending if not writing.cancel()])
    assert count == sequence.length, (sequence.name, count, sequence.length)


def write(name, ids, frame, vos, vis):
    """One mask and, unless vis is None, one overlay."""
    write_indexed(vos / f"{name}.png", ids)
    if vis is not None:
        write_picture(vis / f"{name}.jpg", overlay(frame, ids))


def finished(sequence, folder):
    """Whether every mask of the sequence stands in the folder and can be read."""
    try:
        names = [name for name, written in zip(sequence.frame_names, sequence.written) if written]
        return folder.is_dir() and all(read_ids(folder / f"{name}.png").size for name in names)
    except UserError:
        return False


@contextmanager
def whole_folder(place):
    """with whole_folder(place) as part: fill the folder `part`; it takes the place's name when all is well.

    On an error it is removed, and what stood at the place stays; so is what a killed program left.
    """
    part, old = (place.with_name(f".{place.name}.{what}") for what in ("part", "old"))
    remove(part, old)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{part}: cannot be made ({error.strerror}); choose another --out") from error
    try:
        yield part
        if place.exists():
            place.rename(old)
        part.rename(place)
    finally:
        remove(part, old)


def remove(*folders):
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


class Progress:
    """A line a sequence and, on a terminal, a bar with frames/s."""

    def __init__(self, sequences, quiet):
        self.total, self.number, self.quiet = len(sequences), 0, quiet
        frames = sum(sequence.length for sequence in sequences)
        hidden = quiet or not sys.stderr.isatty()
        self.bar = tqdm(total=frames, unit="frame", disable=hidden, leave=False, dynamic_ncols=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def skip(self, sequence):
        self.number += 1
        self.bar.total -= sequence.length
        self.bar.refresh()
        self.say(f"{sequence.name}: finished before")

    def begin(self, sequence):
        self.number += 1
        self.bar.set_description(sequence.name)
        self.started = time.perf_counter()

    def frame(self):
        self.bar.update()

    def end(self, sequence):
        rate = sequence.length / (time.perf_counter() - self.started)
        self.say(f"{sequence.name}: {sequence.length} frames, {rate:.2f} frames/s")

    def say(self, text):
        if not self.quiet:
            self.bar.write(f"[{self.number}/{self.total}] {text}", file=sys.stdout)
            sys.stdout.flush()
