"""Work in threads beside the main loop: its order, its bounds, its errors, and that no thread remains."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
import torch

from core.errors import UserError
from labelprop.pipeline import ahead, in_order, one_core_threads
from labelprop.video import landed
from tests.test_labelprop_video import DUL, INO, colours, moving, segment_video


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    assert not left, left


def counting(count, made, fails_at=None):
    for i in range(count):
        if i == fails_at:
            raise UserError(f"item {i}")
        made.append(i)
        yield i


def settled(made):
    """Wait until no more items are made; return their number."""
    count = -1
    while count != len(made):
        count = len(made)
        time.sleep(0.1)
    return count


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_ahead_gives_all_in_order(depth):
    made = []
    with closing(ahead(counting(20, made), depth)) as items:
        assert list(items) == made == list(range(20))


def test_ahead_is_bounded_and_ends_when_closed():
    made, closed = [], []

    def items():
        try:
            yield from counting(100, made)
        finally:
            closed.append(threading.current_thread())

    with closing(ahead(items(), 3)) as received:
        assert next(received) == 0
        assert settled(made) == 4  # one received, three in advance
        assert next(received) == 1
        assert settled(made) == 5
    assert settled(made) == 5 and closed == [threading.current_thread()]


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_ahead_comes_in_its_place(depth):
    made, received = [], []
    with pytest.raises(UserError, match="item 5"), closing(ahead(counting(9, made, fails_at=5), depth)) as items:
        for item in items:
            received.append(item)
    assert received == made == [0, 1, 2, 3, 4]


def test_the_caller_keeps_its_threads_and_so_do_threads_started_later():
    torch.set_num_threads(2)
    inside = []

    def items():
        inside.append(torch.get_num_threads())
        yield

    list(ahead(items(), 1))
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(torch.get_num_threads).result()
    assert (inside, torch.get_num_threads(), later) == ([1], 2, 2)
    # A thread that begins while another's pool is there, and whose own pool outlives it.
    first, others = one_core_threads(1), []
    first.__enter__().submit(int).result()

    def second():
        with one_core_threads(1) as pool:
            pool.submit(int).result()
            others.append(torch.get_num_threads())
            first.__exit__(None, None, None)
        others.append(torch.get_num_threads())

    with ThreadPoolExecutor(1) as thread:
        thread.submit(second).result()
    with ThreadPoolExecutor(1) as thread:
        others.append(thread.submit(torch.get_num_threads).result())
    assert others == [2, 2, 2]


def test_in_order_is_bounded_whatever_finishes_first():
    made, under_way, most = [], set(), []

    def slow_at_first(i):
        under_way.add(i)
        most.append(len(under_way))
        time.sleep(0.02 * (3 - i % 4))
        under_way.remove(i)
        return i * i

    with ThreadPoolExecutor(3) as pool, closing(in_order(pool, slow_at_first, counting(12, made), 4)) as results:
        assert next(results) == 0 and settled(made) == 5
        assert list(results) == [i * i for i in range(1, 12)]
    assert max(most) == 3


def test_after_an_error_nothing_is_begun_and_all_that_was_has_ended():
    begun, ended = [], []

    def work(i):
        begun.append(i)
        time.sleep(0.05)
        if i == 2:
            raise UserError("result 2")
        ended.append(i)
        return i

    received = []
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(UserError, match="result 2"):
            for result in in_order(pool, work, counting(100, []), 10):
                received.append(result)
        at_error = list(begun)
        assert received == [0, 1] and set(at_error) - set(ended) == {2}
        time.sleep(0.12)
        assert begun == at_error


@pytest.mark.parametrize("cfg", [DUL, INO])
def test_a_video_in_advance_is_the_same_video(cfg):
    frames, truth = zip(*moving(9, enters=4))
    given = {1: truth[1], 4: truth[4]}
    plain = np.stack(list(segment_video(frames, given, colours, cfg)))
    for batch in (1, 4):
        other = segment_video((frame for frame in frames), given, colours, cfg, batch=batch, ahead=2)
        np.testing.assert_array_equal(np.stack(list(other)), plain)


def test_a_video_that_is_left_early_leaves_no_thread():
    frames, truth = zip(*moving(30))
    read = []
    with closing(segment_video(counting_frames(frames, read), {0: truth[0]}, colours, DUL, ahead=2)) as masks:
        for _ in range(3):
            next(masks)
    assert settled(read) <= 3 + 2 + 1


def test_a_bad_frame_in_advance_is_told_after_the_good_ones():
    frames, truth = map(list, zip(*moving(6)))
    frames[4] = frames[4][:50]
    received = []
    with pytest.raises(UserError, match="frame 4 is 80x50"):
        for ids in segment_video(frames, {0: truth[0]}, colours, DUL, ahead=2):
            received.append(ids)
    assert len(received) == 4


def counting_frames(frames, read):
    for frame in frames:
        read.append(None)
        yield frame


def test_results_that_land_later_keep_their_order():
    made = []
    ids = (torch.full((2, 3), i, dtype=torch.uint8) for i in counting(7, made))
    results = landed(ids, 3)
    assert next(results).tolist() == [[0] * 3] * 2 and made == [0, 1, 2, 3]
    assert [int(x[0, 0]) for x in results] == [1, 2, 3, 4, 5, 6]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cfg", [DUL, INO])
def test_a_video_on_a_gpu_in_advance_is_the_same_video(cfg):
    frames, truth = zip(*moving(20, enters=4))
    given = {1: truth[1], 4: truth[4]}
    plain = np.stack(list(segment_video(frames, given, colours, cfg)))
    other = np.stack(list(segment_video(iter(frames), given, colours, cfg, device="cuda", batch=4, ahead=2)))
    assert (plain == other).mean() > 0.999
