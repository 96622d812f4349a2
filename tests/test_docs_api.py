"""The Python code of docs/api.md, and hubconf.py."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hubconf
import models
from core import movies
from core.errors import UserError
from core.palette import read_ids
from labelprop import follow
from tests.test_infer_vos_video import painted

ROOT = Path(__file__).resolve().parents[1]


def test_the_pieces_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("av", reason="video files need the package av")
    with movies.mp4(tmp_path / "clip.mp4") as add:
        for t in range(5):
            add(painted(t)[0], t / 25)
    Image.fromarray(255 * painted(0)[1]).save(tmp_path / "first.png")
    text = (ROOT / "docs/api.md").read_text()
    pieces = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    names = {}
    for piece in pieces:
        exec(piece.replace("/path/to/this/repository", str(ROOT)), names)  # noqa: S102  the page's own code
    assert len(list((tmp_path / "masks").glob("*.png"))) == 5 and (tmp_path / "overlay.mp4").exists()
    assert set(np.unique(read_ids(tmp_path / "masks/00004.png"))) == {0, 1}
    assert capsys.readouterr().out.count("object 1: ") == 3 and names["shown"].shape == (64, 96, 3)
    tracker, extractor = names["tracker"], names["extractor"]
    assert tracker.layer == "res4" and tracker.propagation.radius == 12
    assert isinstance(extractor, models.Extractor) and not extractor.training
    assert names["transformer"].layers[0] == "block7" and names["transformer"].cell_px("block7") == 8
    assert "`labelprop.follow.carried`" in text and callable(follow.carried)
    assert "`docs/protocols.md`" in text and (ROOT / "docs/protocols.md").exists()


def test_hub_names_what_it_gives():
    with pytest.raises(UserError, match="no ViT-S/8"):
        hubconf.ino_vits8(models.DEFAULT)
    for name in hubconf.dependencies:
        assert name in sys.modules or __import__(name)
