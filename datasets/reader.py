"""The contract of a reader: a collection of videos, whatever they are stored as.

A reader is one module in datasets/readers/ with a class Reader(root, list=None).
"""

from typing import Protocol

import numpy as np


class UnreadableFrame(Exception):
    """A frame or video that exists but cannot be decoded.  path: the file.  reason: what is wrong with it."""

    def __init__(self, path, reason):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self):
        return f"{self.path}: {self.reason}"


class Reader(Protocol):
    """Videos are numbered 0 .. len - 1, frames of a video 0 .. length(video) - 1, in the order of time."""

    def __len__(self) -> int: ...

    def name(self, video) -> str:
        """What a message calls the video: its path relative to the root."""

    def length(self, video) -> int:
        """Number of frames, without opening the video."""

    def times(self, video) -> np.ndarray | None:
        """The frames' times in seconds, ascending [length], or None where the storage knows none."""

    def read(self, video, frame_ids) -> list[np.ndarray]:
        """The frames, in the order asked for: uint8 RGB [H,W,3].  Raises UnreadableFrame."""
