"""One video -> its masks, an overlay to watch, a preview, and where every object is."""

import json
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from tqdm import tqdm

from core import movies
from core.atomic import replacing
from core.errors import UserError
from core.palette import ids_in, overlay, write_indexed, write_picture
from labelprop import pipeline
from labelprop.runner import WAITING, followed, named, pairs, recorded, remove, whole_folder, writers

MASKS, OVERLAY, PREVIEW, OBJECTS = RESULTS = "masks", "overlay.mp4", "preview.gif", "objects.json"
GIVEN, RECORD = "given", "origin.json"
#: how far a run is, as tqdm shows it; a log gets a line now and then
TERMINAL: dict[str, Any] = {
    "bar_format": "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {rate_noinv_fmt}, {remaining} left"
}
LOG: dict[str, Any] = {
    "bar_format": "{n_fmt} of {total_fmt}, {rate_noinv_fmt}, {remaining} left\n", "mininterval": 30, "delay": 1,
}  # fmt: skip


class Frame(Protocol):
    """number: in the video.  name: of its mask.  seconds: when it is shown.  pixels: uint8 RGB [H,W,3]."""

    number: int
    name: str
    seconds: float
    pixels: np.ndarray


class Task(Protocol):
    """A video and the objects to follow.

    video: .path, .size = (H, W) and .frame(number) -> Frame.  length: of what is followed, None = not known.
    """

    video: Any
    masks: dict[int, np.ndarray]  # {number of a frame: ids uint8 [H,W]}
    length: int | None
    fps: float

    def frames(self) -> Iterator[Frame]:
        """The frames, one after another."""

    def given(self) -> dict[int, np.ndarray]:
        """{place among the frames: ids}."""


def carried(
    frames: Iterable[Frame], tracker: Any, given: dict[int, np.ndarray]
) -> Generator[tuple[Frame, np.ndarray, np.ndarray], None, None]:
    """(frame, ids, confidence) of every frame, where later masks correct.

    frames, given: as for Tracker.segment.  A later mask of new ids alone adds these objects.  One with an id that is
    followed already replaces that object: tracking starts again there, from this mask and from the objects that it
    lacks as they were tracked to this frame.
    """
    frames, known, restarts = iter(frames), set[int](), list[int]()
    for t, mask in sorted(given.items()):
        ids = ids_in(mask) - {0}
        restarts += [t] if known & ids else []
        known |= ids
    first, lead, start = 0, list[Frame](), given.get(0)
    for end in (*restarts, None):
        masks = {t - first: mask for t, mask in given.items() if t > first and (end is None or t < end)}
        masks |= {} if start is None else {0: start}
        rest = frames if end is None else islice(frames, end + 1 - first - len(lead))
        stretch, start = chain(lead, rest), None
        with closing(pairs(stretch, tracker, masks, lambda frame: frame.pixels, confidence=True)) as tracked:
            for t, (frame, (ids, confidence)) in enumerate(tracked, first):
                if t == end:
                    lead, start = [frame], corrected(ids, given[t])
                else:
                    yield frame, ids, confidence
        if end is None or start is None:  # the video is over
            return
        first = end


def corrected(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """ids [H,W] with the objects of a mask [H,W] as they are there."""
    return np.where(mask > 0, mask, np.where(np.isin(ids, list(ids_in(mask))), np.uint8(0), ids))


def finished(out: Path, origin: dict[str, Any], video: Path, overwrite: bool = False) -> bool:
    """Whether `out` holds the whole results of this origin; else it is made ready for them.

    origin: everything that decides what the results are, as plain values.  The record says it of results that are
    whole or on their way.  Raises UserError where other results would be lost, unless `overwrite`, or the video itself.
    """
    if video.resolve() in [(out / name).resolve() for name in RESULTS]:
        raise UserError(f"{video}: would be replaced by the results; name another --out")
    there = [name for name in RESULTS if (out / name).exists()]
    before, other = recorded(out / RECORD, origin)
    if there and not overwrite and before.get("frames", 0) is not None:  # None: broken off
        if other:
            raise UserError(
                f"{out}: holds {', '.join(there)} of another origin (differs: {', '.join(other)}; see {RECORD}); name "
                "another --out, or replace them with --overwrite"
            )
        masks = sum(1 for _ in (out / MASKS).glob("*.png"))
        if len(there) == len(RESULTS) and masks == before.get("frames"):
            return True
    clear(out)
    return False


def clear(out: Path) -> None:
    """Remove results and their record, and what a killed program may have left of them."""
    with named(out, "written to"):
        for name in (*RESULTS, RECORD):
            for path in (out / name, *out.glob(f".{name}.*")):
                if path.is_dir():
                    remove(path)
                else:
                    path.unlink(missing_ok=True)


def run(task: Task, tracker: Any, out: Path, origin: dict[str, Any], overwrite: bool = False) -> None:
    """Follow the objects of a task and say what is made; what is whole and of the same origin is left as it is.

    Writes masks/<name>.png, overlay.mp4, preview.gif and objects.json into `out` when all are complete, and then the
    record of their origin; and given/ at once, the masks given and how they lie on their frames.
    """
    if finished(out, origin, task.video.path, overwrite):
        print(f"finished before: {out / OVERLAY}; --overwrite does it again")
        return
    write_record(out, origin, None)
    try:
        write_given(task, out / GIVEN)
        results = carried(task.frames(), tracker, task.given())
        count = write_results(results, task, tracker, out)
    except BaseException as error:
        clear(out)
        if not isinstance(error, Exception):
            print("nothing unfinished is kept; the same command starts this video again", file=sys.stderr)
        raise
    write_record(out, origin, count)
    print(f"masks: {out / MASKS}\nto watch: {out / OVERLAY}, {out / PREVIEW}\nwhere objects are: {out / OBJECTS}")


def write_record(out: Path, origin: dict[str, Any], frames: int | None) -> None:
    """Write what the results in `out` are made from, and of how many frames; None: they are on their way."""
    with replacing(out / RECORD) as part:
        part.write_text(json.dumps({**origin, "frames": frames}, indent=1) + "\n")


def write_given(task: Task, folder: Path) -> None:
    """Write the given masks as PNG, and as JPEG how they lie on their frames."""
    for number, ids in task.masks.items():
        frame = task.video.frame(number)
        write_indexed(folder / f"{frame.name}.png", ids)
        write_picture(folder / f"{frame.name}.jpg", overlay(frame.pixels, ids))
        print(f"frame {number}: {followed({number: ids})}; see {folder / frame.name}.jpg", flush=True)


def write_results(results: Generator, task: Task, tracker: Any, out: Path) -> int:
    """Write what `carried` yields, all or nothing; -> the number of frames."""
    objects = sorted(set().union(*map(ids_in, task.masks.values())) - {0})
    preview, started, count = movies.Preview(), time.perf_counter(), 0
    height, width = task.video.size
    shown = TERMINAL if sys.stderr.isatty() else LOG
    with ExitStack() as stack:
        enter = stack.enter_context
        masks, add = enter(whole_folder(out / MASKS)), enter(movies.mp4(out / OVERLAY, task.fps))
        table = enter(enter(replacing(out / OBJECTS)).open("w", encoding="utf-8"))
        table.write(f'{{"width": {width}, "height": {height}, "fps": {task.fps:.6g}, "frames": [\n')
        pool = enter(ThreadPoolExecutor(writers(tracker.device)))
        bar = enter(tqdm(total=task.length, unit=" frames", dynamic_ncols=True, leave=False, **shown))

        def written(row):
            frame, ids, confidence = row
            write_indexed(masks / f"{frame.name}.png", ids)
            found = {id: measures(ids == id, confidence) for id in objects}
            entry = {"frame": frame.number, "mask": f"{frame.name}.png", "seconds": round(frame.seconds, 3)}
            return frame.seconds, overlay(frame.pixels, ids), json.dumps({**entry, "objects": found})

        rows = enter(closing(pipeline.in_order(pool, written, enter(closing(results)), WAITING)))
        for seconds, picture, entry in rows:
            add(picture, seconds)
            preview.add(picture, seconds)
            table.write((",\n" if count else "") + entry)
            count += 1
            bar.update()
        table.write("\n]}\n")
        preview.write(out / PREVIEW)
    print(f"{count} frames, {count / (time.perf_counter() - started):.2f} frames/s")
    return count


def measures(mask: np.ndarray, confidence: np.ndarray) -> dict[str, Any]:
    """Of one object: area in pixels, box [x, y, width, height], mean confidence; the last two null where it is not."""
    area = int(np.count_nonzero(mask))
    box = list(cv2.boundingRect(mask.view(np.uint8))) if area else None
    return {"area": area, "box": box, "confidence": round(float(confidence[mask].mean()), 4) if area else None}
