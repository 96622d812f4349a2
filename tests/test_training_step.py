"""The gradients of a batch are the same when computed in parts, and computing them waits for no device."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

import models
from core.errors import UserError
from core.schedule import Progress
from models.methods import crw, dul, ino
from tests.small import crw_config, dul_config, ino_config, run_of
from training.run import Run
from training.step import gradients

START = Progress(step=0, steps_per_epoch=5, total_steps=10)


def of_ino():
    method = ino.Method(ino_config(drop_path=0.0, mask_chance=1.0))
    draw = lambda *shape: torch.randint(0, 256, (4, 4, *shape), dtype=torch.uint8)
    return method, {"global": draw(3, 32, 32), "local": draw(2, 3, 16, 16)}


def of_crw():
    # Batch norm in eval mode: in training mode it would take the statistics of each part.
    method = crw.Method(crw_config(edge_dropout=0.0)).eval()
    return method, {"patches": torch.randint(0, 256, (4, 3, 4, 3, 16, 16), dtype=torch.uint8)}


def of_dul():
    views, frames = dul.Views(dul_config()), [np.zeros((70, 90, 3), np.uint8)] * 3
    return dul.Method(dul_config()), default_collate([views(frames, np.random.default_rng(clip)) for clip in range(2)])


@pytest.mark.parametrize("make", [of_ino, of_crw, of_dul])
def test_gradients_wait_for_no_device(make, monkeypatch):
    """Tensors on the device "meta" have no values: a line that waits for a value raises an error."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not support "meta"
    method, batch = make()
    run = run_of(method.to("meta").train(), 1)
    run.device = torch.device("meta")
    losses = gradients(run, method, batch, START)
    method.before_step(START)
    method.after_step(START)
    assert all(loss.is_meta for loss in losses.values()) and any(p.grad is not None for p in method.parameters())


@pytest.mark.parametrize("make", [of_ino, of_crw])
def test_parts_have_the_loss_the_gradients_and_the_centres_of_the_whole_batch(make):
    found = {}
    for parts in (1, 2, 4):
        torch.manual_seed(1)
        method, batch = make()
        losses = gradients(run_of(method, parts), method, batch, START)
        grads = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
        found[parts] = {**losses, **grads, **dict(method.named_buffers())}
    assert len(found[1]) > 40 and any(value.abs().max() > 1e-3 for value in found[1].values())
    for parts in (2, 4):
        torch.testing.assert_close(found[parts], found[1], rtol=2e-4, atol=2e-6)


def test_gradients_of_the_step_before_are_gone():
    method, batch = of_crw()
    run = run_of(method, 2)
    first = [gradients(run, method, batch, START)["total"], method.head.weight.grad.clone()]
    second = [gradients(run, method, batch, START)["total"], method.head.weight.grad]
    torch.testing.assert_close(first, second)


def test_a_loss_of_the_whole_batch_is_not_computed_in_parts(tmp_path):
    config = models.read_config("configs/ytvos.yaml", ["data.accumulate=2"])
    with pytest.raises(UserError, match="data.accumulate = 2: must be 1 for dul: the anchors of all clips"):
        Run(models.build(config), config, tmp_path, torch.device("cpu"))
