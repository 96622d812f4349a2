"""A video of one's own, a file that PyAV reads or a folder of frames: decoded from its start, never held in memory."""

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.errors import UserError
from core.masks import Colour, grabcut
from core.masks import read as read_mask
from core.palette import doubts, ids_in
from datasets.listing import list_folder, mark
from datasets.readers import UnreadableFrame
from datasets.readers.frames import SUFFIXES
from datasets.vos_sequences import read_frame

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

    size: (H, W), turned as it is shown.  fps: frames a second, on average.  count: of its frames, as far as the file
    tells, else None.  mark: changes whenever the file or a frame does.  Raises UserError where there is no picture.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.exists():
            raise UserError(f"{path}: there is no such video; name a video file or a folder of frames")
        self.mark = self._mark()
        self.fps = FOLDER_FPS
        self.count: int | None = None
        self._opened = self._folder if self.path.is_dir() else self._file
        first = next(self._opened(), None)
        if first is None:
            raise UserError(f"{path}: holds no picture")
        self.size: tuple[int, int] = first[2]().shape[:2]

    def frames(self, start: int = 0, end: int | None = None, every: int = 1) -> Iterator[Frame]:
        """Frames start, start + every, ... before `end`, decoded one after another from the video's start.

        Raises UserError for frames that are damaged or of another size, for a file that breaks off or that changes
        meanwhile, and where no frame lies in this range.
        """
        number, found = -1, False
        for number, (name, seconds, pixels) in enumerate(self._opened()):
            if end is not None and number >= end:
                break
            if number >= start and (number - start) % every == 0:
                yield Frame(number, name, seconds, self._checked(number, pixels()))
                found = True
        if not found:
            raise UserError(f"{self.path}: has {number + 1} frames, none from {start} on and before {end or 'its end'}")

    def frame(self, number: int) -> Frame:
        """One frame.  Raises UserError as `frames` does."""
        return next(self.frames(number, number + 1))

    def _mark(self):
        if not self.path.is_dir():
            return mark(os.stat(self.path))
        # The folder itself changes where results are put into it.
        try:
            files = [f"{name} {mark(os.stat(self.path / name))}" for name in list_folder(self.path, SUFFIXES)[0]]
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error})") from None
        return hashlib.sha256("\n".join(files).encode()).hexdigest()

    def _checked(self, number, pixels):
        if pixels.shape[:2] != self.size:
            old, new = (f"{width}x{height}" for height, width in (self.size, pixels.shape[:2]))
            raise UserError(
                f"{self.path}: frame {number} is {new}, the first is {old}; all frames of a video must have one size, "
                f"--end {number} takes those before it"
            )
        return pixels

    def _folder(self) -> Iterator[tuple[str, float, Callable]]:
        """(name, seconds, function that decodes) of every frame."""
        names, folders = list_folder(self.path, SUFFIXES)
        if not names:
            inside = f"; it holds folders ({', '.join(folders[:3])}), name one of them" if folders else ""
            raise UserError(f"{self.path}: holds no JPEG or PNG frame{inside}")
        stems = [Path(name).stem for name in names]
        twice = next((stem for stem in stems if stems.count(stem) > 1), None) if len(set(stems)) < len(stems) else None
        if twice is not None:
            raise UserError(f"{self.path}: two frames are named {twice}; their masks would have one name")
        self.count = len(names)
        for number, name in enumerate(names):
            yield stems[number], number / self.fps, lambda name=name: read_frame(self.path / name)

    def _file(self) -> Iterator[tuple[str, float, Callable]]:
        """(name, seconds, function that converts) of every frame."""
        from datasets.readers import videos  # needs a package that folders of frames do without

        number, before = 0, -1.0
        try:
            with videos.opened(str(self.path)) as (container, stream):
                self.fps = float(stream.average_rate or stream.guessed_rate or FOLDER_FPS)
                self.count = stream.frames or round((container.duration or 0) / videos.av.time_base * self.fps) or None
                timed, origin = container.format.name != "avi", None  # AVI files know the order of decoding alone
                for frame in _decoded(container, stream):
                    if frame.is_corrupt:
                        raise UnreadableFrame(str(self.path), "is damaged")
                    time = frame.time if timed else None
                    origin = time if origin is None else origin
                    seconds = number / self.fps if time is None or origin is None else time - origin
                    before = max(seconds, before + 0.001)
                    turn = frame.rotation % 360
                    pixels = lambda frame=frame, turn=turn: videos.upright(
                        frame.to_ndarray(format="rgb24", threads=1), turn
                    )
                    yield f"{number:05d}", before, pixels
                    number += 1
                length = (container.duration or 0) / videos.av.time_base
                if number and before < 0.9 * length - 1:
                    short = f"its picture ends at {before:.1f} s, the file at {length:.1f} s; it may break off there"
                    warnings.warn(f"{self.path}: {short}", stacklevel=2)
        except (UnreadableFrame, videos.av.FFmpegError, OSError) as error:
            why = error.reason if isinstance(error, UnreadableFrame) else videos.reason(error)
            if number:
                why = f"breaks off or is damaged at frame {number} ({why}); --end {number} takes the frames before it"
            raise UserError(f"{self.path}: cannot be read: {why}") from None
        if self._mark() != self.mark:
            raise UserError(f"{self.path}: changed while it was read; start again when the file is complete")


def _decoded(container, stream):
    """The frames in the order of time.  Raises UnreadableFrame where the file breaks off."""
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise UnreadableFrame(container.name, "the file breaks off")
        yield from packet.decode()


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

    def given(self) -> dict[int, np.ndarray]:
        """{place among the frames: ids}."""
        return {(number - self.start) // self.every: ids for number, ids in self.masks.items()}

    @property
    def length(self) -> int | None:
        """The number of frames, as far as it is known."""
        ends = [end for end in (self.end, self.video.count) if end is not None]
        return len(range(self.start, min(ends), self.every)) if ends else None

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
    chosen = Task(video, {}, start, end, every)
    pictures: dict[int, str] = {}
    for text in masks:
        number, picture = mask_at(text)
        number = _checked_number(chosen, number, f"--mask {text}")
        if number in pictures:
            raise UserError(
                f"--mask {text}: {pictures[number]} is given for frame {number}, too; name one mask a frame"
            )
        pictures[number] = picture
    drawn: dict[int, dict[int, Box]] = {}
    for text in boxes:
        number, id, box = box_at(text)
        number = _checked_number(chosen, number, f"--box {text}")
        if id in drawn.setdefault(number, {}):
            raise UserError(f"--box {text}: object {id} has a box at frame {number} already")
        drawn[number][id] = box
    if not pictures and not drawn:
        raise UserError("--video: needs --mask PICTURE, or --box ID:x,y,w,h, which say what to follow")
    colours: dict[Colour, int] = {}
    for number in sorted({*pictures, *drawn}):
        ids = _read(pictures[number], video.size, colours) if number in pictures else np.zeros(video.size, np.uint8)
        both = ids_in(ids) & {*drawn.get(number, ())}
        if both:
            raise UserError(f"--box of object {min(both)}: {pictures[number]} holds this object at the same frame")
        cut = grabcut(video.frame(number).pixels, drawn[number]) if number in drawn else ids
        chosen.masks[number] = np.where(cut > 0, cut, ids)
    return chosen


def _checked_number(chosen, number, option):
    """The number of a frame that is followed; None: the first."""
    video, start, end, every = chosen.video, chosen.start, chosen.end, chosen.every
    number = start if number is None else number
    if end is not None and number >= end or number < start or (number - start) % every:
        followed = f"{start}, {start + every}, ... before {end if end is not None else 'the end'}"
        raise UserError(f"{option}: frame {number} is left out; followed are {followed}")
    if video.count is not None and number >= video.count:
        raise UserError(f"{option}: the video has {video.count} frames, 0 to {video.count - 1}")
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
