"""All sequences of a data set -> masks and overlays on disk.

A sequence is written into a hidden folder beside its place, which is renamed when complete.  Then a record of what
was given, <key>_given/<sequence>.json, is written; it is removed before its masks are replaced.  So masks with a
record are whole and made from what the record says, whatever happened before, and the next run leaves them out.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from core.atomic import replacing
from core.errors import UserError
from core.palette import overlay, read_ids, write_indexed, write_picture
from labelprop import pipeline

# What bounds the memory, with the video's size:
FRAMES_AHEAD = 4  # that are decoded and wait to become batches
WAITING = 8  # that wait to be written


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
    sequences: list[Sequence], tracker, out: str | Path, *,
    overwrite: bool = False, visuals: bool = True, quiet: bool = False, rank: int = 0, world: int = 1,
    after_frame: Callable[[], None] = lambda: None,
) -> Path:  # fmt: skip
    """Segment every sequence -> the folder of masks, <out>/<layer>_vos.

    tracker: labelprop.Tracker.  Writes <layer>_vos/<sequence>/<frame>.png and, with visuals,
    <layer>_vis/<sequence>/<frame>.jpg.  A sequence that is finished is left out, unless overwrite or the masks or
    frames given have changed since.  quiet: say nothing.  rank, world: this process and how many share the sequences.
    after_frame: called after every frame; what it raises ends the run.
    While the device computes, threads decode the frames to come and write the masks before.
    """
    out, layer = Path(out), tracker.layer
    masks, pictures = out / f"{layer}_vos", out / f"{layer}_vis"
    # One after the other is dealt out: begun last, a long one would keep all processes waiting.
    dealt = sorted(sequences, key=lambda sequence: -sequence.length)[rank::world] if world > 1 else sequences
    progress = Progress(dealt, quiet, world > 1, after_frame)
    with progress, ThreadPoolExecutor(writers(tracker.device)) as pool:
        for sequence in dealt:
            given, place, shown = sequence.given(), masks / sequence.name, pictures / sequence.name
            record, now = out / f"{layer}_given" / f"{sequence.name}.json", recorded(sequence, given)
            new = overwrite or not place.is_dir()
            why = "" if new else outdated(now, record, place, shown if visuals else None)
            if not (new or why):
                progress.skip(sequence, given)
                continue
            progress.begin(sequence)
            if not visuals:  # those of an earlier run would not belong to these masks
                remove(shown)
            with whole_folder(place) as vos, whole_folder(shown) if visuals else nullcontext() as vis:
                segment(sequence, tracker, given, vos, vis, pool, progress.frame)
                forget(record)  # before the folders are replaced: a kill in between leaves none
            with replacing(record) as part:
                part.write_text(json.dumps(now))
            progress.end(sequence, given, why)
    return masks


def recorded(sequence: Sequence, given: dict) -> dict:
    """The masks and frames that a sequence's results are made from, as plain values."""
    digest = lambda ids: hashlib.sha256(f"{ids.shape}".encode() + ids.tobytes()).hexdigest()
    return {
        "masks": {str(t): digest(ids) for t, ids in given.items()},
        "frames": list(sequence.frame_names),
        "written frames": [name for name, written in zip(sequence.frame_names, sequence.written) if written],
    }


def forget(record: Path) -> None:
    try:
        record.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{record}: cannot be removed ({error.strerror}); choose another --out") from error


def outdated(now: dict, record: Path, masks: Path, overlays: Path | None) -> str:
    """Why a sequence has to be done again; "" where its masks are whole and made from what is given now.

    now: as recorded() says.  record: file; masks, overlays: folders, overlays may be None.
    """
    try:
        before = json.loads(record.read_text())
        changed = [part for part in now if before[part] != now[part]]
        if changed:
            return f"{changed[0]} changed"
    except (OSError, ValueError, KeyError, TypeError):
        return "no record of the masks given"
    try:
        for name in now["written frames"]:
            read_ids(masks / f"{name}.png")
    except UserError:
        return "masks damaged"
    return "" if overlays is None or overlays.is_dir() else "overlays missing"


def followed(given: dict) -> str:
    """The objects that are given: "2 objects: 1 (4149 px), 2 (4200 px)"; of more than 8, the first and the last."""
    sizes: dict[int, str] = {}
    for ids in given.values():
        for id, px in enumerate(np.bincount(ids.ravel())):
            if id and px:
                sizes.setdefault(id, f"{id} ({px} px)")
    told, count = list(sizes.values()), len(sizes)
    if count > 8:
        told[4:-1] = ["..."]
    return f"{count} object{'s' if count > 1 else ''}: {', '.join(told)}"


def writers(device):
    """How many threads encode masks and overlays: few beside a CPU that computes, more beside a GPU."""
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes of this machine
    return 2 if device.type == "cpu" else max(2, min(8, cores - 2))


def segment(sequence, tracker, given, vos, vis, pool, tick):
    """Write the masks of one sequence into folder vos, overlays into vis (None: none); tick() after each frame.

    given: sequence.given().
    """
    shown = deque()  # frames that were read and have no mask yet

    def read():
        for frame in sequence.frames():
            shown.append(frame)
            yield frame

    def rows(masks):
        for ids, name, written in zip(masks, sequence.frame_names, sequence.written, strict=True):
            frame = shown.popleft()
            tick()
            if written:
                yield name, ids, frame

    try:
        with (
            closing(pipeline.ahead(read(), FRAMES_AHEAD)) as frames,
            closing(tracker.segment(frames, given)) as masks,
            closing(pipeline.in_order(pool, lambda row: write(*row, vos, vis), rows(masks), WAITING)) as written,
        ):
            deque(written, maxlen=0)
    except UserError as error:
        raise UserError(f"{sequence.name}: {error}") from error


def write(name, ids, frame, vos, vis):
    """One mask and, unless vis is None, one overlay."""
    write_indexed(vos / f"{name}.png", ids)
    if vis is not None:
        write_picture(vis / f"{name}.jpg", overlay(frame, ids))


@contextmanager
def whole_folder(place):
    """with whole_folder(place) as part: fill the folder `part`; it takes the place's name when all is well.

    On an error it is removed, and what stood at the place stays; so is what a killed program left.  No empty folder
    is left around it.
    """
    part, old = (place.with_name(f".{place.name}.{what}") for what in ("part", "old"))
    remove(part, old)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{part}: cannot be made ({error.strerror}); choose another --out") from error
    try:
        yield part
        try:
            if place.exists():
                place.rename(old)
            part.rename(place)
        except OSError as error:
            raise UserError(f"{place}: cannot be replaced ({error.strerror}); choose another --out") from error
    finally:
        remove(part, old)
        with suppress(OSError):
            place.parent.rmdir()


def remove(*folders):
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


class Progress:
    """A line a sequence and, on a terminal and for one process alone, a bar with frames/s."""

    def __init__(self, sequences, quiet, several, after_frame):
        self.done, self.total, self.quiet, self.after_frame = 0, len(sequences), quiet, after_frame
        frames = sum(sequence.length for sequence in sequences)
        hidden = quiet or several or not sys.stderr.isatty()
        self.bar = tqdm(total=frames, unit="frame", disable=hidden, leave=False, dynamic_ncols=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def skip(self, sequence, given):
        self.bar.total -= sequence.length
        self.bar.refresh()
        self.say(f"{sequence.name}: finished before; {followed(given)}")

    def begin(self, sequence):
        self.bar.set_description(sequence.name)
        self.started = time.perf_counter()

    def frame(self):
        self.bar.update()
        self.after_frame()

    def end(self, sequence, given, why):
        rate = sequence.length / (time.perf_counter() - self.started)
        again = f"; {why}: done again" if why else ""
        self.say(f"{sequence.name}: {sequence.length} frames, {rate:.2f} frames/s; {followed(given)}{again}")

    def say(self, text):
        self.done += 1
        if not self.quiet:
            self.bar.write(f"[{self.done}/{self.total}] {text}", file=sys.stdout)
            sys.stdout.flush()
