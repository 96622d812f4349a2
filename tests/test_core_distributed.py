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
