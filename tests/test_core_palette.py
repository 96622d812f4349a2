import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from core import masks, palette
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


def text_bomb(path):
    """A PNG with a comment of 2 MB when unpacked: Pillow raises a ValueError."""
    told = PngInfo()
    told.add_text("comment", "a" * 2_000_000, zip=True)
    Image.new("L", (4, 4)).save(path, pnginfo=told)


def pixel_bomb(path):
    Image.new("1", (14000, 13000)).save(path)


def program(path):
    """An EPS file: Pillow would start Ghostscript to read it."""
    Image.new("L", (4, 4)).save(path, format="EPS")


@pytest.mark.parametrize("made", [text_bomb, pixel_bomb, program])
def test_what_would_blow_up_or_start_a_program_is_refused_by_name(tmp_path, made):
    made(tmp_path / "mask.png")
    for read in (palette.read_ids, masks.read):
        with pytest.raises(UserError, match="mask.png: cannot be read as a mask"):
            read(tmp_path / "mask.png")


def test_overlay_tints_objects_and_leaves_the_rest():
    frame = np.full((60, 80, 3), 100, np.uint8)
    ids = np.zeros((60, 80), np.uint8)
    ids[20:40, 20:40] = 2
    picture = palette.overlay(frame, ids)
    assert picture.dtype == np.uint8 and picture.shape == frame.shape
    np.testing.assert_allclose(picture[30, 30], 50 + palette.OVERLAY_PALETTE[2] / 2, atol=1)
    assert (picture[5, 5] == 100).all() and (picture[19, 30] == 255).all()
    assert (frame == 100).all()


def cielab(colours):
    """RGB 0..255 [N,3] -> CIELAB [N,3]."""
    return cv2.cvtColor(np.asarray(colours, np.float32)[None] / 255, cv2.COLOR_RGB2LAB)[0]


def test_overlay_colours_differ_from_nature_and_from_each_other():
    skin, plants = [(240, 205, 180), (225, 170, 140), (160, 110, 80), (90, 55, 40)], [(85, 125, 50), (50, 80, 35)]
    sky, ground = [(135, 190, 235), (80, 130, 190), (45, 95, 110)], [(205, 180, 140), (110, 85, 60), (128, 128, 128)]
    first = cielab(palette.OVERLAY_PALETTE[1:21])
    between = np.linalg.norm(first[:, None] - first, axis=2)[~np.eye(20, dtype=bool)]
    natural = np.linalg.norm(first[:, None] - cielab(skin + plants + sky + ground), axis=2)
    assert between.min() > 30 and natural.min() > 30
    assert palette.OVERLAY_PALETTE.shape == (256, 3) and palette.OVERLAY_PALETTE[1:].any(1).all()
    assert len(np.unique(palette.OVERLAY_PALETTE[1:41], axis=0)) == 40


def discs(smooth=False):
    """Two discs of values 100 and 200.  smooth: with soft edges."""
    canvas = Image.new("L", (800, 480))
    draw = ImageDraw.Draw(canvas)
    draw.ellipse((100, 80, 300, 280), fill=100)
    draw.ellipse((400, 200, 700, 460), fill=200)
    return canvas.resize((400, 240), Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST)


def doubts_about(image, path, **options):
    image.save(path, **options)
    ids = palette.read_ids(path)
    return " ".join(palette.doubts(path, np.where(ids == palette.VOID, np.uint8(0), ids)))


def test_masks_that_look_wrong_are_doubted(tmp_path):
    png = tmp_path / "0.png"
    assert "hard edges" in doubts_about(discs(smooth=True), png)
    assert "hard edges" in doubts_about(discs(smooth=True).point(lambda value: min(255, 3 * value)), png)
    assert "JPEG" in doubts_about(discs(), tmp_path / "0.jpg")
    assert "JPEG" in doubts_about(discs(), png, format="JPEG")
    specks = Image.fromarray(np.zeros((240, 400), np.uint8))
    for n in range(30):
        specks.paste(n + 1, (10 * n, 8, 10 * n + 3, 13))
    assert "specks" in doubts_about(specks, png)
    ground = Image.eval(discs(), lambda value: {100: 0, 200: 1}.get(value, 2))  # ids as quantisation may give them
    assert "object 2 covers the picture's border" in doubts_about(ground, png)


def test_sound_masks_are_not_doubted(tmp_path):
    path = tmp_path / "0.png"
    assert doubts_about(discs(), path) == ""
    rows, columns = np.mgrid[:240, :400]
    many = (rows // 24 * 20 + columns // 20 + 1).astype(np.uint8)  # 200 objects, no background
    assert doubts_about(Image.fromarray(many), path) == ""
    few = np.zeros((240, 400), np.uint8)
    few[10, 10], few[20:22, 5:300], few[100:180, 50:390] = 1, 2, 3  # a speck and a thin line beside larger objects
    few[200:239, 100:300], few[60:90, 10:80] = 4, 5
    assert doubts_about(Image.fromarray(few), path) == ""


def test_real_masks_are_not_doubted(shared):
    paths = [path for name in ("davis", "ytvos", "many_objects") for path in shared(name).rglob("Annotations/**/*.png")]
    paths = [path for path in paths if path.parents[1].name != "480p" or path.stem == "00000"]
    assert len(paths) == 11 and [palette.doubts(path, palette.read_ids(path)) for path in paths] == [[]] * 11
