"""All sequences of a data set -> masks and overlays on disk."""

import hashlib
import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from core.atomic import locked, replacing
from core.errors import UserError
from core.palette import overlay, read_ids, write_indexed, write_picture
from labelprop import pipeline

#: how many masks and frames may wait to be written; this bounds the memory
WAITING = 8


class Sequence(Protocol):
    """A video of T frames."""

    name: str
    length: int
    frame_names: tuple[str, ...]  # [T], names of the masks without suffix
    written: tuple[bool, ...]  # [T], whether the mask of a frame is written

    def frames(self):
        """Iterator of all frames, uint8 RGB [H,W,3]."""

    def frame(self, t: int):
        """Frame t."""

    def given(self):
        """The given masks: {frame index: ids uint8 [H,W]}."""


def run(
    sequences: list[Sequence], tracker, out: str | Path, *,
    overwrite: bool = False, visuals: bool = True, rank: int = 0, world: int = 1,
) -> Path:  # fmt: skip
    """Segment every sequence.  Returns the folder of masks, <out>/<layer>_vos.

    tracker: labelprop.Tracker.  Writes <layer>_vos/<sequence>/<frame>.png and, with visuals, the overlays
    <layer>_vis/<sequence>/<frame>.jpg.  A finished sequence is left out, unless overwrite is true or its given masks or
    its frames have changed.  rank, world: the number of this process, and of all processes that share the sequences.
    """
    out, mine = Path(out), dealt(sequences, rank, world)
    frames = sum(sequence.length for sequence in mine)
    hidden = world > 1 or not sys.stderr.isatty()
    with (
        tqdm(total=frames, unit="frame", disable=hidden, leave=False, dynamic_ncols=True) as bar,
        ThreadPoolExecutor(writers(tracker.device)) as pool,
    ):
        for number, sequence in enumerate(mine, 1):
            given = sequence.given()
            results = Results(out, tracker.layer, sequence, given, visuals)
            reason = "" if overwrite else results.outdated()
            if reason is None:
                frames -= sequence.length
                bar.total = frames
                told = "finished before"
            else:
                bar.set_description(sequence.name)
                started = time.perf_counter()
                with results.replaced() as (vos, vis):
                    segment(sequence, tracker, given, vos, vis, pool, bar.update)
                told = f"{sequence.length} frames, {sequence.length / (time.perf_counter() - started):.2f} frames/s"
            again = f"; {reason}: done again" if reason else ""
            line = f"[{number}/{len(mine)}] {sequence.name}: {told}; {followed(given)}{again}"
            bar.write(line, file=sys.stdout)
            sys.stdout.flush()
    return out / f"{tracker.layer}_vos"


def dealt(sequences: list[Sequence], rank: int, world: int) -> list[Sequence]:
    """The share of one of `world` processes.  Several begin with the longest: begun last, it would keep all waiting."""
    return sorted(sequences, key=lambda sequence: -sequence.length)[rank::world] if world > 1 else sequences


def segment(sequence, tracker, given, vos, vis, pool, tick):
    """Write the masks of one sequence into folder vos, overlays into vis (None: none); call tick() after each frame.

    given: sequence.given().  While the device computes, a thread of the tracker reads the next frames, and the threads
    of the pool write the last masks.
    """

    def rows(masked):
        for (frame, ids), name, written in zip(masked, sequence.frame_names, sequence.written, strict=True):
            tick()
            if written:
                yield name, ids, frame

    try:
        tracker = tracker.adapted(sequence.length, sequence.frame)
        with (
            closing(pairs(sequence.frames(), tracker, given)) as masked,
            closing(pipeline.in_order(pool, lambda row: write(*row, vos, vis), rows(masked), WAITING)) as written,
        ):
            deque(written, maxlen=0)
    except UserError as error:
        raise UserError(f"{sequence.name}: {error}") from error


def pairs(frames, tracker, given, pixels=lambda frame: frame, **options):
    """Yield (frame, its result of tracker.segment(**options)).  pixels(frame): the frame's picture, uint8 [H,W,3]."""
    unmasked = deque()  # frames that were read and have no mask yet

    def read():
        for frame in frames:
            unmasked.append(frame)
            yield pixels(frame)

    with closing(tracker.segment(read(), given, **options)) as masks:
        for result in masks:
            yield unmasked.popleft(), result


def write(name, ids, frame, vos, vis):
    """Write one mask and, unless vis is None, one overlay."""
    write_indexed(vos / f"{name}.png", ids)
    if vis is not None:
        write_picture(vis / f"{name}.jpg", overlay(frame, ids))


def writers(device) -> int:
    """How many threads encode masks and overlays: few where the CPU also runs the network, more beside a GPU."""
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes of this machine
    return 2 if device.type == "cpu" else max(2, min(8, cores - 2))


def followed(given: dict[int, np.ndarray]) -> str:
    """The given objects in words: "2 objects: 1 (4149 px), 2 (4200 px)"; of more than 8, the first and the last."""
    sizes: dict[int, str] = {}
    for ids in given.values():
        for id, px in enumerate(np.bincount(ids.ravel())):
            if id and px:
                sizes.setdefault(id, f"{id} ({px} px)")
    told, count = list(sizes.values()), len(sizes)
    if count > 8:
        told[4:-1] = ["..."]
    return f"{count} object{'s' if count > 1 else ''}: {', '.join(told)}"


class Results:
    """The masks and overlays of one sequence on disk, and a record of the given masks and frames they are made from.

    The record is removed before the masks are replaced, and written afterwards.  So masks with a record are complete
    and made from the masks and frames of the record, even after a crash.
    """

    def __init__(self, out: Path, layer: str, sequence: Sequence, given: dict[int, np.ndarray], visuals: bool):
        self.masks, self.overlays = (out / f"{layer}_{kind}" / sequence.name for kind in ("vos", "vis"))
        self.record, self.visuals = out / f"{layer}_given" / f"{sequence.name}.json", visuals
        digest = lambda ids: hashlib.sha256(f"{ids.shape}".encode() + ids.tobytes()).hexdigest()
        self.made_from = {
            "masks": {str(t): digest(ids) for t, ids in given.items()},
            "frames": list(sequence.frame_names),
            "written frames": [name for name, written in zip(sequence.frame_names, sequence.written) if written],
        }

    def outdated(self) -> str | None:
        """Why the sequence must be segmented ("": it never was); None where its results are complete and up to date."""
        if not self.masks.is_dir():
            return ""
        try:
            before = json.loads(self.record.read_text())
            changed = [part for part, value in self.made_from.items() if before[part] != value]
        except (OSError, ValueError, KeyError, TypeError):
            return "no record of the masks given"
        if changed:
            return f"{changed[0]} changed"
        try:
            for name in self.made_from["written frames"]:
                read_ids(self.masks / f"{name}.png")
        except UserError:
            return "masks damaged"
        return "overlays missing" if self.visuals and not self.overlays.is_dir() else None

    @contextmanager
    def replaced(self) -> Iterator[tuple[Path, Path | None]]:
        """with results.replaced() as (vos, vis): fill vos with masks and, unless it is None, vis with overlays."""
        if not self.visuals:  # overlays of an earlier run would not belong to these masks
            remove(self.overlays)
        with whole_folder(self.masks) as vos, whole_folder(self.overlays) if self.visuals else nullcontext() as vis:
            yield vos, vis
            with named(self.record, "removed"):
                self.record.unlink(missing_ok=True)
        with replacing(self.record) as part:
            part.write_text(json.dumps(self.made_from))


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """with whole_folder(place) as part: fill the folder `part`; afterwards it is renamed to place.

    On an error `part` is removed and an earlier folder at place stays.  A parent folder that is empty then is removed.
    """
    part, old = (place.with_name(f".{place.name}.{suffix}") for suffix in ("part", "old"))
    with ExitStack() as stack:
        with named(part, "made"):
            stack.enter_context(locked(part, place))
            remove(old, *part.iterdir())  # a killed program may have left them
        try:
            yield part
            with named(place, "replaced"):
                if place.exists():
                    place.rename(old)
                part.rename(place)
            remove(old)
        except BaseException:
            remove(part)
            raise
        finally:
            with suppress(OSError):
                place.parent.rmdir()


@contextmanager
def named(path, done):
    """An OSError inside becomes a UserError: the path cannot be `done`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be {done} ({error.strerror}); choose another --out") from error


def remove(*paths):
    """Remove folders and files, as far as this is possible."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def recorded(path: Path, origin: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The content of a record of origin ({}: no record), and the keys of `origin` whose values differ from it."""
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        before = {}
    before = before if isinstance(before, dict) else {}
    return before, [name for name in origin if before.get(name) != origin[name]]
