"""Videos stored as folders of JPEG or PNG frames, at any depth below a root."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from core.errors import UserError
from datasets.listing import JOINT, cached, check_found, check_root, list_entries, list_folder, walk
from datasets.readers import READERS, UnreadableFrame, VideoReader

SUFFIXES = READERS["frames"]
JPEG_START, JPEG_PIXELS, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


class Reader(VideoReader):
    """Every folder below `root` that holds frames is a video; its frames are ordered by name, numbers as numbers.

    list: optional text file that names the videos to use, see `read_list`.  Without a list all folders are scanned; the
    result is kept in the cache folder, and later scans look only into folders that changed.
    Raises UserError where there is no video.
    """

    def __init__(self, root: str | Path, list: str | None = None):
        self.root = check_root(root)
        if list:
            found = read_list(list, self.root)
        else:
            with cached(self.root, "frames") as known:
                found = sorted(walk(self.root, SUFFIXES, known))
        check_found(found, self.root, "frames", SUFFIXES, "data.reader=videos for video files")
        self.names = [folder for folder, _ in found]
        self._frames = [sys.intern(frames) for _, frames in found]  # equal ones are kept once

    def length(self, video: int) -> int:
        return self._frames[video].count(JOINT) + 1

    def read(self, video: int, frame_ids: Sequence[int]) -> "list[np.ndarray]":
        frames = self._frames[video].split(JOINT)
        return [read_frame(os.path.join(self.root, self.names[video], frames[i])) for i in frame_ids]


def read_frame(path: str | Path) -> np.ndarray:
    """Decode an image file -> uint8 RGB [H,W,3], as stored (EXIF orientation is ignored).  Raises UnreadableFrame."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:  # ValueError: the path is not valid
        raise UnreadableFrame(str(path), getattr(error, "strerror", None) or str(error)) from None
    if not data:
        raise UnreadableFrame(str(path), "the file is empty")
    # OpenCV 4 fills the missing part of a JPEG with grey; where zeros follow, every decoder does.
    if data.startswith(JPEG_START) and _breaks_off(data):
        raise UnreadableFrame(str(path), "the JPEG breaks off before its end")
    # OpenCV decodes a 512x288 JPEG in 0.29 ms, Pillow in 0.37 ms; the pixels are the same.
    try:
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # the image has more pixels than OpenCV accepts
        frame = None
    if frame is None:
        raise UnreadableFrame(str(path), "cannot be decoded: damaged, or no image")
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def _breaks_off(jpeg):
    """Whether no end marker follows the start of the pixels.  The header, whose preview has its own, is skipped."""
    if jpeg.endswith(JPEG_END):
        return False
    place = len(JPEG_START)
    while jpeg[place : place + 1] == b"\xff" and jpeg[place : place + 2] != JPEG_PIXELS:
        place += 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
    return jpeg.find(JPEG_END, place) < 0


def read_list(path: str | Path, root: Path) -> list[tuple[str, str]]:
    """The videos that a training list names, in its order: [(folder relative to root, frame names joined by JOINT)].

    A line names a frame, whose parent folder is the video, or a folder of frames.  Raises UserError for a list or an
    entry that does not exist.
    """
    videos: dict[str, list[str]] = {}
    for entry in list_entries(path, root):
        if entry.lower().endswith(SUFFIXES):
            folder, _, name = entry.rpartition("/")
            videos.setdefault(folder or ".", []).append(name)
        elif entry not in videos:
            if not os.path.isdir(root / entry):
                raise UserError(f"data.list {path}: {root / entry} is no folder; entries are relative to data.root")
            try:
                videos[entry], _ = list_folder(root / entry, SUFFIXES)
            except OSError as error:
                raise UserError(f"data.list {path}: {root / entry}: {error.strerror}; mend or remove it") from None
            if not videos[entry]:
                raise UserError(f"data.list {path}: {root / entry} holds no {', '.join(SUFFIXES)} files; remove it")
    return [(folder, JOINT.join(names)) for folder, names in videos.items()]
