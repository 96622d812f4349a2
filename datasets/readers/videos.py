"""Videos stored as files, at any depth below a root; frames are decoded when they are asked for.

PyAV decodes: it finds the very frame in files of variable rate and in edited ones, where OpenCV's seeking goes wrong.
"""

import logging
import os
import sys

import numpy as np

from core.errors import UserError

try:
    import av
except ImportError:
    raise UserError(f"data.reader = videos: needs the package av: {sys.executable} -m pip install av") from None

from datasets.listing import check_root, list_entries
from datasets.reader import UnreadableFrame
from datasets.readers.video_index import build, opened, reason, stamp

log = logging.getLogger(__name__)

SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov")
#: Where a file's index misleads, frames are looked for from so many seconds earlier.
STEPS_BACK = (0.0, 1.0, 8.0, 64.0, float("inf"))


class Reader:
    """Every file below `root` that ends in SUFFIXES is a video; upright frames, numbered in the order of time.

    list: optional text file that names the videos to use, see `read_list`.  cache: keep what the files hold
    in the cache folder, and later read only files that changed.  Files that cannot be read are left out and
    named in the log.  Raises UserError where no video is left.
    """

    def __init__(self, root, list=None, cache=True):
        self.root = check_root(root)
        names = read_list(list, self.root) if list else scan(self.root)
        if not names:
            raise UserError(
                f"data root {root}: no video files found; looked for files ending in {', '.join(SUFFIXES)} in all"
                " folders below it; set data.root to the folder that holds them, or data.reader=frames for folders"
                " of frames"
            )
        index = build(self.root, names, cache, keep_others=bool(list))
        self.broken = {name: content for name, content in index.items() if isinstance(content, str)}
        self._videos = [(name, index[name]) for name in names if name not in self.broken]
        if not self._videos:
            first = "".join(f"\n  {name}: {why}" for name, why in [*self.broken.items()][:10])
            raise UserError(f"data root {root}: none of the {len(names)} video files can be read:{first}")
        if self.broken:
            log.warning("%d of %d video files left out: they cannot be read", len(self.broken), len(names))

    def __len__(self):
        return len(self._videos)

    def name(self, video):
        return self._videos[video][0]

    def info(self, video):
        """datasets.readers.video_index.Video: frames, rate, size and more."""
        return self._videos[video][1]

    def length(self, video):
        return self._videos[video][1].frames

    def times(self, video):
        return self._videos[video][1].all_times()

    def read(self, video, frame_ids):
        name, info = self._videos[video]
        path = os.path.join(self.root, name)
        try:
            frames = _decode(path, info, set(frame_ids))
        except (av.FFmpegError, OSError) as error:
            raise UnreadableFrame(path, reason(error)) from None
        for i in frame_ids:
            if i not in frames:
                raise UnreadableFrame(path, f"frame {i} of {info.frames} is missing: the file changed or is damaged")
        return [frames[i] for i in frame_ids]


def scan(root):
    """All video files below root, relative to it, ordered; hidden files and folders left out."""
    names, visited = [], set()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:  # links may lead in circles
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                names.append(os.path.relpath(os.path.join(folder, name), root))
    return sorted(names)


def read_list(path, root):
    """The videos a training list names, in its order: files relative to root, none twice.

    One video file a line, or one folder, which stands for all video files below it.  Raises UserError for a
    list or an entry that cannot be used; files that are missing are for the index to tell.
    """
    names = []
    for entry in list_entries(path, root):
        if entry.lower().endswith(SUFFIXES):
            names.append(entry)
            continue
        below = scan(root / entry) if (root / entry).is_dir() else []
        if not below:
            raise UserError(
                f"data.list {path}: {root / entry} is no video file ({', '.join(SUFFIXES)}) and no folder of such;"
                " entries are relative to data.root; a list of frames needs data.reader=frames"
            )
        names += [os.path.normpath(os.path.join(entry, name)) for name in below]
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
