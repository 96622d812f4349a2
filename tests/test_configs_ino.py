"""The INO configurations against the paper's tables."""

from pathlib import Path

import pytest

import models
from core.errors import UserError
from core.schema import Clip, as_plain

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
load = lambda name, *overrides: models.read_config(CONFIGS / f"{name}.yaml", overrides)


def test_learning_rate_is_scaled_to_the_batch(golden):
    base, final, epochs, _, warmup = golden("g6_schedules_ema_clip")["lr_args"]
    charades = load("charades")
    schedule = charades.schedule
    assert charades.base_lr == pytest.approx(base)
    assert [schedule.final_lr, schedule.epochs, schedule.warmup_epochs] == [final, epochs, warmup]
    assert load("charades", "data.batch_size=4").base_lr == pytest.approx(base / 4)
    assert load("ino_kinetics").base_lr == pytest.approx(3e-4 * 32 * 4 / 1024)
    assert load("ytvos").base_lr == 1e-4


def test_the_papers_two_configurations_differ_in_what_the_table_says():
    charades, kinetics = (as_plain(load(name)) for name in ("charades", "ino_kinetics"))
    differing = {
        f"{section}.{key}"
        for section in charades
        if isinstance(charades[section], dict)
        for key in charades[section]
        if charades[section][key] != kinetics[section][key]
    }
    assert charades["protocol"] == kinetics["protocol"]
    assert differing == {"optim.lr", "schedule.warmup_epochs", "data.batch_size", "data.root"}


def test_clips_are_spaced_by_frames_or_by_time():
    assert Clip(frames=4, fps=8.0, order="random").gap is None
    for spacing in ({}, {"fps": 0.0}):
        with pytest.raises(UserError, match="clip.fps"):
            Clip(frames=4, order="kept", **spacing)
    with pytest.raises(UserError, match="clip.clips_per_video = 0"):
        Clip(frames=4, gap=1, clips_per_video=0, order="random", step="whole")
