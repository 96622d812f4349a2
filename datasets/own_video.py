"""A video of one's own, a file that PyAV reads or a folder of frames: decoded from its start, never held in memory."""

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.errors import UserError
from datasets.listing import list_folder, mark
from datasets.readers import UnreadableFrame
from datasets.readers.frames import SUFFIXES
from datasets.vos_sequences import read_frame

#: frames a second of a folder of frames, which does not know them
FOLDER_FPS = 25.0


class Frame(NamedTuple):
    """number: in the whole video, from 0.  name: for files about it.  pixels: uint8 RGB [H,W,3], as it is shown."""

    number: int
    name: str
    seconds: float
    pixels: np.ndarray


class OwnVideo:
    """A video file or a folder of JPEG or PNG frames, which are ordered by name, numbers as numbers.

    size: (H, W), turned as it is shown.  fps: frames a second, on average.  count: of its frames, as far as the file
    tells, else None.  mark: changes whenever the file does.  Raises UserError where there is no picture to be read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.exists():
            raise UserError(f"{path}: there is no such video; name a video file or a folder of frames")
        self.mark = mark(os.stat(path))
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
        try:
            names, folders = list_folder(self.path, SUFFIXES)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from None
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
                if before < 0.9 * length - 1:
                    short = f"its picture ends at {before:.1f} s, the file at {length:.1f} s; it may break off there"
                    warnings.warn(f"{self.path}: {short}", stacklevel=2)
        except (UnreadableFrame, videos.av.FFmpegError, OSError) as error:
            why = error.reason if isinstance(error, UnreadableFrame) else videos.reason(error)
            if number:
                why = f"breaks off or is damaged at frame {number} ({why}); --end {number} takes the frames before it"
            raise UserError(f"{self.path}: cannot be read: {why}") from None
        if mark(os.stat(self.path)) != self.mark:
            raise UserError(f"{self.path}: changed while it was read; start again when the file is complete")


def _decoded(container, stream):
    """The frames in the order of time.  Raises UnreadableFrame where the file breaks off."""
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise UnreadableFrame(container.name, "the file breaks off")
        yield from packet.decode()
