"""Writing files whole or not at all."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def locked(folder: Path, told: Path | None = None) -> Iterator[bool]:
    """Inside, no other program is inside with the same folder, which is made; it gets a UserError that names `told`,
    None = the folder.

    The lock ends with its program.  Where the system has no locks, nothing is locked, and False is yielded.
    """
    held = False
    while not held:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # the program before has just renamed or removed it
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(
                f"{told or folder}: another program writes here now; wait for its end, or name another place"
            ) from None
        except OSError:
            break
        with suppress(FileNotFoundError):
            held = os.path.samestat(os.stat(folder), os.fstat(lock))
        if not held:
            os.close(lock)
    try:
        yield held
    finally:
        os.close(lock)
