"""What is in video files: found by reading every file once, kept in the cache, renewed where files change."""

import fcntl
import logging
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from typing import NamedTuple

import av
import numpy as np
from tqdm import tqdm

from datasets.listing import cache_path, load_cache, save_cache
from datasets.reader import UnreadableFrame

log = logging.getLogger(__name__)

#: Count up when what is kept, or how it is found, changes.
CACHE_FORMAT = 1
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

    def all_times(self):
        """Seconds of every frame [frames]."""
        return self.start + np.arange(self.frames) / self.fps if self.times is None else self.times

    def number(self, seconds):
        """The frame nearest to a time; outside of the video it may be no frame's."""
        if self.times is None:
            return round((seconds - self.start) * self.fps)
        right = min(max(int(np.searchsorted(self.times, seconds)), 1), self.frames - 1)
        return right - int(seconds - self.times[right - 1] < self.times[right] - seconds)


def stamp(item):
    """Time of a packet or frame in ticks, or None; AVI files know the order of decoding alone."""
    return item.dts if item.pts is None else item.pts


def reason(error):
    """What FFmpeg says is wrong, in words."""
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def opened(path):
    """with opened(path) as (container, stream): PyAV's, the stream being the video.  Raises UnreadableFrame."""
    with av.open(path) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise UnreadableFrame(path, "holds no video")
        # The loader's workers decode side by side; and were a decoder with threads still about when workers are
        # forked, a worker that frees it would wait for ever for threads that it does not have.
        stream.codec_context.thread_count = 1
        yield container, stream


def examine(path):
    """-> Video.  Reads the whole file without decoding more than its first frame.  Raises UnreadableFrame."""
    if not os.path.getsize(path):
        raise UnreadableFrame(path, "the file is empty")
    with opened(path) as (container, stream):
        stamps = []
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


def build(root, names, cache=True, keep_others=False):
    """{name: Video, or the reason (str) why it cannot be read} of the files root/name, in their order.

    cache: files whose size and time of change are the known ones are not read again.  keep_others: what is
    known of other files stays known.  New files that cannot be read are named in the log.
    """
    path = cache_path(root, ".videos")
    with _alone(path) if cache else nullcontext():
        known = _load(path) if cache else {}
        marks = {name: _mark(root, name) for name in names}
        found = {name: known[name] for name in names if name in known and known[name][0] == marks[name]}
        new = [name for name in names if name not in found]
        try:
            for name, (content, lasting) in zip(new, _examine_all(root, new)):
                found[name] = (marks[name] if lasting else None, content)
                if isinstance(content, str):
                    log.warning("left out: %s: %s", os.path.join(root, name), content)
        finally:  # what an interrupt leaves is not read again either
            if cache and (new or found.keys() != known.keys()):
                _save(path, {**known, **found} if keep_others else found, root)
    return {name: found[name][1] for name in names}


def _mark(root, name):
    """[size, time of change in ns], or None where there is no such file."""
    try:
        status = os.stat(os.path.join(root, name))
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _examine_all(root, names):
    """Yields (Video or the reason why there is none, whether that lasts), in order; shows how far it is."""

    def look(name):
        path = os.path.join(root, name)
        try:
            return examine(path), True
        except UnreadableFrame as error:
            return error.reason, True
        except (av.FFmpegError, OSError) as error:  # rights and disks may change while the file does not
            return reason(error), not isinstance(error, OSError)

    pool, reported = ThreadPoolExecutor(THREADS), time.time()
    bar = tqdm(total=len(names), desc=f"reading {root}", unit="video", disable=not sys.stderr.isatty(), leave=False)
    try:
        for done, content in enumerate(pool.map(look, names), 1):
            bar.update()
            if bar.disable and time.time() - reported > 5:
                reported = time.time()
                print(f"reading {root}: {done} of {len(names)} videos", file=sys.stderr)
            yield content
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()


@contextmanager
def _alone(path):
    """Of several processes (one a GPU) one reads the files; the others wait and find what it kept."""
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(path.with_suffix(".lock"), "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass  # no place for a cache, or a file system without locks: every process reads for itself
        yield


def _load(path):
    stored = load_cache(path)
    if stored.get("format") != CACHE_FORMAT:
        return {}
    try:
        return {name: (mark, _content(content)) for name, (mark, content) in stored["videos"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # not ours: read all


def _content(stored):
    if isinstance(stored, str):
        return stored
    video = Video(*stored)
    return video if video.times is None else video._replace(times=np.array(video.times))


def _save(path, found, root):
    videos = {name: [mark, _plain(content)] for name, (mark, content) in found.items() if mark}
    save_cache(path, {"format": CACHE_FORMAT, "videos": videos}, root)


def _plain(content):
    if isinstance(content, str) or content.times is None:
        return content
    return content._replace(times=content.times.tolist())
