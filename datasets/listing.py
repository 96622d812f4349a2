"""What readers share: the data root, training lists, and the cache of what a scan found."""

import hashlib
import json
import os
import sys
from pathlib import Path

from core.atomic import replacing
from core.errors import UserError


def check_root(root):
    """root as a Path; UserError where there is no such folder."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"data root {root}: no such folder; set data.root to the folder that holds the videos")
    return root


def list_entries(path, root):
    """What a training list names, in its order: paths relative to root.

    One a line, a leading "/" allowed; only the first column counts.  Empty lines and lines that start with
    # are left out.  Raises UserError for a list that cannot be read, is empty or belongs to another root.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.list {path}: {error}; name a text file of frames or videos, or null") from None
    entries = [line.split()[0].strip("/") for line in lines if line.strip() and not line.startswith("#")]
    if not entries:
        raise UserError(f"data.list {path}: names no frame and no video; one a line, relative to {root}")
    if not (root / entries[0]).exists():
        raise UserError(f"data.list {path}: {root / entries[0]} is not there; entries are relative to data.root {root}")
    return entries


def cache_path(root, kind=""):
    """Where the result of a scan of root is kept; kind: an ending that tells one reader's from another's."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    real = os.path.realpath(root)
    mark = hashlib.sha256(real.encode()).hexdigest()[:12]
    return Path(home) / "dense-video-learning" / f"{os.path.basename(real)}-{mark}{kind}.json"


def load_cache(path):
    """The stored dict, or {} where there is none or it is none."""
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def save_cache(path, content, root):
    """Keep a dict; where that cannot be, says so: only time is lost."""
    try:
        with replacing(path) as part:
            part.write_text(json.dumps(content))
    except UserError as error:
        print(f"the scan of {root} is not kept: {error}", file=sys.stderr)
