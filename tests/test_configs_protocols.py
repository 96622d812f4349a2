"""What the protocols of configs/protocols say, and how a configuration takes one."""

from pathlib import Path

import pytest

from core import config as configuration

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NUMBERS = ("window", "radius", "window_reference", "temperature", "top_k", "context", "repeat_reference")
PUBLISHED = {
    ("DUL", "davis"): ("disc", 12, False, 0.05, 10, 20, True),
    ("DUL", "ytvos"): ("disc", 12, False, 0.05, 10, 20, True),
    ("INO", "davis"): ("square", 40, True, 0.1, 5, 10, False),
    ("INO", "ytvos"): ("square", 50, True, 0.1, 5, 20, False),
    ("DINO", "davis"): ("square", 12, True, 0.1, 5, 7, False),
    ("DINO", "ytvos"): ("square", 12, True, 0.1, 5, 7, False),
    ("DINOv3", "davis"): ("closed_disc", 12, True, 0.2, 5, 7, False),
    ("DINOv3", "ytvos"): ("closed_disc", 12, True, 0.2, 5, 7, False),
}
# short side on DAVIS, on YouTube-VOS
SIZES = {"DUL": (None, None), "INO": (480, None), "DINO": (480, 480), "DINOv3": (960, 960)}


def load(name, *overrides):
    return configuration.load(CONFIGS / f"{name}.yaml", overrides)


def test_every_protocol_is_published_somewhere():
    assert configuration.protocols() == sorted({name for name, _ in PUBLISHED})


@pytest.mark.parametrize("name, dataset", PUBLISHED)
@pytest.mark.parametrize("network", ["ytvos", "charades", "ino_sample"])
def test_numbers_of_the_protocols(name, dataset, network):
    """The same for every network, whatever its own configuration says."""
    config = load(network, f"protocol={name}")
    p = config.propagation_on(dataset, cell_px=14)
    assert config.protocol == name
    assert tuple(getattr(p, number) for number in NUMBERS) == PUBLISHED[name, dataset]
    assert p.readout == ("smooth" if name == "DUL" else "grid")
    assert p.min_max == (p.readout == "grid" and (name, dataset) != ("INO", "ytvos"))
    assert (p.short_side, p.multiple) == (SIZES[name][dataset == "ytvos"], 1 if name == "DUL" else 14)
    assert p.hd_to_720 == ((name, dataset) == ("INO", "ytvos"))
    assert configuration.from_dict(configuration.to_dict(config)) == config


def test_single_values_are_laid_over_a_protocol_in_any_order():
    for overrides in (("protocol=INO", "propagation.radius=9"), ("propagation.radius=9", "protocol=INO")):
        config = load("ytvos", *overrides)
        assert (config.propagation.radius, config.propagation.context) == (9, 10)
        assert config.propagation_ytvos.radius == 50
    assert load("charades", "propagation_ytvos=null").propagation_on("ytvos", 8).radius == 40


def test_a_multiple_that_is_given_stands():
    assert load("ytvos").propagation_on("davis", cell_px=8).multiple == 1
    assert load("ytvos", "protocol=DINO", "propagation.multiple=32").propagation_on("davis", 8).multiple == 32
