"""Label propagation: masks of a video from the masks of its first frames.  Knows neither models nor data sets."""

from labelprop.backends import propagate
from labelprop.tracker import Tracker

__all__ = ["Tracker", "propagate"]
