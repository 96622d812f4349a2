"""Videos stored as files, at any depth below a root; frames are decoded when they are asked for.

Every file is read once to index its frames; the index is kept in the cache.  PyAV decodes, since it finds the right
frame in files of variable rate and in edited ones, where OpenCV's seeking goes wrong.
"""

import json
import logging
import math
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.errors import UserError

try:
    import av
except ImportError:
    raise UserError(
        f"video files (data.reader = videos) need the package av: {sys.executable} -m pip install av"
    ) from None

from datasets.listing import JOINT, cached, check_found, check_root, list_entries, mark, progress, walk
from datasets.readers import READERS, UnreadableFrame, VideoReader

log = logging.getLogger(__name__)

SUFFIXES = READERS["videos"]
#: Seconds before the wanted frame at which decoding starts; the next one is tried where the file's index misleads.
#: None: at the start of the file, without a seek.
STEPS_BACK = (0.0, 1.0, 8.0, 64.0, None)
#: Files read at once: reading mostly waits for the disk.
THREADS = 8


class Video(NamedTuple):
    """One file.  frames: their number.  fps: frames a second.  start: time of the first frame in seconds.

    width, height: as shown, after `rotation` (degrees, anticlockwise).  times [frames]: the time of every frame in
    seconds where the frames are not evenly spaced (a variable frame rate), else None.  remark: why the file may be
    incomplete, else "".
    """

    frames: int
    fps: float
    start: float
    width: int
    height: int
    rotation: int
    times: np.ndarray | None = None
    remark: str = ""

    def number(self, seconds: float) -> int:
        """The number of the frame nearest to a time; for a time outside the video, perhaps a number without a frame."""
        if self.times is None:
            return round((seconds - self.start) * self.fps)
        right = min(max(int(np.searchsorted(self.times, seconds)), 1), self.frames - 1)
        return right - 1 if seconds - self.times[right - 1] < self.times[right] - seconds else right

    def time(self, number: int) -> float:
        """The time of a frame in seconds."""
        return self.start + number / self.fps if self.times is None else float(self.times[number])


class Reader(VideoReader):
    """Every file below `root` that ends in SUFFIXES is a video; upright frames, numbered in the order of time.

    list: optional text file that names the videos to use, see `read_list`.  The index of the files is kept in the cache
    folder, and later only files that changed are read.  Files that cannot be read are left out and named in the log.
    Raises UserError where no video is left.
    """

    def __init__(self, root: str | Path, list: str | None = None):
        self.root = check_root(root)
        with cached(self.root, "videos") as known:
            names = read_list(list, self.root, known) if list else scan(self.root, known)
            check_found(names, self.root, "video files", SUFFIXES, "data.reader=frames for folders of frames")
            index = build(self.root, names, known)
        self.broken = {name: why for name, why in index.items() if isinstance(why, str)}
        self._videos = {name: video for name, video in index.items() if isinstance(video, Video)}
        self.names = [*self._videos]
        if not self.names:
            first = "".join(f"\n  {name}: {why}" for name, why in [*self.broken.items()][:10])
            raise UserError(
                f"data root {root}: none of the {len(names)} video files can be read; mend or remove them:{first}"
            )
        if self.broken:
            log.warning("%d of %d video files left out: they cannot be read", len(self.broken), len(names))

    def info(self, video: int) -> Video:
        """The number of frames, the rate, the size and more of a video."""
        return self._videos[self.names[video]]

    def length(self, video: int) -> int:
        return self.info(video).frames

    def times(self, video: int) -> np.ndarray:
        info = self.info(video)
        return info.start + np.arange(info.frames) / info.fps if info.times is None else info.times

    def read(self, video: int, frame_ids: Sequence[int]) -> "list[np.ndarray]":
        info, path = self.info(video), os.path.join(self.root, self.names[video])
        try:
            frames = dict(decode(path, info, set(frame_ids)))
        except (av.FFmpegError, OSError) as error:
            raise UnreadableFrame(path, reason(error)) from None
        return [frames[i] for i in frame_ids]


def scan(root: Path, known: dict, below: str = ".") -> list[str]:
    """All video files below a folder of root, relative to root, sorted; hidden files and folders are left out."""
    folders = walk(root, SUFFIXES, known, below)
    return sorted(os.path.normpath(f"{folder}/{name}") for folder, names in folders for name in names.split(JOINT))


def read_list(path: str | Path, root: Path, known: dict) -> list[str]:
    """The videos that a training list names, in its order: files relative to root, none twice.

    A line names a video file, or a folder, which stands for all video files below it.  Raises UserError for a list or
    an entry that cannot be used; a file that is missing is an error of `build`.
    """
    names = []
    for entry in list_entries(path, root):
        below = []
        if entry.lower().endswith(SUFFIXES):
            below = [entry]
        elif os.path.isdir(root / entry):
            below = scan(root, known, entry)
        if not below:
            raise UserError(
                f"data.list {path}: {root / entry} is no video file ({', '.join(SUFFIXES)}) and no folder of such;"
                " entries are relative to data.root; a list of frames needs data.reader=frames"
            )
        names += below
    return list(dict.fromkeys(names))


def decode(path: str, video: Video, wanted: Collection[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number, uint8 RGB [H,W,3]) for the wanted frames, in the order of time.

    wanted: numbers of frames.  Raises UnreadableFrame where one is damaged or missing, and the errors of PyAV.
    """
    earliest = min(wanted)
    end: tuple[float, Any] = (math.inf, None)
    lost = lambda i: UnreadableFrame(path, f"frame {i} of {video.frames} is missing: the file changed or is damaged")
    # Evenly spaced frames may be up to a quarter of a frame late: the seek must not miss a key frame that is.
    first = video.time(earliest) + (0.25 / video.fps if video.times is None else 0)
    for back in STEPS_BACK:
        with opened(path) as (container, stream):
            if back is not None:
                with suppress(av.FFmpegError):  # the stream of a camera, without a container
                    container.seek(round(max(video.start, first - back) / stream.time_base), stream=stream)
            frames = _numbered(container, stream, video, wanted, None if back is not None else -1)
            number, frame = next(frames, end)
            if number > earliest:  # decoding started behind the earliest frame
                continue
            for place in sorted(wanted):
                while number < place:
                    number, frame = next(frames, end)
                if number > place:
                    raise lost(place)
                if frame.is_corrupt:
                    raise UnreadableFrame(path, f"frame {number} is damaged")
                yield place, upright(frame.to_ndarray(format="rgb24", threads=1), video.rotation)
            return
    raise lost(earliest)


def _numbered(container, stream, video, wanted, number):
    """Yield (number, frame) from the file's position on.  number: of the frame before, None = not known."""
    # In AVI files only the time of the first frame, a key frame, is right.  The numbers of the next frames are counted,
    # as they are in files without times.
    by_count = container.format.name == "avi"
    for packet in container.demux(stream):
        if not by_count and stamp(packet) is not None:
            # Frames that are neither wanted nor needed by other frames are skipped, which saves a quarter of the time.
            needed = video.number(float(stamp(packet) * stream.time_base)) in wanted
            stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
        for frame in stream.codec_context.decode(None) if packet.is_corrupt else packet.decode():
            if number is not None and (by_count or stamp(frame) is None):
                number += 1
            elif stamp(frame) is None:
                return
            else:
                number = video.number(float(stamp(frame) * stream.time_base))
            yield number, frame


def upright(pixels, rotation):
    """pixels [H,W,3] turned anticlockwise by `rotation` degrees."""
    return np.ascontiguousarray(np.rot90(pixels, rotation // 90)) if rotation else pixels


def stamp(item):
    """The time of a packet or frame in ticks, or None; in AVI files the time at which it is decoded."""
    return item.dts if item.pts is None else item.pts


def reason(error: Exception) -> str:
    """The reason for an error in words, FFmpeg's where it gives one."""
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)


@contextmanager
def opened(path: str) -> Iterator[tuple]:
    """with opened(path) as (container, stream): PyAV's container and its video stream.  Raises UnreadableFrame."""
    with av.open(f"file:{path}") as container:  # else FFmpeg takes what is before a colon for a protocol
        stream = container.streams.best("video")
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:  # the cover of a song
            raise UnreadableFrame(path, "holds no video")
        if stream.codec_context is None:
            raise UnreadableFrame(path, "holds a video of a kind that cannot be decoded")
        # The loader's workers already decode side by side.  Also, a worker that is forked while a decoder with threads
        # exists, and then frees it, would wait for ever for threads that it does not have.
        stream.codec_context.thread_count = 1
        yield container, stream


def examine(path: str, part: bool = False) -> Video:
    """The index of a file, which is read as a whole; only its first frame is decoded.  Raises UnreadableFrame.

    part: of a file that breaks off, the frames before that place are enough.
    """
    if not os.path.getsize(path):
        raise UnreadableFrame(path, "the file is empty")
    stamps: list = []
    remark = ""
    with opened(path) as (container, stream):
        for packet in container.demux(stream):
            if packet.is_corrupt:
                # Of the frames that are shown later than the broken one is decoded, some may be missing.
                stamps = [ticks for ticks in stamps if None in (ticks, packet.dts) or ticks < packet.dts]
                remark = f"breaks off or is damaged after {len(stamps)} frames"
                break
            if packet.size and not packet.is_discard:  # an edit of the video may discard frames
                stamps.append(stamp(packet))
        tick, rate = stream.time_base, float(stream.average_rate or stream.guessed_rate or 25)
        length = (container.duration or 0) / av.time_base
    if remark and not (part and stamps):
        raise UnreadableFrame(path, remark)
    with opened(path) as (container, stream):
        frame = next(container.decode(stream), None)
    if frame is None:
        raise UnreadableFrame(path, "its first frame cannot be decoded" if stamps else "holds no frame")
    if set(stamps) == {None}:
        stamps, tick = [*range(len(stamps))], 1 / rate
    if None in stamps:
        raise UnreadableFrame(path, "has frames without a time")
    times = np.unique(stamps) * float(tick)
    fps = rate if len(times) == 1 else (len(times) - 1) / float(times[-1] - times[0])
    if not remark and len(times) / fps < 0.9 * length - 1:
        remark = f"has no picture after {len(times) / fps:.1f} s of {length:.1f} s: it may break off there"
    uneven = np.abs((times - times[0]) * fps - np.arange(len(times))).max() >= 0.25
    sides = (frame.width, frame.height) if frame.rotation % 180 == 0 else (frame.height, frame.width)
    spaced = times.round(6) if uneven else None
    return Video(len(times), fps, float(times[0]), *sides, frame.rotation % 360, spaced, remark)


def build(root: Path, names: list[str], known: dict) -> dict[str, Video | str]:
    """{name: Video, or the reason why it cannot be read} for the files root/name, in their order.

    known: entries of `listing.cached`; a file whose `mark` is the known one is not read again.  New files that cannot
    be read are named in the log.
    """

    def look(name):
        """The entry of a file for `known`; the present entry where the file has not changed."""
        path, now = os.path.join(root, name), None
        try:
            now = mark(os.stat(path))
            if known.get(name, (None,))[0] == now:
                return known[name]
            content = examine(path)
        except (UnreadableFrame, av.FFmpegError, OSError, ValueError) as error:
            content = reason(error)
            if isinstance(error, OSError):  # rights and disks may change without the file: it is read again next time
                now = None
        if isinstance(content, str):
            log.warning("left out: %s: %s", path, content)
        return now, json.dumps(content, default=np.ndarray.tolist)

    pool = ThreadPoolExecutor(THREADS)
    try:
        entries = progress(pool.map(look, names), unit=" files", desc=f"reading {root}", total=len(names))
        known.update(zip(names, entries))
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
