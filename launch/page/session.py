"""The state of an open page: one video, the masks that were drawn, and the masks that were computed.

Masks are kept in files, so that memory does not depend on the video's length.
Legend: t frame index, H W pixels of the video, h w pixels of the picture that the page shows.
"""

import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from core.atomic import replacing
from core.errors import UserError
from core.masks import grabcut
from core.movies import mp4
from core.palette import fitted, ids_in, overlay, read_ids, write_indexed
from labelprop import Tracker
from labelprop.follow import carried, corrected
from labelprop.readout import nearest

#: the longest side in pixels of a frame in the page
SHOWN_PX = 960
#: "masks" holds the whole mask of a frame, "drawn" the objects that were drawn in it: they replace the computed ones
#: when the objects are followed from an earlier frame
KINDS = ("masks", "drawn")


class Session:
    """One video, and at most one piece of work on it at a time.

    folder: belongs to the session; `close` removes it.  written: the folder of overlay.mp4 and masks.zip, None where
    they do not exist or are out of date.
    """

    def __init__(self, folder: Path):
        self.folder, self.video = folder, None
        self.work: Work | None = None
        self.written: Path | None = None
        self._drawing, self._changes = threading.RLock(), 0
        self._drawn: dict[int, int] = {}  # frame -> the serial number of its last drawing

    def open(self, video) -> None:
        """Take another video; the masks and files of the one before are removed."""
        self.stop()
        for kind in (*KINDS, "files"):
            shutil.rmtree(self.folder / kind, ignore_errors=True)
        self.video, self.written = video, None
        self._drawn.clear()

    def begin(self, name: str, steps: Iterator, total: int) -> "Work":
        """Run through `follow` or `write` in a thread.  Raises UserError while other work goes on."""
        if self.busy():
            raise UserError(f"{self.work.name} is still going on: wait for its end, or press Stop")
        self.work = Work(name, steps, total)
        self.work.start()
        return self.work

    def busy(self) -> bool:
        return self.work is not None and self.work.is_alive()

    def stop(self) -> None:
        """Stop the work, if there is any, and wait until it has ended."""
        if self.work:
            self.work.stopped = True
            self.work.join()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ids(self, t: int) -> np.ndarray:
        """The mask of a frame, uint8 [H,W]; all 0 where nothing was drawn or computed."""
        path = self._mask(t)
        return read_ids(path) if path else np.zeros(self.video.size, np.uint8)

    def shown(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """A frame and its mask as the page shows them: uint8 RGB [h,w,3], ids uint8 [h,w]."""
        return shrunk(self.video.frame(t).pixels, self.ids(t))

    def draw(self, t: int, ids: np.ndarray, serial: int | None = None) -> None:
        """Make ids uint8 [h,w] the mask of frame t.  Pixels that the user did not change keep their ids.

        serial: grows from drawing to drawing; one that comes late, after its successor, is left out.
        """
        with self._drawing:
            if serial is not None:
                if serial < self._drawn.get(t, serial):
                    return
                self._drawn[t] = serial
            self._draw(t, ids)

    def _draw(self, t, ids):
        self._changes += 1
        self.written, before = None, self.ids(t)
        changed = nearest(nearest(before, ids.shape) != ids, before.shape)
        after = np.where(changed, nearest(ids, before.shape), before)
        drawn = ids_in(after[changed][None]) | ids_in(before[changed & (after == 0)][None])
        if self._path("drawn", t).exists():
            drawn |= ids_in(read_ids(self._path("drawn", t)))
        for kind, mask in (("masks", after), ("drawn", np.where(np.isin(after, [*drawn]), after, np.uint8(0)))):
            if mask.any():
                write_indexed(self._path(kind, t), mask)
            else:
                self._path(kind, t).unlink(missing_ok=True)

    def box(self, t: int, id: int, box: tuple[int, int, int, int], ids: np.ndarray, serial: int | None = None) -> None:
        """Draw object id at frame t: GrabCut finds it in a box (x, y, w, h) [h,w].  Other objects keep their masks.

        ids, serial: the mask [h,w] before, and the number, as for `draw`.
        """
        with self._drawing:
            self.draw(t, ids, serial)
            frame = self.shown(t)[0]
            ids = nearest(ids, frame.shape[:2]).copy()  # of another video where this was opened meanwhile
            found = grabcut(frame, {id: box}) == id
            ids[ids == id] = 0
            ids[found & (ids == 0)] = id
            self.draw(t, ids, serial)

    def follow(self, tracker: Tracker, start: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Follow the objects of frame `start` to the video's end, and write all masks.  Yields (t, frame, ids).

        Masks of earlier frames stay.  Objects that were drawn at later frames are added, or corrected, there.  Raises
        UserError where the mask of frame `start` is empty.
        """
        given = {0: self.ids(start)}
        if not given[0].any():
            raise UserError(f"there is no object at frame {start}: draw one, or go to a frame that has a mask")
        tracker = tracker.adapted(self.video.count, lambda t: self.video.frame(t).pixels)
        self.written = None
        for path in self._files("masks"):
            if int(path.stem) > start:
                path.unlink()
        given |= {t - start: read_ids(path) for path in self._files("drawn") if (t := int(path.stem)) > start}
        with closing(carried(self.video.frames(start), tracker, given)) as results:
            for t, (frame, ids, _) in enumerate(results):
                ids = corrected(ids, given[t]) if t in given else ids
                write_indexed(self._path("masks", frame.number), ids)
                yield frame.number, frame.pixels, ids

    def masked(self) -> list[int]:
        """The numbers of the frames from the first to the last that has a mask."""
        there = [int(path.stem) for kind in KINDS for path in self._files(kind)]
        return [*range(min(there), max(there) + 1)] if there else []

    def write(self) -> Iterator[None]:
        """Write overlay.mp4 and masks.zip of the frames in `masked`.  Yields after every frame."""
        frames = self.masked()
        if not frames:
            raise UserError("there is no mask to write: draw the objects and follow them first")
        self.written, changes = None, self._changes
        shutil.rmtree(self.folder / "files", ignore_errors=True)
        out = self.folder / "files" / str(time.monotonic_ns())  # browsers keep files by name
        with (
            mp4(out / "overlay.mp4", self.video.fps) as add,
            replacing(out / "masks.zip") as part,
            zipfile.ZipFile(part, "w") as masks,
        ):
            for frame in self.video.frames(frames[0], frames[-1] + 1):
                add(overlay(frame.pixels, self.ids(frame.number)), frame.seconds)
                if path := self._mask(frame.number):
                    masks.write(path, f"{frame.name}.png")
                yield
        if self._changes == changes:  # else these files are out of date already
            self.written = out

    def _mask(self, t):
        """The file of a frame's mask, None = no mask."""
        return next((path for kind in KINDS if (path := self._path(kind, t)).exists()), None)

    def _path(self, kind, t):
        return self.folder / kind / f"{t:05d}.png"

    def _files(self, kind):
        return (self.folder / kind).glob("[0-9]*.png")


class Work(threading.Thread):
    """Runs through steps in the background.  latest: the last step's result; error: the exception that ended it."""

    def __init__(self, name: str, steps: Iterator, total: int):
        super().__init__(name=name, daemon=True)
        self.steps, self.total, self.done = steps, max(1, total), 0
        self.latest, self.error, self.stopped = None, None, False
        self.began = time.perf_counter()

    def run(self):
        try:
            with closing(self.steps) as steps:
                for latest in steps:
                    self.latest, self.done = latest, self.done + 1
                    if self.stopped:
                        return
        except Exception as error:  # the page shows it
            self.error = error

    def rate(self) -> float:
        """Steps a second so far."""
        return self.done / (time.perf_counter() - self.began)


def shrunk(frame: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A frame and its ids, made smaller where a side exceeds SHOWN_PX."""
    frame = fitted(frame, SHOWN_PX)
    return frame, nearest(ids, frame.shape[:2])
