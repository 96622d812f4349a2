"""Videos stored as files, at any depth below a root; frames are decoded when they are asked for.

PyAV decodes: it finds the very frame in files of variable rate and in edited ones, where OpenCV's seeking goes wrong.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.errors import UserError

try:
    import av
except ImportError:
    raise UserError(f"data.reader = videos: needs the package av: {sys.executable} -m pip install av") from None

from datasets.listing import JOINT, cached, check_found, check_root, counted, list_entries, walk
from datasets.readers import UnreadableFrame, VideoReader
from datasets.readers.video_index import Video, build, opened, reason, stamp

log = logging.getLogger(__name__)

SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov")
#: Where a file's index misleads, frames are looked for from so many seconds earlier.
STEPS_BACK = (0.0, 1.0, 8.0, 64.0, float("inf"))


class Reader(VideoReader):
    """Every file below `root` that ends in SUFFIXES is a video; upright frames, numbered in the order of time.

    list: optional text file that names the videos to use, see `read_list`.  cache: keep what the files hold
    in the cache folder, and later read only files that changed.  Files that cannot be read are left out and
    named in the log.  Raises UserError where no video is left.
    """

    def __init__(self, root: str | Path, list: str | None = None, cache: bool = True):
        self.root = check_root(root)
        with cached(self.root, "videos", cache) as known:
            names = read_list(list, self.root, known) if list else scan(self.root, known)
            check_found(names, self.root, "video files", SUFFIXES, "data.reader=frames for folders of frames")
            index = build(self.root, names, known)
        self.broken = {name: why for name, why in index.items() if isinstance(why, str)}
        self._videos = {name: video for name, video in index.items() if isinstance(video, Video)}
        self.names = [*self._videos]
        if not self.names:
            first = "".join(f"\n  {name}: {why}" for name, why in [*self.broken.items()][:10])
            raise UserError(f"data root {root}: none of the {len(names)} video files can be read:{first}")
        if self.broken:
            log.warning("%d of %d video files left out: they cannot be read", len(self.broken), len(names))

    def info(self, video: int) -> Video:
        """Frames, rate, size and more."""
        return self._videos[self.names[video]]

    def length(self, video: int) -> int:
        return self.info(video).frames

    def times(self, video: int) -> np.ndarray:
        return self.info(video).all_times()

    def read(self, video: int, frame_ids: Sequence[int]) -> "list[np.ndarray]":
        info, path = self.info(video), os.path.join(self.root, self.names[video])
        try:
            frames = _decode(path, info, set(frame_ids))
        except (av.FFmpegError, OSError) as error:
            raise UnreadableFrame(path, reason(error)) from None
        for i in frame_ids:
            if i not in frames:
                raise UnreadableFrame(path, f"frame {i} of {info.frames} is missing: the file changed or is damaged")
        return [frames[i] for i in frame_ids]


def scan(root: Path, known: dict, below: str = ".") -> list[str]:
    """All video files below a folder of root, relative to root, ordered; hidden files and folders are left out."""
    folders = counted(walk(root, SUFFIXES, known, below), f"scanning {root}, folders of videos")
    return sorted(
        os.path.normpath(os.path.join(folder, name)) for folder, names in folders for name in names.split(JOINT)
    )


def read_list(path: str | Path, root: Path, known: dict) -> list[str]:
    """The videos a training list names, in its order: files relative to root, none twice.

    One video file a line, or one folder, which stands for all video files below it.  Raises UserError for a
    list or an entry that cannot be used; files that are missing are for the index to tell.
    """
    names = []
    for entry in list_entries(path, root):
        is_file = entry.lower().endswith(SUFFIXES)
        below = [entry] if is_file else scan(root, known, entry) if (root / entry).is_dir() else []
        if not below:
            raise UserError(
                f"data.list {path}: {root / entry} is no video file ({', '.join(SUFFIXES)}) and no folder of such;"
                " entries are relative to data.root; a list of frames needs data.reader=frames"
            )
        names += below
    return list(dict.fromkeys(names))


def _decode(path, video, wanted):
    """{frame number: uint8 RGB [H,W,3]} of those wanted that are found."""
    with opened(path) as (container, stream):
        # Evenly spaced frames may stand a quarter off their place: a key frame just after it is still theirs.
        first = video.start + (min(wanted) + 0.25) / video.fps if video.times is None else video.times[min(wanted)]
        for back in STEPS_BACK:
            container.seek(round(max(video.start, first - back) / stream.time_base), stream=stream)
            frames = _decode_on(container, stream, path, video, wanted)
            if frames is not None:
                return frames
    return {}


def _decode_on(container, stream, path, video, wanted):
    """From where the file stands until all are found; None where it already stands behind the first of them."""
    # In AVI files the times belong to the order of decoding: there only the key frame's is right, and frames count.
    counted = container.format.name == "avi"
    frames, number = {}, None
    for packet in container.demux(stream):
        if not counted and stamp(packet) is not None:
            # Frames between the wanted ones that no other needs: a quarter of the time.
            needed = video.number(float(stamp(packet) * stream.time_base)) in wanted
            stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
        for frame in packet.decode():
            at = number + 1 if counted and number is not None else video.number(float(stamp(frame) * stream.time_base))
            if number is None and at > min(wanted):
                return None
            number = at
            if number in wanted:
                if frame.is_corrupt:
                    raise UnreadableFrame(path, f"frame {number} is damaged")
                frames[number] = _upright(frame.to_ndarray(format="rgb24", threads=1), video.rotation)
        if len(frames) == len(wanted):
            break
    return frames


def _upright(pixels, rotation):
    return np.ascontiguousarray(np.rot90(pixels, rotation // 90)) if rotation else pixels
