"""Resizing, cropping and normalisation of frames."""

import numpy as np
import pytest
import torch
from PIL import Image

from core import augment


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(37, 50), (100, 60), (64, 64), (13, 200), (77, 41)])
@pytest.mark.parametrize("new_size", [(64, 64), (256, 256), (280, 504), (33, 20), (64, 20), (128, 33)])
def test_resize_gives_the_pixels_of_pillow(size, new_size):
    """resize uses torch to enlarge to powers of two, and Pillow for all other sizes."""
    frame = noise(*size)
    expected = np.asarray(Image.fromarray(frame).resize(new_size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(augment.resize(frame, *new_size), expected)


def test_resize_takes_part_of_a_frame():
    frame = noise(60, 80)
    part = frame[10:50, 5:45]
    np.testing.assert_array_equal(augment.resize(part, 64, 64), augment.resize(part.copy(), 64, 64))


@pytest.mark.parametrize("size, expected", [((72, 128), (76, 135)), ((128, 72), (135, 76)), ((50, 50), (76, 76))])
def test_short_side_size(size, expected):
    assert augment.short_side_size(*size, 76) == expected


def test_crop_inside_is_a_part():
    frame = noise(40, 50)
    np.testing.assert_array_equal(augment.crop(frame, 3, 7, 32), frame[3:35, 7:39])


def test_crop_beyond_the_frame_is_filled():
    frame = noise(20, 30)
    cropped = augment.crop(frame, -5, 4, 32, fill=(1, 2, 3))
    np.testing.assert_array_equal(cropped[5:25, :26], frame[:, 4:30])
    cropped[5:25, :26] = (1, 2, 3)
    assert (cropped == (1, 2, 3)).all()


def test_normalise_takes_bytes_and_floats():
    pixels = torch.from_numpy(noise(8, 9)).permute(2, 0, 1)[None]
    normal = augment.normalise(pixels)
    floats = pixels / 255
    torch.testing.assert_close(normal, augment.normalise(floats))
    torch.testing.assert_close(floats, pixels / 255)  # the argument is unchanged
    red = (pixels[0, 0, 2, 3].item() / 255 - 0.485) / 0.229
    assert normal[0, 0, 2, 3].item() == pytest.approx(red, abs=1e-6)
    assert normal.is_contiguous()


def test_mean_colour_is_nearly_zero():
    frame = torch.tensor(augment.MEAN_COLOUR, dtype=torch.uint8)[:, None, None]
    assert augment.normalise(frame).abs().max() < 0.5 / 255 / min(augment.IMAGENET_STD) + 1e-6


def test_theta_of_the_authors_matrices(golden):
    """The inverse matrices of g5 at angle 0: the crop is (dy, dx) px off the centre, the scale is 1 / zoom."""
    arrays, side, compared = golden("g5_affine"), 256, 0
    for (dy, dx, angle, scale, sign), expected in zip(arrays["params"], arrays["inv_256x256"]):
        if angle == 0:
            zoom_px = side / scale
            corner = [(side - zoom_px) / 2 + offset for offset in (dy, dx)]
            theta = augment.theta_flip_zoom(sign < 0, 1 / scale, *corner, zoom_px, side)
            torch.testing.assert_close(theta, torch.from_numpy(expected), atol=1e-6, rtol=0)
            compared += 1
    assert compared == 5
