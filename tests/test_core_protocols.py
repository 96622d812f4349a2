"""Protocols by their names."""

from pathlib import Path

import pytest

from core import config as configuration
from core import protocols
from core.errors import UserError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def test_duls_protocol_is_that_of_its_configuration():
    assert protocols.named("DUL") == configuration.load(CONFIGS / "ytvos.yaml").propagation
    assert protocols.named("DUL", "ytvos") == protocols.named("DUL", "davis") == protocols.named("DUL")


def test_a_data_set_may_have_numbers_of_its_own():
    davis, ytvos = protocols.named("INO", "davis"), protocols.named("INO", "ytvos")
    assert (davis.radius, ytvos.radius, davis.multiple, ytvos.hd_to_720) == (40, 50, None, True)
    assert protocols.named("DINO", "ytvos") == protocols.named("DINO")


def test_mistakes_name_the_protocol_or_its_file(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="'DINOv2': must be one of DINO, .*did you mean 'DINO"):
        protocols.named("DINOv2")
    (tmp_path / "MINE.yaml").write_text("propagation:\n  radios: 3\n")
    monkeypatch.setattr(protocols, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"MINE.yaml: propagation.radios.*did you mean 'radius'"):
        protocols.named("MINE")
