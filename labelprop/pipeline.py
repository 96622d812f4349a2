"""Threads beside the main loop: results in order, a bounded number in advance.

Close the generators `in_order` and `ahead` (contextlib.closing): this ends their threads.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from itertools import repeat

import torch

_END = object()


def in_order(pool: ThreadPoolExecutor, function: Callable, items: Iterable, depth: int) -> Generator:
    """function(item) for every item, in order, computed by the pool's threads, at most `depth` in advance.

    The caller's thread makes the items.  An error of the items or of the function is raised in place of its result;
    then calls that have begun are waited for, and all others are dropped.
    """
    pending: deque[Future] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        wait([future for future in pending if not future.cancel()])


def ahead(items: Generator, depth: int) -> Generator:
    """The items of a generator, in order, made in a thread up to `depth` in advance; 0: in the caller's thread."""
    with closing(items):
        if depth == 0:
            yield from items
            return
        with (
            one_core_threads(1) as thread,
            closing(in_order(thread, lambda _: next(items, _END), repeat(None), depth)) as made,
        ):
            while (item := next(made)) is not _END:
                yield item
                del item


_lock, _pools, _cores = threading.Lock(), 0, 0


@contextmanager
def one_core_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads in which torch computes on one core each."""
    # The pool's threads also set the number that threads started later begin with, until it is set back: a thread that
    # begins meanwhile, and opens a pool itself, takes the number from before the first of all pools.
    global _pools, _cores
    with _lock:
        now = torch.get_num_threads()  # a thread's first call takes over what was set last, and must come first
        _cores = _cores if _pools else now
        _pools += 1
        torch.set_num_threads(_cores)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        with _lock:
            _pools -= 1
            torch.set_num_threads(_cores)
