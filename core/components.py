"""A method, backbone or reader by its name: the only dynamic import of the project."""

import importlib
import importlib.util
from pathlib import Path

from core.errors import UserError
from core.suggest import suggestion

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"method": "models/methods", "backbone": "models/backbones", "reader": "datasets/readers"}


def names(kind):
    """The names that exist: the modules of the kind's folder; those with an underscore are parts of another one."""
    return sorted(p.stem for p in (ROOT / ROOMS[kind]).glob("*.py") if "_" not in p.stem)


def load(kind, name):
    """The module of that name; kind: "method", "backbone" or "reader".

    Raises UserError with the names that exist.
    """
    known = names(kind)
    if name not in known:
        raise UserError(f"{kind} {name!r} does not exist{suggestion(name, known)}; there are: {', '.join(known)}")
    return importlib.import_module(f"{ROOMS[kind].replace('/', '.')}.{name}")
