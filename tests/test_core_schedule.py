"""Schedules by global step, parameter groups, gradient clipping."""

import numpy as np
import torch
from torch import nn

from core.schedule import Progress, cosine, learning_rate, weight_decay
from core.schema import Optim, Schedule
from models.methods.dul import Method
from tests.small import dul_config
from training.optim import build, clip_each, parameter_groups, set_rates


def test_cosine_agrees_with_reference_schedules(golden):
    reference = golden("g6_schedules_ema_clip")
    for name in ("lr", "wd", "mom"):
        base, final, epochs, per_epoch, warmup = reference[f"{name}_args"]
        ours = [cosine(i, base, final, int(epochs * per_epoch), int(warmup * per_epoch)) for i in range(175)]
        np.testing.assert_allclose(ours, reference[name], atol=1e-12)


def test_step_schedule_halves_at_epoch_boundaries():
    schedule = Schedule(kind="step", epochs=10, factor=0.5, every_epochs=2)
    rates = [learning_rate(schedule, 1.0, Progress(step, 3, 30)) for step in (0, 5, 6, 11, 12)]
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.25]
    assert weight_decay(schedule, 0.1, Progress(29, 3, 30)) == 0.1


def test_cosine_schedule_warms_up_and_ends_at_the_final_rate():
    schedule = Schedule(kind="cosine", epochs=10, warmup_epochs=2, final_lr=1e-3, final_weight_decay=0.4)
    at = lambda step: Progress(step, 5, 50)
    assert learning_rate(schedule, 1.0, at(0)) == 0
    assert learning_rate(schedule, 1.0, at(10)) == 1.0
    assert abs(learning_rate(schedule, 1.0, at(50)) - 1e-3) < 1e-12
    assert abs(weight_decay(schedule, 0.04, at(0)) - 0.04) < 1e-12
    assert abs(weight_decay(schedule, 0.04, at(50)) - 0.4) < 1e-12


def test_dul_parameter_groups_have_the_official_sizes(golden):
    official = golden("g7_dul_param_groups.json")["param_groups"]
    optim = Optim("adam", 1e-4, 5e-4, betas=(0.5, 0.999), bias_lr_factor=2, decay_norm_weights=True)
    optimiser = build(Method(dul_config(embedding=128)), optim)
    ours = [
        {"n": len(g["params"]), "lr": g["lr"], "wd": g["weight_decay"], "numel": sum(p.numel() for p in g["params"])}
        for g in optimiser.param_groups
    ]
    assert ours == [group for group in official if group["n"]]


def test_norm_weights_can_be_left_undecayed():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optim = Optim("adamw", 1e-3, 0.1, bias_lr_factor=1, decay_norm_weights=False, betas=(0.9, 0.999))
    groups = parameter_groups(model, optim)
    assert [(len(g["params"]), g["decays"]) for g in groups] == [(1, True), (2, False), (1, False)]
    optimiser = torch.optim.AdamW(groups)
    set_rates(optimiser, 0.5, 0.2)
    assert [(g["lr"], g["weight_decay"]) for g in optimiser.param_groups] == [(0.5, 0.2), (0.5, 0), (0.5, 0)]


def test_each_gradient_is_clipped_on_its_own():
    a, b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    a.grad, b.grad = torch.full((4,), 5.0), torch.full((4,), 0.1)
    clip_each([a, b], 3.0)
    torch.testing.assert_close(a.grad.norm(), torch.tensor(3.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(b.grad, torch.full((4,), 0.1))
