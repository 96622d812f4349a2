"""The readers of training video by name.  A new one is a file beside this one and its name here."""

from importlib import import_module

from core.errors import UserError
from core.suggest import suggestion

READERS = ("frames", "videos")


def opened(name, root, list=None):
    """The reader called `name` (`data.reader`) of the videos below root, or of those that a list names.

    Its module is imported only now: reading video files needs a package that folders of frames do without.
    """
    if name not in READERS:
        raise UserError(f"data.reader = {name!r}: must be one of {', '.join(READERS)}{suggestion(name, READERS)}")
    return import_module(f"datasets.readers.{name}").Reader(root, list)
