"""Masks in many image formats, and masks from boxes."""

import cv2
import numpy as np
import pytest
from PIL import Image

from core import masks
from core.errors import UserError
from core.palette import PALETTE, write_indexed

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def ids():
    """Two objects; object 2 is above object 1."""
    ids = np.zeros((40, 60), np.uint8)
    ids[20:35, 5:25] = 1
    ids[5:18, 30:50] = 2
    return ids


def saved(path, pixels, mode=None, **options):
    Image.fromarray(pixels, mode).save(path, **options)
    return path


def painted(ids, *colours):
    return np.array(colours, np.uint8)[ids]


def test_palettes_and_greys_hold_ids(ids, tmp_path):
    write_indexed(tmp_path / "davis.png", ids)
    np.testing.assert_array_equal(masks.read(tmp_path / "davis.png"), ids)
    image = Image.fromarray(ids)
    image.putpalette([255, 255, 255, *RED, *BLUE])  # index 0 is white, but lies along the border
    image.save(tmp_path / "white.png")
    np.testing.assert_array_equal(masks.read(tmp_path / "white.png"), ids)
    for name, pixels in {
        "grey": ids,
        "deep": ids.astype(np.uint16),
        "rgb": np.stack([ids] * 3, 2),
        "alpha": np.stack([ids, np.full_like(ids, 255)], 2),
    }.items():
        np.testing.assert_array_equal(masks.read(saved(tmp_path / f"{name}.png", pixels)), ids)
    void = np.where(ids == 1, 255, ids).astype(np.uint8)
    np.testing.assert_array_equal(masks.read(saved(tmp_path / "void.png", void)), np.where(ids == 1, 0, ids))


def test_white_on_black_is_one_object(ids, tmp_path):
    white = np.where(ids, 255, 0).astype(np.uint8)
    wanted = ids > 0
    soft = cv2.GaussianBlur(white, (5, 5), 0)
    for name, pixels in {
        "binary.png": white,
        "rgb.png": np.stack([white] * 3, 2),
        "one.png": ids > 0,
        "deep.png": np.where(ids, 65535, 0).astype(np.uint16),
        "jpeg.jpg": white,
    }.items():
        np.testing.assert_array_equal(masks.read(saved(tmp_path / name, pixels)), wanted, err_msg=name)
    np.testing.assert_array_equal(masks.read(saved(tmp_path / "soft.png", soft)), soft > 127)


def test_each_colour_is_an_object_in_the_order_of_first_pixels(ids, tmp_path):
    first_row = np.array([0, 2, 1], np.uint8)[ids]  # the upper object is number 1
    for name, colours in {"black": ((0, 0, 0), RED, BLUE), "white": ((255, 255, 255), RED, BLUE)}.items():
        found = masks.read(saved(tmp_path / f"{name}.png", painted(ids, *colours)))
        np.testing.assert_array_equal(found, first_row)
    brush = painted(ids, (9, 9, 9, 0), (*RED, 255), (*BLUE, 200))
    np.testing.assert_array_equal(masks.read(saved(tmp_path / "brush.png", brush)), first_row)
    chance = Image.fromarray((ids + 1) % 3)  # the background has index 1, as after some conversions
    chance.putpalette([*BLUE, 0, 0, 0, *RED])
    chance.save(tmp_path / "chance.png")
    np.testing.assert_array_equal(masks.read(tmp_path / "chance.png"), first_row)
    davis = saved(tmp_path / "davis.png", PALETTE[ids])
    np.testing.assert_array_equal(masks.read(davis), ids)


def test_soft_edges_and_compression_make_no_objects(ids, tmp_path):
    pixels = painted(ids, (0, 0, 0), GREEN, BLUE)
    smooth = cv2.GaussianBlur(pixels, (3, 3), 0)
    first_row = np.array([0, 2, 1], np.uint8)[ids]
    np.testing.assert_array_equal(masks.read(saved(tmp_path / "smooth.png", smooth)), first_row)
    found = masks.read(saved(tmp_path / "jpeg.jpg", pixels, quality=80))
    assert set(np.unique(found)) == {0, 1, 2} and (found == first_row).mean() > 0.95


def test_a_colour_is_the_same_object_in_all_masks(ids, tmp_path):
    known = {}
    masks.read(saved(tmp_path / "a.png", painted(ids, (0, 0, 0), RED, BLUE)), known)
    assert known == {BLUE: 1, RED: 2}
    second = masks.read(saved(tmp_path / "b.png", painted(ids, (0, 0, 0), RED, GREEN)), known)
    np.testing.assert_array_equal(second, np.array([0, 2, 3], np.uint8)[ids])


def test_pictures_that_are_no_masks(ids, tmp_path):
    rng = np.random.default_rng(0)
    photograph = cv2.resize(rng.integers(0, 255, (200, 200, 3), np.uint8), (800, 800), interpolation=cv2.INTER_NEAREST)
    (tmp_path / "text.png").write_text("no picture")
    whole = saved(tmp_path / "whole.png", painted(ids, (0, 0, 0), RED, BLUE)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    for path, message in [
        (tmp_path / "none.png", "no such mask"),
        (tmp_path / "text.png", "cannot be read"),
        (tmp_path / "half.png", "cannot be read"),
        (saved(tmp_path / "photograph.png", photograph), "photograph"),
        (saved(tmp_path / "full.png", painted(ids, RED, GREEN, BLUE)), "no background"),
        (saved(tmp_path / "values.png", ids.astype(np.uint16) * 300), "8 bits"),
    ]:
        with pytest.raises(UserError, match=f"{path.name}.*{message}"):
            masks.read(path)


@pytest.fixture
def scene():
    """A bright square and a bright disc on dark noise, and their mask."""
    rng = np.random.default_rng(0)
    frame, ids = rng.integers(20, 60, (120, 160, 3), np.uint8), np.zeros((120, 160), np.uint8)
    ids[30:70, 20:60] = 1
    cv2.circle(ids, (110, 60), 20, 2, -1)
    frame[ids == 1] = rng.integers(200, 240, ((ids == 1).sum(), 3))
    frame[ids == 2] = rng.integers(150, 190, ((ids == 2).sum(), 3))
    return frame, ids


def test_boxes_become_masks(scene):
    frame, ids = scene
    boxes = {1: (14, 25, 52, 50), 2: (85, 35, 50, 50)}
    found = masks.grabcut(frame, boxes)
    assert (found == ids).mean() > 0.99
    np.testing.assert_array_equal(found, masks.grabcut(frame, boxes))
    large = masks.grabcut(cv2.resize(frame, None, fx=8, fy=8), {1: (112, 200, 416, 400)})
    assert (large == cv2.resize(np.where(ids == 1, ids, 0), None, fx=8, fy=8, interpolation=0)).mean() > 0.99


def test_an_object_coloured_like_what_is_around_it_is_found():
    frame = np.random.default_rng(0).integers(60, 140, (120, 160, 3), dtype=np.uint8)
    assert (masks.grabcut(frame, {2: (46, 36, 60, 40)})[52:60, 70:82] == 2).all()


@pytest.mark.parametrize(
    "box, message",
    [
        ((100, 20, 100, 20), "160x120"),
        ((-5, 0, 20, 20), "160x120"),
        ((10, 10, 0, 20), "width,height"),
        ((0, 0, 160, 120), "whole frame"),
        ((100, 100, 2, 2), "no object"),
    ],
)
def test_boxes_without_an_object(scene, box, message):
    with pytest.raises(UserError, match=f"object 3.*{message}"):
        masks.grabcut(scene[0], {3: box})


def test_transparency_counts_in_grey_masks_too(tmp_path):
    pixels = np.full((30, 40, 2), 255, np.uint8)
    pixels[:, :20, 1] = 0
    np.testing.assert_array_equal(masks.read(saved(tmp_path / "a.png", pixels)), np.uint8(pixels[..., 1] > 0))


def test_ids_beside_transparency_are_the_same_in_grey_and_in_colours(ids, tmp_path):
    greys = np.array([[200, 0], [50, 255], [100, 255]], np.uint8)[ids]
    coloured = np.concatenate([np.repeat(greys[..., :1], 3, -1), greys[..., 1:]], -1)
    for name, pixels in {"grey.png": greys, "coloured.png": coloured}.items():
        np.testing.assert_array_equal(masks.read(saved(tmp_path / name, pixels)), 50 * ids, err_msg=name)


def test_a_colour_of_davis_does_not_join_an_object_of_another_colour(ids, tmp_path):
    known = {}
    one = np.uint8(ids == 1)
    for number, colour in enumerate([(10, 200, 30), tuple(PALETTE[1].tolist())], 1):
        found = masks.read(saved(tmp_path / f"{number}.png", painted(one, (0, 0, 0), colour)), known)
        np.testing.assert_array_equal(found, number * one)


def test_white_and_greys_on_a_transparent_ground_are_objects(ids, tmp_path):
    clear, first_row = (9, 9, 9, 0), np.array([0, 2, 1], np.uint8)[ids]
    for name, grey in {"a.png": (128, 128, 128, 255), "b.png": (*RED, 255)}.items():
        known = {}
        both = saved(tmp_path / name, painted(ids, clear, grey, (255, 255, 255, 255)))
        np.testing.assert_array_equal(masks.read(both, known), first_row)
        alone = saved(tmp_path / f"one_{name}", painted(ids * (ids == 1), clear, grey))
        np.testing.assert_array_equal(masks.read(alone, known), first_row * (ids == 1))


def test_a_colour_that_compression_changed_keeps_the_ids_of_davis(ids, tmp_path):
    known, both = {}, np.where(ids == 2, 5, ids)
    masks.read(saved(tmp_path / "a.png", PALETTE[np.uint8(ids == 1)]), known)
    masks.read(saved(tmp_path / "b.jpg", PALETTE[np.uint8(ids == 1)]), known)
    np.testing.assert_array_equal(masks.read(saved(tmp_path / "c.png", PALETTE[both]), known), both)


def test_void_is_no_object_among_the_colours_of_davis(ids, tmp_path):
    shown = np.where(ids == 2, np.uint8(255), ids)
    np.testing.assert_array_equal(masks.read(saved(tmp_path / "a.png", PALETTE[shown])), np.where(ids == 1, ids, 0))


def test_there_are_254_colours_in_all_masks_together(ids, tmp_path):
    grid = [(r, g, b) for r in range(0, 256, 42) for g in range(0, 256, 42) for b in range(0, 256, 42)]
    known = {colour: number for number, colour in enumerate(grid[2:256], 1)}
    path = saved(tmp_path / "a.png", painted(ids, (0, 0, 0), grid[300], grid[330]))
    with pytest.raises(UserError, match="a.png: with the masks before it, holds more than 254 colours"):
        masks.read(path, known)
