"""What the readers of training video share: the data root, training lists, the walk through folders, and its cache."""

import fcntl
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from tqdm import tqdm

from core.atomic import replacing
from core.errors import UserError

log = logging.getLogger(__name__)
#: A bar that appears where something takes longer than five seconds.
progress = partial(tqdm, delay=5, mininterval=5, leave=False)

#: The names of a folder's files are kept as one string, joined by this.  Folders with the same names share the string,
#: so that millions of frames take a few MB.
JOINT = "/"
#: Separates a folder's files from its sub-folders in the cache.
END = "//"
#: Most characters of a line of a list: the longest path that Linux opens.
LONGEST = 4096
#: The first column of a training list: in quotes, up to a tab, or up to white space or a comma.
COLUMN = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^\t]+)\t|([^\s,]+))""")
#: The version of the cache's content; count it up when the content, or how it is found, changes.
CACHE_FORMAT = 3


def check_root(root: str | Path) -> Path:
    """root as a Path; UserError where there is no such folder."""
    root = Path(root)
    if not os.path.isdir(root):
        wrong = "is a file" if os.path.exists(root) else "no such folder"
        raise UserError(f"data root {root}: {wrong}; set data.root to the folder that holds the videos")
    return root


def check_found(found: Iterable, root: Path, kind: str, suffixes: tuple[str, ...], other: str) -> None:
    """Raise UserError where nothing was found.

    kind: of files, in words.  suffixes: endings of such files.  other: the setting that reads files of the other kind.
    """
    if not found:
        raise UserError(
            f"data root {root}: no {kind} found; looked for files ending in {', '.join(suffixes)} in all folders below"
            f" it; set data.root to the folder that holds them, or {other}"
        )


def list_entries(path: str | Path, root: Path) -> list[str]:
    """The entries of a training list in its order: paths relative to root.

    One entry a line, a leading "/" or "./" is allowed.  Only the first column counts: it stands in quotes, or ends at a
    tab, or in a line without tabs at white space or a comma.  Empty lines and lines that start with # are left out.
    Raises UserError for a list that cannot be read, is empty or belongs to another root.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"data.list {path}: {error}; name a text file of frames or videos, or null") from None
    if any(len(line) > LONGEST for line in lines):
        raise UserError(f"data.list {path}: has a line of more than {LONGEST} characters; one frame or video a line")
    found = [COLUMN.match(line) for line in lines if line.strip() and not line.startswith("#")]
    entries = [os.path.normpath("".join(column.groups("")).strip(" /") or ".") for column in found if column]
    if not entries:
        raise UserError(f"data.list {path}: names no frame and no video; one a line, relative to {root}")
    if not os.path.exists(root / entries[0]):
        fits = [folder for folder in root.absolute().parents if os.path.exists(folder / entries[0])]
        cure = f"; they fit data.root={os.path.relpath(fits[0])}" if fits else ""
        raise UserError(
            f"data.list {path}: {root / entries[0]} is not there; entries are relative to data.root {root}{cure}; "
            "names with spaces or commas stand in quotes, or tabs separate the columns"
        )
    return entries


def walk(root: Path, suffixes: tuple[str, ...], known: dict, below: str = ".") -> Iterator[tuple[str, str]]:
    """Yield (folder relative to root, its files joined by JOINT) for every folder that holds files with these suffixes.

    below: the folder to start from.  known: entries of `cached`; a folder whose `mark` is the known one is not listed
    again.  Links are followed, but not in circles.  Folders that cannot be read are named in the log.
    """
    started, visited, waiting = time.time(), set(), [os.path.normpath(below)]
    bar = progress(unit=" folders", desc=f"scanning {root}")
    while waiting:
        bar.update()
        folder = waiting.pop()
        path = os.path.join(root, folder)
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            if known.get(folder, (None,))[0] != mark(status):
                names, folders = list_folder(path, suffixes)
                # A folder that changed just now may change again without a new time: it is listed again next time.
                lasting = mark(status) if started - status.st_mtime >= 2 else None
                known[folder] = (lasting, JOINT.join(names) + END + JOINT.join(folders))
        except OSError as error:
            log.warning("left out: %s: %s", path, error.strerror)
            continue
        files, _, folders = known[folder][1].partition(END)
        if files:
            yield folder, files
        waiting += [os.path.normpath(os.path.join(folder, name)) for name in folders.split(JOINT)[::-1] if name]
    bar.close()


def list_folder(folder: str | Path, suffixes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """(files that end in `suffixes`, sub-folders) of a folder, sorted; names that begin with a dot are left out."""
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # Of a link to itself entry.is_dir() raises an error; the reader reports the link if it is named as a frame.
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                folders.append(entry.name)
            elif entry.name.lower().endswith(suffixes):
                files.append(entry.name)
    return sorted(files, key=_by_number), sorted(folders)


def _by_number(name):
    """A key for sorting that puts frame_2 before frame_10."""
    parts = re.split(r"(\d+)", name)
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def mark(status: os.stat_result) -> list[int]:
    """Size and time of change: numbers that change whenever the file or the folder does."""
    return [status.st_size, status.st_mtime_ns]


@contextmanager
def cached(root: Path, kind: str) -> Iterator[dict]:
    """with cached(root, "frames") as known: a dict {path relative to root: (mark, text)} to read and change.

    text: what the file or folder held when it had this mark; mark None: it must be read again.  The dict is kept in the
    user's cache folder, after an error too; one process at a time reads and changes it.
    """
    path = _cache_path(root, kind)
    with ExitStack() as stack:
        with suppress(OSError):  # no place for a cache, or no locks there: each process then reads for itself
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(open(path.with_suffix(".lock"), "w")), fcntl.LOCK_EX)
        before = _load(path)
        known = dict(before)
        try:
            yield known
        finally:
            if known != before:
                _save(path, known, root)


def _cache_path(root, kind):
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    real = os.path.realpath(root)
    digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:12]
    return Path(home) / "dense-video-learning" / f"{os.path.basename(real)}-{digest}.{kind}.{CACHE_FORMAT}.json"


def _load(path):
    try:
        stored = json.loads(path.read_text())
        return {name: (mark, text) for text, entries in stored.items() for name, mark in entries.items()}
    except (OSError, ValueError, AttributeError):
        return {}  # none yet, or damaged


def _save(path, known, root):
    """Write the cache; equal texts are written once.  Where it cannot be written, only time is lost."""
    texts: dict[str, dict] = {}
    for name, (mark, text) in known.items():
        texts.setdefault(text, {})[name] = mark
    try:
        with replacing(path) as part:
            part.write_text(json.dumps(texts))
    except UserError as error:
        print(f"the scan of {root} is not kept: {error}", file=sys.stderr)
