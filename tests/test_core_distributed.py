import pytest
import torch

from core import distributed
from core.errors import UserError


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "5")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UserError, match="4 GPUs for process 6"):
        distributed.own(torch.device("cuda"))
    assert distributed.own(torch.device("cpu")) == torch.device("cpu")


def test_one_process_waits_for_nobody():
    distributed.barrier()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    agreement = distributed.Agreement()
    assert [agreement.any(flag) for flag in (False, True)] == [False, True] and not agreement.last()
    assert distributed.gathered("mine") == ["mine"]


def test_the_loss_of_another_process_is_told_in_words(monkeypatch):
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection reset by peer\nand more")
    with pytest.raises(RuntimeError, match="reset by peer"), distributed.peers():
        raise lost  # with one process it is something else
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="another process was lost.*reset by peer"), distributed.peers():
        raise lost
    with pytest.raises(RuntimeError, match="of shapes"), distributed.peers():
        raise RuntimeError("a mistake of shapes")
