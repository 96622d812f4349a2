"""What the INO configurations say, against the paper's tables."""

from pathlib import Path

import pytest

from core import config as configuration
from core.errors import UserError
from core.schema import Clip

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
load = lambda name, *overrides: configuration.load(CONFIGS / f"{name}.yaml", overrides)


def test_learning_rate_is_scaled_to_the_batch(golden):
    base, final, epochs, _, warmup = golden("g6_schedules_ema_clip")["lr_args"]
    charades = load("charades")
    schedule = charades.schedule
    assert charades.base_lr == pytest.approx(base)
    assert [schedule.final_lr, schedule.epochs, schedule.warmup_epochs] == [final, epochs, warmup]
    assert load("charades", "data.batch_size=4").base_lr == pytest.approx(base / 4)
    assert load("ino_kinetics").base_lr == pytest.approx(3e-4 * 32 * 4 / 1024)
    assert load("ytvos").base_lr == 1e-4


@pytest.mark.parametrize("name", ["charades", "ino_kinetics"])
def test_protocols_of_both_data_sets(name):
    davis, ytvos = (load(name).propagation_on(dataset, cell_px=8) for dataset in ("davis", "ytvos"))
    numbers = lambda p: (p.radius, p.context, p.min_max, p.short_side, p.hd_to_720)
    assert numbers(davis) == (40, 10, True, 480, False)
    assert numbers(ytvos) == (50, 20, False, None, True)
    for p in (davis, ytvos):
        assert (p.window, p.window_reference, p.repeat_reference) == ("square", True, False)
        assert (p.temperature, p.top_k, p.readout, p.multiple) == (0.1, 5, "grid", 8)
    assert load(name, "propagation_ytvos.radius=9").propagation_on("ytvos", 8).radius == 9
    alone = load(name, "propagation_ytvos=null", "propagation.radius=7")
    assert alone.propagation_on("ytvos", 8).radius == alone.propagation_on(None, 8).radius == 7


def test_the_papers_two_configurations_differ_in_what_the_table_says():
    charades, kinetics = (configuration.to_dict(load(name)) for name in ("charades", "ino_kinetics"))
    differing = {
        f"{section}.{key}"
        for section in charades
        if isinstance(charades[section], dict)
        for key in charades[section]
        if charades[section][key] != kinetics[section][key]
    }
    assert charades["protocol"] == kinetics["protocol"]
    assert differing == {"optim.lr", "schedule.warmup_epochs", "data.batch_size", "data.root"}


def test_clips_are_spaced_by_frames_or_by_time_but_not_by_both():
    assert Clip(frames=4, fps=8.0, order="random").gap is None
    for spacing in ({}, {"gap": 2, "fps": 8.0}, {"fps": 0.0}):
        with pytest.raises(UserError, match="clip.fps"):
            Clip(frames=4, order="kept", **spacing)
    with pytest.raises(UserError, match="clip.clips_per_video = 0"):
        Clip(frames=4, gap=1, clips_per_video=0, order="random", step="whole")
