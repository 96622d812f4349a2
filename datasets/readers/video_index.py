"""What is in video files, found by reading every file once."""

import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from datasets.listing import counted, mark
from datasets.readers import UnreadableFrame

log = logging.getLogger(__name__)

#: Files read at once: mostly they wait for the disk.
THREADS = 8


class Video(NamedTuple):
    """One file.  start: time of its first frame.  seconds: how long it is.

    width, height: as shown, after `rotation` (degrees, anticlockwise).  times: seconds of every frame where they
    are not evenly spaced (a variable frame rate), else None.
    """

    frames: int
    fps: float
    start: float
    seconds: float
    width: int
    height: int
    rotation: int
    times: np.ndarray | None = None

    def all_times(self) -> np.ndarray:
        """Seconds of every frame [frames]."""
        return self.start + np.arange(self.frames) / self.fps if self.times is None else self.times

    def number(self, seconds: float) -> int:
        """The frame nearest to a time; outside of the video it may be no frame's."""
        if self.times is None:
            return round((seconds - self.start) * self.fps)
        right = min(max(int(np.searchsorted(self.times, seconds)), 1), self.frames - 1)
        return right - 1 if seconds - self.times[right - 1] < self.times[right] - seconds else right


def stamp(item):
    """Time of a packet or frame in ticks, or None; AVI files know the order of decoding alone."""
    return item.dts if item.pts is None else item.pts


def reason(error: Exception) -> str:
    """The fault as FFmpeg puts it in words."""
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def opened(path: str) -> Iterator[tuple]:
    """with opened(path) as (container, stream): PyAV's, the stream being the video.  Raises UnreadableFrame."""
    with av.open(path) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise UnreadableFrame(path, "holds no video")
        # The loader's workers decode side by side; and were a decoder with threads still about when workers are
        # forked, a worker that frees it would wait for ever for threads that it does not have.
        stream.codec_context.thread_count = 1
        yield container, stream


def examine(path: str) -> Video:
    """Reads the whole file without decoding more than its first frame.  Raises UnreadableFrame."""
    if not os.path.getsize(path):
        raise UnreadableFrame(path, "the file is empty")
    with opened(path) as (container, stream):
        stamps: list = []
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise UnreadableFrame(path, f"breaks off or is damaged after {len(stamps)} frames")
            if packet.size and not packet.is_discard:  # discarded: cut away by an edit of the video
                stamps.append(stamp(packet))
        if not stamps or None in stamps:
            raise UnreadableFrame(path, "has frames without a time" if stamps else "holds no frame")
        container.seek(min(stamps), stream=stream)
        frame = next(container.decode(stream), None)
        if frame is None:
            raise UnreadableFrame(path, "its first frame cannot be decoded")
        times = np.unique(stamps) * float(stream.time_base)
        fps = float(stream.average_rate or 25) if len(times) == 1 else (len(times) - 1) / (times[-1] - times[0])
    off = np.abs((times - times[0]) * fps - np.arange(len(times))).max()
    sides = (frame.width, frame.height) if frame.rotation % 180 == 0 else (frame.height, frame.width)
    return Video(
        len(times),
        fps,
        float(times[0]),
        float(times[-1] - times[0] + 1 / fps),
        *sides,
        frame.rotation % 360,
        None if off < 0.25 else times.round(6),
    )


def build(root: Path, names: list[str], known: dict) -> dict[str, Video | str]:
    """{name: Video, or the reason why it cannot be read} of the files root/name, in their order.

    known: entries of `listing.cached`; a file whose size and time of change are the known ones is not read again.
    New files that cannot be read are named in the log.
    """

    def look(name):
        """The entry of a file, which is the known one where it still holds."""
        path, now = os.path.join(root, name), None
        try:
            now = mark(os.stat(path))
            if known.get(name, (None,))[0] == now:
                return known[name]
            content = examine(path)
        except UnreadableFrame as error:
            content = error.reason
        except (av.FFmpegError, OSError) as error:
            content, now = reason(error), None if isinstance(error, OSError) else now  # rights and disks may change
        if isinstance(content, str):
            log.warning("left out: %s: %s", path, content)
        return now, json.dumps(content, default=np.ndarray.tolist)

    pool = ThreadPoolExecutor(THREADS)
    try:
        for name, entry in zip(names, counted(pool.map(look, names), f"reading {len(names)} video files of {root}")):
            known[name] = entry
    finally:
        pool.shutdown(cancel_futures=True)
    return {name: _parsed(known[name][1]) for name in names}


def _parsed(text):
    """The Video or the reason that `build` keeps as JSON."""
    content = json.loads(text)
    if isinstance(content, str):
        return content
    video = Video(*content)
    return video if video.times is None else video._replace(times=np.array(video.times))
