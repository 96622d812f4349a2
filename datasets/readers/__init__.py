"""The readers of training video: their contract, and all of them by name.

A new reader is a file beside this one with a class Reader(root, list=None) that derives from VideoReader, and a line
in READERS.
"""

from collections.abc import Sequence
from importlib import import_module

import numpy as np

from core.errors import UserError
from core.suggest import suggestion
from datasets.listing import JOINT, cached, check_found, check_root, list_entries, walk

#: {name of a reader: the endings of the files that it reads}
READERS = {"frames": (".jpg", ".jpeg", ".png"), "videos": (".mp4", ".avi", ".mkv", ".webm", ".mov")}


class UnreadableFrame(Exception):
    """A frame or video that exists but cannot be decoded.  path: the file.  reason: what is wrong with it."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self):
        return f"{self.path}: {self.reason}"


class VideoReader:
    """Videos are numbered 0 .. len - 1, the frames of a video 0 .. length(video) - 1, in the order of time.

    names: the name of every video in messages, its path relative to the root.  broken: {name: reason} of the videos
    that cannot be read and are left out.
    """

    names: list[str]
    broken: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.names)

    def name(self, video: int) -> str:
        return self.names[video]

    def length(self, video: int) -> int:
        """Number of frames, without opening the video."""
        raise NotImplementedError

    def times(self, video: int) -> np.ndarray | None:
        """The ascending times of the frames in seconds [length], or None where they are not known."""
        return None

    def read(self, video: int, frame_ids: Sequence[int]) -> list[np.ndarray]:
        """The frames in the order of `frame_ids`: uint8 RGB [H,W,3].  Raises UnreadableFrame."""
        raise NotImplementedError


def fitting(root: str, list: str | None = None) -> str:
    """The name of the reader that `data.reader: auto` stands for: it reads the files below root.

    list: only the file, or the files below the folder, that this list names first count.  Raises UserError where no
    reader reads any of the files, and where several readers do.
    """
    folder, suffixes = check_root(root), sum(READERS.values(), ())
    first = list_entries(list, folder)[0] if list else "."
    counts = {}
    for name, ends in READERS.items():
        if first.lower().endswith(suffixes):
            counts[name] = int(first.lower().endswith(ends))
        else:
            with cached(folder, name) as known:
                counts[name] = sum(files.count(JOINT) + 1 for _, files in walk(folder, ends, known, first))
    there = [name for name, count in counts.items() if count]
    check_found(there, folder, "frames and no video files", suffixes, "convert what is there")
    if len(there) > 1:
        told = [f"data.reader={name} ({counts[name]} files {', '.join(READERS[name])})" for name in there]
        raise UserError(f"data root {root}: holds files of several kinds; choose one: {' or '.join(told)}")
    return there[0]


def opened(name: str, root: str, list: str | None = None) -> VideoReader:
    """The reader called `name` (`data.reader`) for the videos below root, or for the videos that a list names.

    Its module is imported only now, since reading video files needs a package that reading folders of frames does not.
    """
    if name not in READERS:
        raise UserError(f"data.reader = {name!r}: must be auto, {', '.join(READERS)}{suggestion(name, READERS)}")
    return import_module(f"datasets.readers.{name}").Reader(root, list)
