"""Protocols: how the published programs propagate labels, one file of configs/protocols each."""

from pathlib import Path

from core import config
from core.errors import UserError
from core.schema import Propagation
from core.suggest import suggestion

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "protocols"


def named(name: str, dataset: str | None = None) -> Propagation:
    """The Propagation of a protocol for a data set ("davis", "ytvos", ...; None: as for most).

    Its `multiple` is None where the file leaves it to the network's cells.  Raises UserError for an unknown name.
    """
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if name not in known:
        raise UserError(f"protocol = {name!r}: must be one of {', '.join(known)}{suggestion(name, known)}")
    path = FOLDER / f"{name}.yaml"
    sections = config.read_yaml(path)
    section = "propagation_ytvos" if dataset == "ytvos" and "propagation_ytvos" in sections else "propagation"
    try:
        return config._build(Propagation, sections.get(section), section)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
