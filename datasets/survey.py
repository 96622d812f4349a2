"""Facts about training videos before a training: which frames can be read, how fast, and what samples look like."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch

from core.errors import UserError
from datasets.clip import ClipLoader
from datasets.readers import UnreadableFrame, VideoReader

#: How many frames are read at a time.
CHUNK = 16
TILE_PX, TITLE_PX = 128, 18
#: How many frames of a clip the sheet shows.
COLUMNS = 8


@dataclass
class Frames:
    """What `read_frames` found.

    sizes: {(width, height): number of videos}.  read, unreadable: numbers of frames.  reasons: {file: why it cannot be
    read}.
    """

    sizes: Counter = field(default_factory=Counter)
    read: int = 0
    unreadable: int = 0
    reasons: dict[str, str] = field(default_factory=dict)

    def take(self, reader: VideoReader, video: int, numbers: list[int]) -> list[np.ndarray]:
        """Read and count some frames of a video.  Returns the frames that can be read."""
        try:
            frames = reader.read(video, numbers)
        except UnreadableFrame as error:
            if len(numbers) > 1:  # the others may be sound
                return [frame for number in numbers for frame in self.take(reader, video, [number])]
            self.unreadable += 1
            self.reasons[error.path] = error.reason
            return []
        self.read += len(frames)
        return frames


def read_frames(reader: VideoReader, seconds: float) -> Frames:
    """Read the middle frame of every video, in random order, then all other frames, for so many seconds in all."""
    found, end = Frames(), time.monotonic() + seconds
    order = np.random.default_rng(0).permutation(len(reader)).tolist()
    for video in order:
        for frame in found.take(reader, video, [reader.length(video) // 2]):
            found.sizes[frame.shape[1::-1]] += 1
        if time.monotonic() > end:
            return found
    for video in order:
        others = [i for i in range(reader.length(video)) if i != reader.length(video) // 2]
        for first in range(0, len(others), CHUNK):
            found.take(reader, video, others[first : first + CHUNK])
            if time.monotonic() > end:
                return found
    return found


@dataclass
class Speed:
    """What `make_samples` measured.

    clips: how many were made.  seconds: for all clips; views_seconds: the part of the views, without reading.
    samples: (name of the video, sample) of the first clips.  bad: (path, reason) of clips that could not be read.
    """

    clips: int = 0
    seconds: float = 0.0
    views_seconds: float = 0.0
    samples: list[tuple[str, dict]] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)


def make_samples(loader: ClipLoader, seconds: float, keep: int) -> Speed:
    """Make samples of the first epoch as a worker does, for so many seconds.

    keep: how many of the first samples are kept.  Raises UserError where no sample can be made.
    """
    speed, views = Speed(), loader.dataset.views

    def timed(frames, rng):
        before = time.perf_counter()
        sample = views(frames, rng)
        speed.views_seconds += time.perf_counter() - before
        return sample

    loader.dataset.views = timed
    with _as_worker():
        started = time.perf_counter()
        for place, video in enumerate(loader.order(0)):
            sample = loader.dataset[0, place, video]
            if "error" in sample:
                raise UserError(sample["error"])
            bad = sample.pop("bad")
            speed.bad += bad
            speed.clips += 1
            speed.seconds = time.perf_counter() - started
            if place < keep:
                name = loader.dataset.reader.name(video)
                speed.samples.append((f"another video for {name}" if bad else name, sample))
            if speed.seconds > seconds:
                break
    return speed


@contextmanager
def _as_worker() -> Iterator[None]:
    """Inside, torch and OpenCV use one thread, as in a worker of the loader."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def sheet(samples: list[tuple[str, dict]]) -> np.ndarray:
    """The pictures of samples, one below another, with a row for each view -> uint8 RGB [H,W,3]."""
    blocks = []
    for name, sample in samples:
        views = {view: value.numpy() for view, value in sample.items() if value.dtype == torch.uint8}
        rows = [np.concatenate([_tile(frame) for frame in value[:COLUMNS]], axis=1) for value in views.values()]
        title = np.full((TITLE_PX, rows[0].shape[1], 3), 255, np.uint8)
        text = f"{name}: {', '.join(views)}".encode("ascii", "replace").decode()
        cv2.putText(title, text, (4, TITLE_PX - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
        blocks += [title, *rows]
    return np.concatenate(blocks)


def _tile(pictures):
    """A picture uint8 [3,h,w], or several of them [N,3,h,w] side by side -> uint8 [TILE_PX,TILE_PX,3]."""
    pictures = pictures.reshape(-1, *pictures.shape[-3:])
    tile, side = np.zeros((TILE_PX, TILE_PX, 3), np.uint8), math.ceil(math.sqrt(len(pictures)))
    cell_px = TILE_PX // side
    for number, picture in enumerate(pictures):
        scale = cell_px / max(picture.shape[1:])
        height, width = (max(1, round(extent * scale)) for extent in picture.shape[1:])
        y, x = (cell_px * place for place in divmod(number, side))
        small = cv2.resize(picture.transpose(1, 2, 0), (width, height), interpolation=cv2.INTER_AREA)
        tile[y : y + height, x : x + width] = small
    return tile
