"""The readers of training video: their contract, and all of them by name.

A new one is a file beside this one with a class Reader(root, list=None) that derives from VideoReader, and its name
in READERS.
"""

from collections.abc import Sequence
from importlib import import_module

import numpy as np

from core.errors import UserError
from core.suggest import suggestion

READERS = ("frames", "videos")


class UnreadableFrame(Exception):
    """A frame or video that exists but cannot be decoded.  path: the file.  reason: what is wrong with it."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self):
        return f"{self.path}: {self.reason}"


class VideoReader:
    """Videos are numbered 0 .. len - 1, frames of a video 0 .. length(video) - 1, in the order of time.

    names: the name of every video in messages, its path relative to the root.
    """

    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, video: int) -> str:
        return self.names[video]

    def length(self, video: int) -> int:
        """Number of frames, without opening the video."""
        raise NotImplementedError

    def times(self, video: int) -> np.ndarray | None:
        """The times of the frames in seconds, ascending [length], or None where the storage knows none."""
        return None

    def read(self, video: int, frame_ids: Sequence[int]) -> list[np.ndarray]:
        """The frames in the order of `frame_ids`: uint8 RGB [H,W,3].  Raises UnreadableFrame."""
        raise NotImplementedError


def opened(name: str, root: str, list: str | None = None) -> VideoReader:
    """The reader called `name` (`data.reader`) of the videos below root, or of those that a list names.

    Its module is imported only now: reading video files needs a package that folders of frames do without.
    """
    if name not in READERS:
        raise UserError(f"data.reader = {name!r}: must be one of {', '.join(READERS)}{suggestion(name, READERS)}")
    return import_module(f"datasets.readers.{name}").Reader(root, list)
