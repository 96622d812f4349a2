"""A video of one's own, a file that PyAV reads or a folder of frames: in any order, never held in memory."""

import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.errors import UserError
from core.masks import Colour, grabcut
from core.masks import read as read_mask
from core.palette import doubts, ids_in
from datasets.listing import mark
from datasets.readers import UnreadableFrame
from datasets.vos_sequences import pictures, read_frame

#: frames a second of a folder of frames, which does not know them
FOLDER_FPS = 25.0
#: x, y, width, height
Box = tuple[int, int, int, int]


class Frame(NamedTuple):
    """number: in the whole video, from 0.  name: for files about it.  pixels: uint8 RGB [H,W,3], as it is shown."""

    number: int
    name: str
    seconds: float
    pixels: np.ndarray


class OwnVideo:
    """A video file or a folder of JPEG or PNG frames, which are ordered by name, numbers as numbers.

    A file is read once, without decoding it, to find its frames.  Then any frame can be read.
    size: (H, W), turned as it is shown.  fps: frames a second, on average.  count: of its frames.  mark: changes
    whenever the file or a frame does.  remark: why a file may be incomplete, else "".  Raises UserError where there is
    no picture.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.exists():
            raise UserError(f"{path}: there is no such video; name a video file or a folder of frames")
        self.mark, self.fps, self.remark = self._mark(), FOLDER_FPS, ""
        self._images = pictures(self.path) if self.path.is_dir() else ()
        if self._images:
            self.count, self.size = len(self._images), read_frame(self._images[0]).shape[:2]
        else:
            with self._told() as videos:
                self._info = videos.examine(str(path), part=True)
            self.count, self.size = self._info.frames, (self._info.height, self._info.width)
            self.fps, self.remark = self._info.fps, self._info.remark

    def frames(self, start: int = 0, end: int | None = None, every: int = 1) -> Iterator[Frame]:
        """Frames start, start + every, ... before `end`, None = all.

        Raises UserError for frames that are damaged or of another size, for a file that changes meanwhile, and where no
        frame lies in this range.
        """
        numbers = range(start, self.count if end is None else min(end, self.count), every)
        if not numbers:
            raise UserError(f"{self.path}: has {self.count} frames, none from {start} on and before {end or 'its end'}")
        for frame in self._of_folder(numbers) if self._images else self._of_file(numbers):
            if frame.pixels.shape[:2] != self.size:
                old, new = (f"{width}x{height}" for height, width in (self.size, frame.pixels.shape[:2]))
                raise UserError(
                    f"{self.path}: frame {frame.number} is {new}, the first is {old}; all frames of a video must have "
                    f"one size, --end {frame.number} takes those before it"
                )
            yield frame

    def frame(self, number: int) -> Frame:
        """One frame.  Raises UserError as `frames` does."""
        return next(self.frames(number, number + 1))

    def _mark(self):
        try:
            if not self.path.is_dir():
                return mark(os.stat(self.path))
            # The folder itself changes where results are put into it.
            files = [f"{path.name} {mark(os.stat(path))}" for path in pictures(self.path)]
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error})") from None
        return hashlib.sha256("\n".join(files).encode()).hexdigest()

    def _of_folder(self, numbers):
        for number in numbers:
            path = self._images[number]
            yield Frame(number, path.stem, number / self.fps, read_frame(path))

    def _of_file(self, numbers):
        advice = "; --end N takes the frames before frame N"
        with self._told(advice) as videos, closing(videos.decode(str(self.path), self._info, numbers)) as decoded:
            for number, pixels in decoded:
                yield Frame(number, f"{number:05d}", self._info.time(number) - self._info.start, pixels)
        if self._mark() != self.mark:
            raise UserError(f"{self.path}: changed while it was read; start again when the file is complete")

    @contextmanager
    def _told(self, advice=""):
        """Inside, the errors of a video file become UserErrors."""
        from datasets.readers import videos  # needs a package that folders of frames do without

        try:
            yield videos
        except (UnreadableFrame, videos.av.FFmpegError, OSError) as error:
            raise UserError(f"{self.path}: cannot be read: {videos.reason(error)}{advice}") from None


def mask_at(text: str) -> tuple[int | None, str]:
    """PATH or FRAME:PATH -> (number of the frame, None = the first; path)."""
    number, colon, path = text.partition(":")
    return (int(number), path) if colon and number.isdecimal() and path else (None, text)


def box_at(text: str) -> tuple[int | None, int, Box]:
    """ID:x,y,w,h or FRAME@ID:x,y,w,h -> (number of the frame, None = the first; id; box).  Raises UserError."""
    found = re.fullmatch(r"\s*(?:(\d+)@)?(\d+):(-?\d+),(-?\d+),(-?\d+),(-?\d+)\s*", text)
    if not found:
        raise UserError(f"--box {text!r}: must be ID:x,y,width,height in pixels, as 1:40,20,100,80, or FRAME@ID:...")
    number = None if found[1] is None else int(found[1])
    id, x, y, width, height = map(int, found.groups()[1:])
    if not 1 <= id <= 254:
        raise UserError(f"--box {text!r}: the id of an object must be 1 to 254")
    return number, id, (x, y, width, height)


@dataclass(frozen=True)
class Task:
    """What to follow in a video: masks {number of a frame: ids uint8 [H,W]} through frames start, start + every, ..."""

    video: OwnVideo
    masks: dict[int, np.ndarray]
    start: int = 0
    end: int | None = None
    every: int = 1

    def frames(self) -> Iterator[Frame]:
        return self.video.frames(self.start, self.end, self.every)

    def frame(self, place: int) -> np.ndarray:
        """The pixels of the frame at a place among the frames."""
        return self.video.frame(self.numbers[place]).pixels

    def given(self) -> dict[int, np.ndarray]:
        """{place among the frames: ids}."""
        return {(number - self.start) // self.every: ids for number, ids in self.masks.items()}

    @property
    def numbers(self) -> range:
        """The numbers of the frames that are followed."""
        return range(self.start, min(self.video.count, self.end or self.video.count), self.every)

    @property
    def length(self) -> int:
        """The number of frames."""
        return len(self.numbers)

    @property
    def fps(self) -> float:
        return self.video.fps / self.every

    def origin(self) -> dict[str, Any]:
        """Everything that makes this task differ from another one, as plain values."""
        given = {str(number): hashlib.sha256(ids.tobytes()).hexdigest() for number, ids in self.masks.items()}
        frames = {"start": self.start, "end": self.end, "every": self.every}
        return {"video": str(self.video.path.resolve()), "mark": self.video.mark, "given": given, **frames}


def task(
    path: str | Path, masks: Sequence[str], boxes: Sequence[str], start: int = 0, end: int | None = None, every: int = 1
) -> Task:
    """The task that options describe.  masks, boxes: as `mask_at` and `box_at` read them.

    Warns of masks that look wrong.  Raises UserError for masks and boxes that cannot be followed.
    """
    video = OwnVideo(path)
    if video.remark:
        warnings.warn(f"{path}: {video.remark}", stacklevel=2)
    chosen = Task(video, {}, start, end, every)
    painted: dict[int, str] = {}
    for text in masks:
        number, picture = mask_at(text)
        number = _checked_number(chosen, number, f"--mask {text}")
        if number in painted:
            raise UserError(f"--mask {text}: {painted[number]} is given for frame {number}, too; name one mask a frame")
        painted[number] = picture
    drawn: dict[int, dict[int, Box]] = {}
    for text in boxes:
        number, id, box = box_at(text)
        number = _checked_number(chosen, number, f"--box {text}")
        if id in drawn.setdefault(number, {}):
            raise UserError(f"--box {text}: object {id} has a box at frame {number} already")
        drawn[number][id] = box
    if not painted and not drawn:
        raise UserError("--video: needs --mask PICTURE, or --box ID:x,y,w,h, which say what to follow")
    colours: dict[Colour, int] = {}
    for number in sorted({*painted, *drawn}):
        ids = _read(painted[number], video.size, colours) if number in painted else np.zeros(video.size, np.uint8)
        both = ids_in(ids) & {*drawn.get(number, ())}
        if both:
            raise UserError(f"--box of object {min(both)}: {painted[number]} holds this object at the same frame")
        cut = grabcut(video.frame(number).pixels, drawn[number]) if number in drawn else ids
        chosen.masks[number] = np.where(cut > 0, cut, ids)
    return chosen


def _checked_number(chosen, number, option):
    """The number of a frame that is followed; None: the first."""
    followed = chosen.numbers
    number = chosen.start if number is None else number
    if number not in followed:
        raise UserError(
            f"{option}: frame {number} is left out; the video has {chosen.video.count} frames, followed are "
            f"{followed.start}, {followed.start + followed.step}, ... before {followed.stop}"
        )
    return number


def _read(path, size, colours):
    """The ids of a mask of the video's size."""
    ids = read_mask(path, colours)
    if ids.shape != size:
        old, new = (f"{width}x{height}" for height, width in (size, ids.shape))
        raise UserError(f"{path}: is {new}, the video {old}; save the mask at the video's size")
    if not ids.any():
        raise UserError(f"{path}: holds no object; paint one on a black background")
    for doubt in doubts(path, ids):
        warnings.warn(f"{path}: {doubt}", stacklevel=2)
    return ids
