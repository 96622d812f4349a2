import numpy as np
import pytest
from PIL import Image

from core import palette
from core.errors import UserError


def test_first_colours_are_those_of_davis():
    expected = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128]]
    assert palette.PALETTE[:7].tolist() == expected
    assert palette.PALETTE[8].tolist() == [64, 0, 0] and palette.PALETTE[255].tolist() == [224, 224, 192]
    assert len(np.unique(palette.PALETTE, axis=0)) == 256


def test_palette_equals_that_of_a_real_annotation(shared):
    with Image.open(shared("davis/Annotations/480p/dog/00000.png")) as image:
        colours = np.array(image.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(palette.PALETTE[: len(colours)], colours)


def test_indexed_png_returns_every_id(tmp_path):
    ids = np.arange(256, dtype=np.uint8).reshape(8, 32)
    path = tmp_path / "made" / "00000.png"
    palette.write_indexed(path, ids)
    np.testing.assert_array_equal(palette.read_ids(path), ids)
    with Image.open(path) as image:
        assert image.mode == "P" and image.getpalette() == palette.PALETTE.ravel().tolist()
    assert [p.name for p in path.parent.iterdir()] == ["00000.png"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "00000.png"
    palette.write_indexed(path, np.ones((4, 4), np.uint8))

    def stopped(self, file, **options):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        palette.write_indexed(path, np.zeros((4, 4), np.uint8))
    assert palette.read_ids(path).all() and [p.name for p in tmp_path.iterdir()] == ["00000.png"]


def test_grey_masks_are_ids_too(tmp_path):
    ids = np.array([[0, 3], [200, 255]], np.uint8)
    Image.fromarray(ids).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(palette.read_ids(tmp_path / "grey.png"), ids)


def test_what_is_no_mask_is_refused_by_name(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "colour.png")
    whole = tmp_path / "whole.png"
    palette.write_indexed(whole, np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
    (tmp_path / "short.png").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no picture")
    for name, reason in [
        ("colour.png", "mode RGB"),
        ("short.png", "cannot be read"),
        ("text.png", "cannot be read"),
        ("none.png", "no such mask"),
    ]:
        with pytest.raises(UserError, match=f"{name}: .*{reason}"):
            palette.read_ids(tmp_path / name)


def test_overlay_tints_objects_and_leaves_the_rest():
    frame = np.full((60, 80, 3), 100, np.uint8)
    ids = np.zeros((60, 80), np.uint8)
    ids[20:40, 20:40] = 2
    picture = palette.overlay(frame, ids)
    assert picture.dtype == np.uint8 and picture.shape == frame.shape
    assert picture[30, 30].tolist() == [50, 114, 50]
    assert (picture[5, 5] == 100).all() and (picture[19, 30] == 255).all()
    assert (frame == 100).all()
