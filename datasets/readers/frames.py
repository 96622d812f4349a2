"""Videos stored as folders of JPEG or PNG frames, at any depth below a root."""

import os
import re
import sys
import time

import cv2
import numpy as np

from core.errors import UserError
from datasets.listing import cache_path, check_root, list_entries, load_cache, save_cache
from datasets.reader import UnreadableFrame

SUFFIXES = (".jpg", ".jpeg", ".png")
#: Joins a folder's frame names into one string that all folders of the same names share: millions of frames
#: then take a few MB.
JOINT = "/"
#: Count up when what is kept, or how frames are found and ordered, changes.
CACHE_FORMAT = 1
JPEG_START, JPEG_PIXELS, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


class Reader:
    """Every folder below `root` that holds frames is a video; its frames are ordered by name, numbers as numbers.

    list: optional text file that names the videos to use, see `read_list`.  Without it the root is scanned
    once; cache: keep the result in the cache folder, and later look only into folders that changed.
    Raises UserError where there is no video.
    """

    def __init__(self, root, list=None, cache=True):
        self.root = check_root(root)
        try:
            found = read_list(list, self.root) if list else scan(self.root, cache)
        except OSError as error:
            raise UserError(f"data root {root}: cannot read {error.filename}: {error.strerror}") from None
        shared = {}
        self._videos = []  # (folder relative to root, joined frame names, their number)
        for folder, names in found:
            self._videos.append((folder, shared.setdefault(names, names), names.count(JOINT) + 1))
        if not self._videos:
            raise UserError(
                f"data root {root}: no frames found; looked for files ending in {', '.join(SUFFIXES)} in all folders"
                " below it; set data.root to the folder that holds the videos, or data.reader=videos for video files"
            )

    def __len__(self):
        return len(self._videos)

    def name(self, video):
        return self._videos[video][0]

    def length(self, video):
        return self._videos[video][2]

    def times(self, video):
        return None

    def read(self, video, frame_ids):
        folder, names, _ = self._videos[video]
        names = names.split(JOINT)
        return [read_frame(os.path.join(self.root, folder, names[i])) for i in frame_ids]


def read_frame(path):
    """An image file -> uint8 RGB [H,W,3], as stored (EXIF orientation ignored).  Raises UnreadableFrame."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UnreadableFrame(str(path), error.strerror) from None
    if not data:
        raise UnreadableFrame(str(path), "the file is empty")
    # OpenCV 4 fills the rest of a JPEG that breaks off with grey; where zeros follow, every decoder does.
    if data.startswith(JPEG_START) and _breaks_off(data):
        raise UnreadableFrame(str(path), "the JPEG breaks off before its end")
    # 0.29 ms for a 512x288 JPEG, the pixels of Pillow, which takes 0.37 ms.
    frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if frame is None:
        raise UnreadableFrame(str(path), "cannot be decoded: damaged, or no image")
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def _breaks_off(jpeg):
    """Whether no end marker follows the start of the pixels.  A preview in the header has its own, which is skipped."""
    if jpeg.endswith(JPEG_END):
        return False
    place = len(JPEG_START)
    while jpeg[place : place + 1] == b"\xff" and jpeg[place : place + 2] != JPEG_PIXELS:
        place += 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
    return jpeg.find(JPEG_END, place) < 0


def read_list(path, root):
    """The videos a training list names, in its order: [(folder relative to root, joined frame names)].

    One frame a line (frames of a video adjacent; the parent folder is the video), or one video folder a
    line.  Raises UserError for a list or an entry that is not there.
    """
    videos = {}
    for entry in list_entries(path, root):
        if entry.lower().endswith(SUFFIXES):
            folder, _, name = entry.rpartition("/")
            videos.setdefault(folder or ".", []).append(name)
        elif entry not in videos:
            videos[entry] = _list_folder(root / entry, path)
    return [(folder, JOINT.join(names)) for folder, names in videos.items()]


def _list_folder(folder, list_path):
    if not folder.is_dir():
        raise UserError(f"data.list {list_path}: {folder} is no folder; entries are relative to data.root")
    names, _ = _entries(folder)
    if not names:
        raise UserError(f"data.list {list_path}: {folder} holds no {', '.join(SUFFIXES)} files")
    return names


def scan(root, cache=True):
    """All videos below root, ordered by path: [(folder relative to root, joined frame names)]."""
    known = _load_cache(root) if cache else {}
    walk = _Walk(root, known)
    walk.into(".")
    found = walk.found
    if cache and found != known:
        _save_cache(root, found)
    return [(folder, found[folder][1]) for folder in sorted(found) if found[folder][1]]


class _Walk:
    """Visits folders; those whose time of change is the known one are not listed again.

    known, found: folder relative to root -> [time of change in ns, joined frame names, sub-folders].
    """

    def __init__(self, root, known):
        self.root, self.known, self.found, self.visited = root, known, {}, set()
        self.started = self.reported = time.time()

    def into(self, folder):
        path = os.path.join(self.root, folder)
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in self.visited:  # links may lead in circles
            return
        self.visited.add((status.st_dev, status.st_ino))
        entry = self.known.get(folder)
        if entry is None or entry[0] != status.st_mtime_ns:
            names, folders = _entries(path)
            # A folder may change again within the tick of its clock: a young one is listed next time, too.
            changed = 0 if self.started - status.st_mtime < 2 else status.st_mtime_ns
            entry = [changed, JOINT.join(names), folders]
        self.found[folder] = entry
        self._report()
        for name in entry[2]:
            self.into(name if folder == "." else f"{folder}/{name}")

    def _report(self):
        now = time.time()
        if now - self.reported > 5:
            self.reported = now
            print(f"scanning {self.root}: {len(self.found)} folders", file=sys.stderr)


def _entries(folder):
    """(names of frames, names of sub-folders) of a folder, each in order; hidden ones left out."""
    names, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(SUFFIXES):
                names.append(entry.name)
            elif entry.is_dir():
                folders.append(entry.name)
    return sorted(names, key=_by_number), sorted(folders)


def _by_number(name):
    """Sorts frame_2 before frame_10."""
    parts = re.split(r"(\d+)", name)
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def _load_cache(root):
    stored = load_cache(cache_path(root))
    try:
        if stored["format"] != CACHE_FORMAT:
            return {}
        return {folder: [changed, stored["names"][i], folders] for folder, changed, i, folders in stored["folders"]}
    except (ValueError, KeyError, IndexError, TypeError):
        return {}  # none yet, or not ours: scan


def _save_cache(root, found):
    index = {names: i for i, names in enumerate(dict.fromkeys(entry[1] for entry in found.values()))}
    folders = [[folder, changed, index[names], below] for folder, (changed, names, below) in found.items()]
    save_cache(cache_path(root), {"format": CACHE_FORMAT, "names": list(index), "folders": folders}, root)
