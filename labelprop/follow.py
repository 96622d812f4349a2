"""One video -> its masks, an overlay to watch, a preview, and where every object is."""

import json
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from tqdm import tqdm

from core import movies
from core.atomic import locked, replacing
from core.errors import UserError
from core.palette import ids_in, overlay, write_indexed, write_picture
from labelprop import pipeline
from labelprop.runner import WAITING, followed, named, pairs, recorded, remove, whole_folder, writers

MASKS, OVERLAY, PREVIEW, OBJECTS = RESULTS = "masks", "overlay.mp4", "preview.gif", "objects.json"
GIVEN, RECORD = "given", "origin.json"
#: tqdm's options for the progress of a run: a bar on a terminal, a line every 30 seconds in a log
TERMINAL: dict[str, Any] = {
    "bar_format": "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {rate_noinv_fmt}, {remaining} left"
}
LOG: dict[str, Any] = {
    "bar_format": "{n_fmt} of {total_fmt}, {rate_noinv_fmt}, {remaining} left\n", "mininterval": 30, "delay": 1,
}  # fmt: skip


class Frame(Protocol):
    """number: place in the video, from 0.  name: of its mask.  seconds: when it is shown.  pixels: RGB [H,W,3]."""

    number: int
    name: str
    seconds: float
    pixels: np.ndarray


class Task(Protocol):
    """A video and the objects to follow.

    video: has .path, .size = (H, W) and .frame(number) -> Frame.  length: the number of frames to follow.  fps:
    frames a second of the results.
    """

    video: Any
    masks: dict[int, np.ndarray]  # {number of a frame: ids uint8 [H,W]}
    length: int
    fps: float

    def frames(self) -> Iterator[Frame]:
        """The frames to follow, one after another."""

    def frame(self, place: int) -> np.ndarray:
        """The pixels of the frame at a place among them."""

    def given(self) -> dict[int, np.ndarray]:
        """The masks: {place among the frames to follow: ids uint8 [H,W]}."""


def carried(
    frames: Iterable[Frame], tracker: Any, given: dict[int, np.ndarray]
) -> Generator[tuple[Frame, np.ndarray, np.ndarray], None, None]:
    """Yield (frame, ids, confidence) of every frame; later masks may correct objects.

    frames, given: as for Tracker.segment.  A later mask whose ids are all new adds these objects.  A later mask that
    holds an id which is followed already corrects this object: tracking starts again at that frame, from the mask and
    from the other objects as they were tracked up to this frame.
    """
    frames, known, restarts = iter(frames), set[int](), list[int]()
    for t, mask in sorted(given.items()):
        ids = ids_in(mask) - {0}
        if known & ids:
            restarts.append(t)
        known |= ids
    # The video is tracked in stretches.  Each stretch ends with the frame `end`, with which the next stretch begins.
    first, lead, start = 0, list[Frame](), given.get(0)
    for end in (*restarts, None):
        masks = {t - first: mask for t, mask in given.items() if t > first and (end is None or t < end)}
        if start is not None:
            masks[0] = start
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
    """ids [H,W] in which the objects of a mask [H,W] are replaced by those of the mask."""
    return np.where(mask > 0, mask, np.where(np.isin(ids, list(ids_in(mask))), np.uint8(0), ids))


def finished(out: Path, origin: dict[str, Any], video: Path, overwrite: bool = False) -> bool:
    """Whether `out` holds the complete results of this origin; else what is left there is removed.

    origin: everything that decides the results, as plain values.  A record in `out` holds the origin of its results.
    Raises UserError where results of another origin would be lost and `overwrite` is false, and where the results
    would replace the video itself.
    """
    if video.resolve() in [(out / name).resolve() for name in RESULTS]:
        raise UserError(f"{video}: would be replaced by the results; name another --out")
    there = [name for name in RESULTS if (out / name).exists()]
    before, other = recorded(out / RECORD, origin)
    if there and not overwrite and before.get("frames", 0) is not None:  # None: the results are incomplete
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
    """Remove the results, their record, and unfinished files that a killed program may have left."""
    with named(out, "written to"):
        for name in (*RESULTS, RECORD):
            for path in (out / name, *out.glob(f".{name}.*")):
                if path.is_dir():
                    remove(path)
                else:
                    path.unlink(missing_ok=True)


def run(task: Task, tracker: Any, out: Path, origin: dict[str, Any], overwrite: bool = False) -> None:
    """Follow the objects of a task, write the results into `out` and print where they are.

    Results: masks/<name>.png, overlay.mp4, preview.gif and objects.json, which appear when all are complete.  The given
    masks and overlays of them are in given/ from the start.  Complete results of the same origin are left as they are.
    Raises UserError as `finished` does.
    """
    with ExitStack() as stack:
        with named(out, "written to"):
            stack.enter_context(locked(out))
        again, before = (out / RECORD).exists(), [*(out / GIVEN).glob("*")]  # which may hold masks of the user
        if finished(out, origin, task.video.path, overwrite):
            print(f"finished before: {out / OVERLAY}; --overwrite does it again")
            return
        for mask in (out / GIVEN).glob("*.png") if again else ():  # of those that were given then
            if (drawn := mask.with_suffix(".jpg")).exists():
                remove(mask, drawn)
        write_record(out, origin, None)
        written: list[Path] = []
        try:
            write_given(task, out / GIVEN, written)
            tracker = tracker.adapted(task.length, task.frame)
            results = carried(task.frames(), tracker, task.given())
            count = write_results(results, task, tracker, out)
        except BaseException as error:
            clear(out)
            remove(*(path for path in written if path not in before))
            with suppress(OSError):
                (out / GIVEN).rmdir()
            if not isinstance(error, Exception):
                print("nothing unfinished is kept; the same command starts this video again", file=sys.stderr)
            raise
        write_record(out, origin, count)
    print(f"masks: {out / MASKS}\nto watch: {out / OVERLAY}, {out / PREVIEW}\nwhere objects are: {out / OBJECTS}")


def write_record(out: Path, origin: dict[str, Any], frames: int | None) -> None:
    """Record the origin of the results in `out` and their number of frames; None: they are not complete yet."""
    with replacing(out / RECORD) as part:
        part.write_text(json.dumps({**origin, "frames": frames}, indent=1) + "\n")


def write_given(task: Task, folder: Path, written: list[Path]) -> None:
    """Write every given mask as PNG, and an overlay of it on its frame as JPEG; add the files to `written`."""
    for number, ids in task.masks.items():
        frame = task.video.frame(number)
        mask, picture = (folder / f"{frame.name}{suffix}" for suffix in (".png", ".jpg"))
        written += mask, picture
        write_indexed(mask, ids)
        write_picture(picture, overlay(frame.pixels, ids))
        print(f"frame {number}: {followed({number: ids})}; see {picture}", flush=True)


def write_results(results: Generator, task: Task, tracker: Any, out: Path) -> int:
    """Write the results that `carried` yields, all or nothing.  Returns the number of frames."""
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
    """Area in pixels, box [x, y, width, height] and mean confidence in a mask, bool [H,W]; None where it is empty."""
    area = int(np.count_nonzero(mask))
    if not area:
        return {"area": 0, "box": None, "confidence": None}
    box = list(cv2.boundingRect(mask.view(np.uint8)))
    return {"area": area, "box": box, "confidence": round(float(confidence[mask].mean()), 4)}
