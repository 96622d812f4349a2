"""What a person works on in the page: one video, the masks that were drawn, the masks that were computed.

Masks lie in one folder on disk, so that memory does not depend on the video's length.
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
from core.movies import fitted, mp4
from core.palette import ids_in, overlay, read_ids, write_indexed
from labelprop import Tracker
from labelprop.follow import carried, corrected
from labelprop.readout import nearest

#: longer sides of a frame are shrunk to this in the page
SHOWN_PX = 960
#: of each frame, the whole mask; and the objects that were drawn in it, for when it is followed from earlier frames
KINDS = ("masks", "drawn")


class Session:
    """One video, and one piece of work on it at a time.

    folder: belongs to the session; `close` removes it.  written: the folder with overlay.mp4 and masks.zip, or None
    where there are none, or none that are up to date.
    """

    def __init__(self, folder: Path):
        self.folder, self.video = folder, None
        self.work: Work | None = None
        self.written: Path | None = None

    def open(self, video) -> None:
        """Take another video; what was drawn and computed for the one before is removed."""
        self.stop()
        for kind in (*KINDS, "files"):
            shutil.rmtree(self.folder / kind, ignore_errors=True)
        self.video, self.written = video, None

    def begin(self, name: str, steps: Iterator, total: int) -> "Work":
        """Let a thread run through `follow` or `write`.  Raises UserError while another piece of work is not done."""
        if self.busy():
            raise UserError(f"{self.work.name} is still going on: wait for its end, or press Stop")
        self.work = Work(name, steps, total)
        self.work.start()
        return self.work

    def busy(self) -> bool:
        return self.work is not None and self.work.is_alive()

    def stop(self) -> None:
        """End the work, if there is any, and wait for its end."""
        if self.work:
            self.work.stopped = True
            self.work.join()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ids(self, t: int) -> np.ndarray:
        """The mask of a frame, uint8 [H,W]; empty where nothing was drawn or computed."""
        path = self._mask(t)
        return read_ids(path) if path else np.zeros(self.video.size, np.uint8)

    def shown(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """A frame and its mask as the page shows them: uint8 RGB [h,w,3], ids uint8 [h,w]."""
        return shrunk(self.video.frame(t).pixels, self.ids(t))

    def draw(self, t: int, ids: np.ndarray) -> None:
        """Make ids uint8 [h,w] the mask of frame t.  Pixels that are as the page showed them stay as they are."""
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

    def box(self, t: int, id: int, box: tuple[int, int, int, int]) -> None:
        """Draw object id at frame t by a box (x, y, w, h) [h,w]: GrabCut finds its mask; other objects keep theirs."""
        frame, ids = self.shown(t)
        found = grabcut(frame, {id: box}) == id
        ids[ids == id] = 0
        ids[found & (ids == 0)] = id
        self.draw(t, ids)

    def follow(self, tracker: Tracker, start: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Carry the mask of frame `start` to the video's end -> (t, frame, ids) of every frame; masks go to disk.

        Masks of earlier frames stay.  Objects that were drawn at later frames join, or are corrected, there.  Raises
        UserError where the mask is empty.
        """
        given = {0: self.ids(start)}
        if not given[0].any():
            raise UserError(f"there is no object at frame {start}: draw one, or go to a frame that has a mask")
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
        """The frames that have a mask, and those between them."""
        there = [int(path.stem) for kind in KINDS for path in self._files(kind)]
        return [*range(min(there), max(there) + 1)] if there else []

    def write(self) -> Iterator[None]:
        """Write overlay.mp4 and masks.zip of every frame in `masked`, one a step."""
        frames = self.masked()
        if not frames:
            raise UserError("there is no mask to write: draw the objects and follow them first")
        shutil.rmtree(self.folder / "files", ignore_errors=True)
        out = self.folder / "files" / str(time.monotonic_ns())  # a browser keeps what had the same name
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
        self.written = out

    def _mask(self, t):
        """The file with the mask of a frame, or None."""
        return next((path for kind in KINDS if (path := self._path(kind, t)).exists()), None)

    def _path(self, kind, t):
        return self.folder / kind / f"{t:05d}.png"

    def _files(self, kind):
        return (self.folder / kind).glob("[0-9]*.png")


class Work(threading.Thread):
    """Runs through steps in the background.  latest: what the last step gave; error: the exception that ended it."""

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
        except Exception as error:  # is for the page to tell
            self.error = error

    def rate(self) -> float:
        """Steps a second so far."""
        return self.done / (time.perf_counter() - self.began)


def shrunk(frame: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A frame and its ids with sides of at most SHOWN_PX."""
    frame = fitted(frame, SHOWN_PX)
    return frame, nearest(ids, frame.shape[:2])
