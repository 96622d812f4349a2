"""Work that goes on beside the main loop: in order, a bounded number of items ahead, and over when the loop is.

Both are generators; close them (contextlib.closing) and no thread of theirs is left.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from itertools import repeat

import torch

_END = object()


def in_order(pool, function, items, depth):
    """function(item) for every item, in order, by the pool's threads; depth: results that may wait or be under way.

    The items themselves are made by the caller's thread, as they are asked for.  An error, of an item or of its
    function, is raised in its place; what has not begun is then dropped, what has is waited for.
    """
    pending = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        wait([future for future in pending if not future.cancel()])


def ahead(items, depth):
    """The items of a generator, in order, made by a thread of its own up to `depth` in advance; 0: by the caller's."""
    with closing(items):
        if depth == 0:
            yield from items
            return
        try:
            # One core is enough for what goes on in advance; the others are the caller's.
            with (
                ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as thread,
                closing(in_order(thread, lambda _: next(items, _END), repeat(None), depth)) as made,
            ):
                while (item := next(made)) is not _END:
                    yield item
                    del item
        finally:
            # What that thread set for itself is also what threads started later would begin with.
            torch.set_num_threads(torch.get_num_threads())
