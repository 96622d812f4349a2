"""Threads beside the main loop: results in order, a bounded number in advance.

Both functions are generators.  Close them (contextlib.closing), and none of their threads is left.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from itertools import repeat

import torch

_END = object()


def in_order(pool, function, items, depth):
    """function(item) for every item, in order, computed by the pool's threads, at most `depth` in advance.

    The caller's thread makes the items.  An error in an item or in the function is raised in its place; calls that
    have begun by then are waited for, the others are dropped.
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
    """The items of a generator, in order, made by one thread up to `depth` in advance; 0: by the caller's thread."""
    with closing(items):
        if depth == 0:
            yield from items
            return
        try:
            # One core is enough for this thread; the others are the caller's.
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
