"""Protocols: how masks are propagated, by networks' authors and by this project; a file each in configs/protocols."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core import strict
from core.errors import UserError
from core.schema import Propagation
from core.suggest import suggestion

#: {(protocol, data set or "video" for own videos): the protocol that stands in for it there}
ELSEWHERE: dict[tuple[str, str | None], str] = {("INO", "ytvos"): "INO_ytvos", ("DUL", "video"): "best"}
FOLDER = Path(__file__).resolve().parents[1] / "configs" / "protocols"


def names() -> list[str]:
    """The protocols that exist."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def named(name: str, changes: Mapping[str, Any] | None = None) -> Propagation:
    """The values of a protocol.  changes: {key: value} that differ from its file.

    Raises UserError for an unknown name, an unknown key or a value that is not allowed.
    """
    if name not in names():
        raise UserError(f"protocol = {name!r}: must be one of {', '.join(names())}{suggestion(name, names())}")
    return strict.build(Propagation, {**strict.read(FOLDER / f"{name}.yaml"), **(changes or {})})


def on(place: str | None, name: str) -> str:
    """The name of the protocol that `name` stands for on a data set or on own videos, see ELSEWHERE."""
    return ELSEWHERE.get((name, place), name)
