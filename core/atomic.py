"""Writing files whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import UserError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """with replacing(path) as part: write the file `part`; afterwards it is renamed to path.

    Makes path's folder.  On an error `part` is removed and an earlier file at path stays.  Raises UserError where
    nothing can be written: no permission, no space, a file where a folder must be.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})") from error
