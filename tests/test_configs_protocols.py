"""The values of the protocols in configs/protocols, and changes of single values."""

import pytest

from core import protocols
from core.errors import UserError

NUMBERS = ("window", "radius", "window_reference", "temperature", "top_k", "context", "repeat_reference")
VALUES = {
    "DUL": ("disc", 12, False, 0.05, 10, 20, True),
    "best": ("disc", 12, False, 0.05, 7, 30, True),
    "INO": ("square", 40, True, 0.1, 5, 10, False),
    "INO_ytvos": ("square", 50, True, 0.1, 5, 20, False),
    "DINO": ("square", 12, True, 0.1, 5, 7, False),
    "DINOv3": ("closed_disc", 12, True, 0.2, 5, 7, False),
}
#: protocol -> readout, min_max, short_side, multiple, rounding, resize, hd_to_720
SIZES = {
    "DUL": ("smooth", False, None, 1, "down", "bilinear", False),
    "best": ("smooth", False, None, 1, "down", "bilinear", False),
    "INO": ("grid", True, 480, None, "down", "bilinear", False),
    "INO_ytvos": ("grid", False, None, None, "down", "bilinear", True),
    "DINO": ("grid", True, 480, None, "down", "bilinear", False),
    "DINOv3": ("nearest", True, 960, None, "up", "bicubic", False),
}


def test_the_protocols_are_the_published_ones_and_the_best():
    assert protocols.names() == sorted(VALUES)
    assert {name: protocols.named(name).norm_frames for name in VALUES} == dict.fromkeys(VALUES, 0) | {"best": 8}


@pytest.mark.parametrize("name", VALUES)
def test_numbers_of_the_protocols(name):
    p = protocols.named(name)
    assert tuple(getattr(p, number) for number in NUMBERS) == VALUES[name]
    assert (p.readout, p.min_max, p.short_side, p.multiple, p.rounding, p.resize, p.hd_to_720) == SIZES[name]


def test_some_have_another_one_elsewhere():
    places = ("ytvos", "davis", "video", None)
    assert [protocols.on(place, "INO") for place in places] == ["INO_ytvos", "INO", "INO", "INO"]
    assert [protocols.on(place, "DUL") for place in places] == ["DUL", "DUL", "best", "DUL"]


def test_single_values_change():
    changed = protocols.named("INO_ytvos", {"radius": 9})
    assert (changed.radius, changed.context) == (9, 20)
    with pytest.raises(UserError, match="did you mean 'radius'"):
        protocols.named("INO", {"radios": 9})
    with pytest.raises(UserError, match="rounding = 'upp'.*did you mean 'up'"):
        protocols.named("INO", {"rounding": "upp"})
    with pytest.raises(UserError, match="min_max = True: must be false with readout 'smooth'"):
        protocols.named("DINOv3", {"readout": "smooth"})
    with pytest.raises(UserError, match="did you mean 'DINOv3'"):
        protocols.named("DINO3")
