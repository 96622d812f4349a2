"""Checkpoints are written completely or not at all; the error names the file."""

import os
import resource

import pytest
import torch

from core import checkpoint
from core.errors import UserError


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "last.pth"
    checkpoint.save(path, {"step": 1})

    class Unsavable:
        def __reduce__(self):
            raise OSError("disk full")

    with pytest.raises(UserError, match="last.pth: cannot be written .*disk full"):
        checkpoint.save(path, {"step": 2, "bad": Unsavable()})
    assert checkpoint.load(path) == {"step": 1} and os.listdir(tmp_path) == ["last.pth"]


def test_a_disk_that_is_full_is_named_and_leaves_the_checkpoint(tmp_path):
    checkpoint.save(tmp_path / "last.pth", {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(UserError, match="last.pth: cannot be written .*File too large"):
            checkpoint.save(tmp_path / "last.pth", {"step": 2, "rows": [torch.rand(200, 1000) for _ in range(9)]})
        with pytest.raises(UserError, match="a.safetensors: cannot be written .*File too large"):
            checkpoint.save_weights(tmp_path / "a.safetensors", {"rows": torch.rand(900, 1000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.load(tmp_path / "last.pth") == {"step": 1} and os.listdir(tmp_path) == ["last.pth"]
