import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from core import distributed
from core.distributed import Team
from core.errors import UserError


@pytest.fixture
def torchrun(monkeypatch):
    """Environment of one process of two, on a store in memory.  Returns (the other's Team, the store)."""
    store = dist.HashStore()
    monkeypatch.setattr(distributed, "rendezvous", lambda url: iter([(store, 1, 2)]))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    return Team(0, 2, 2, store), store


def test_one_process_does_all_and_waits_for_nobody():
    with distributed.team() as team:
        team.meet("anywhere")
        assert list(team.share(4)) == [0, 1, 2, 3] and (team.rank, team.world, team.local) == (0, 1, 1)


def test_every_number_goes_to_one_process(torchrun):
    first, _ = torchrun
    with distributed.team() as second:
        a, b = first.share(5), second.share(5)
        assert [next(a), next(b), next(b), next(a), next(b)] == [0, 1, 2, 3, 4]
        assert next(a, None) is next(b, None) is None


def test_a_meeting_waits_for_all(torchrun):
    first, _ = torchrun
    passed = threading.Event()
    with distributed.team() as second, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: (first.meet("here"), passed.set()))
        assert not passed.wait(0.3)
        second.meet("here")
        waiting.result(timeout=10)
        assert passed.is_set()


def test_a_failure_reaches_those_that_wait_and_those_that_work(torchrun):
    first, _ = torchrun
    numbers = first.share(9)
    next(numbers)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(first.meet, "here")
        with pytest.raises(KeyboardInterrupt), distributed.team():
            raise KeyboardInterrupt
        for what in (lambda: waiting.result(timeout=10), lambda: next(numbers)):
            with pytest.raises(UserError, match="stopped, since process 1 failed"):
                what()


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "5")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UserError, match="4 GPUs for process 6"):
        distributed.own(torch.device("cuda"))
    assert distributed.own(torch.device("cpu")) == torch.device("cpu")
