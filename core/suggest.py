"""The "did you mean" of every message."""

import difflib


def suggestion(word, known):
    """', did you mean ...?' for the nearest of the known words, else an empty string."""
    near = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else ""
