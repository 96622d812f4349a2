"""The two views of DUL: the authors' samples from their recorded draws, theta, padding, reproducibility."""

import json
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from core.augment import MEAN_COLOUR, normalise
from core.schema import Clip
from datasets.clip import sample_frames
from models.methods.dul import Draws, Views


def config(crop_px=32, resize_px=(40, 48), random_crop=True, flip=0.5, zoom=(0.5, 1.0), noise=0.0):
    return SimpleNamespace(
        crop_px=crop_px, resize_px=resize_px, random_crop=random_crop, flip=flip, zoom=zoom, noise=noise
    )


def smooth_frames(count, height, width):
    """Frames without fine detail, so that two ways of interpolating them agree."""
    y, x = np.mgrid[0:height, 0:width] / 60
    waves = [np.stack([np.sin(x + 2 * y + t), np.cos(x + t), np.sin(y - 2 * t)], -1) for t in range(count)]
    return [(127 + 120 * wave).astype(np.uint8) for wave in waves]


class Script:
    """Stands in for a numpy Generator: returns recorded draws and checks the arguments of each call.

    Some of the recorded ranges of integers include their upper end, some do not.
    """

    def __init__(self, notes):
        self.notes = []
        for name, asked, answer in notes:
            if name == "RandomCrop.get_params":  # arguments (width, height), result (top, left, side, side)
                width, height, (top, left, side, _) = *asked, answer
                self.notes += [("place", [0, height - side + 1], top), ("place", [0, width - side + 1], left)]
            else:
                self.notes.append((name, asked, answer))

    def _next(self, *names):
        name, asked, answer = self.notes.pop(0)
        assert name in names
        return asked, answer

    def integers(self, low, high):
        (noted_low, noted_high), answer = self._next("randint", "place")
        assert low == noted_low and high - noted_high in (0, 1) and low <= answer < high
        return int(answer)

    def permutation(self, count):
        (noted,), answer = self._next("torch.randperm")
        assert count == noted
        return answer

    def random(self):
        return self._next("random")[1]

    def uniform(self, low, high):
        asked, answer = self._next("uniform")
        assert asked == [low, high]
        return answer


@pytest.mark.parametrize("sample", ["s0", "s1", "s2"])
def test_authors_samples_from_their_draws(golden, sample):
    """The same draws in the same order give the same pixels and the same theta."""
    arrays = golden("g9_dul_datavideo")
    video = arrays["frames_uint8"]
    views = Views(config(int(arrays["crop"]), tuple(arrays["smallest"]), zoom=tuple(arrays["zoom"])))
    rng = Script(json.loads(str(arrays[f"{sample}_draws"])))

    clip = Clip(frames=int(arrays["video_len"]), gap=int(arrays["frame_gap"]), order="random", step="whole")
    made = views([video[i] for i in sample_frames(len(video), clip, rng)], rng)

    assert not rng.notes
    for name, stored in (("plain", "frames"), ("transformed", "frames_aug")):
        assert torch.equal(made[name], torch.from_numpy(arrays[f"{sample}_{stored}"]))
    torch.testing.assert_close(made["theta"], torch.from_numpy(arrays[f"{sample}_affine1"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("top, left", [(0, 0), (64, 0), (13, 50), (64, 64)])
def test_theta_warps_plain_onto_transformed(flipped, top, left):
    views = Views(config(128, (128, 128)))
    draws = Draws(128, 160, 0, 20, False, flipped, 0.5, top, left)
    made = views.apply(smooth_frames(2, 128, 160), draws)
    plain, transformed = made["plain"].float(), made["transformed"]
    grid = F.affine_grid(made["theta"], plain.shape, align_corners=False)
    warped = F.grid_sample(plain, grid, align_corners=False, padding_mode="border")
    assert (warped - transformed).abs().max() < 3  # grey levels
    wrong = F.grid_sample(plain, grid.flip(2), align_corners=False, padding_mode="border")
    assert (wrong - transformed).abs().max() > 60


def test_all_frames_of_a_clip_are_treated_alike():
    views, (frame,) = Views(config()), smooth_frames(1, 50, 70)
    made = views([frame] * 4, np.random.default_rng(0))
    for name in ("plain", "transformed", "theta"):
        assert all(torch.equal(made[name][0], other) for other in made[name])
    assert made["plain"].shape == made["transformed"].shape == (4, 3, 32, 32)
    assert made["theta"].shape == (4, 2, 3)


def test_padding_has_the_mean_colour_in_both_views():
    views = Views(config(crop_px=32, resize_px=(20, 20)))
    draws = Draws(20, 40, -7, 3, flip=True, zoom_flip=True, zoom=0.75, zoom_top=2, zoom_left=5)
    frames = [np.full((20, 40, 3), 255, np.uint8)] * 2
    made = {name: normalise(view) for name, view in views.apply(frames, draws).items() if name != "theta"}
    inside = torch.zeros(32, dtype=torch.bool)
    inside[7:27] = True
    assert (made["plain"][:, :, ~inside].abs() < 0.01).all() and (made["plain"][:, :, inside] > 2).all()
    # The zoom enlarges rows 2 to 25 to 32 rows, so the padding ends at row (7 - 2) / 0.75 = 6.7.
    assert (made["transformed"][:, :, :6].abs() < 0.01).all() and (made["transformed"][:, :, 8:] > 2).all()


@pytest.mark.parametrize("crop_px", [40, 96, 128, 200, 256])
@pytest.mark.parametrize("short", [36, 300])
def test_any_crop_against_a_plain_reference(crop_px, short):
    """The reference uses Pillow for every step.  Sides are powers of two and others, with padding and without."""
    views, rng = Views(config(crop_px, (short, short))), np.random.default_rng(crop_px)
    frames = smooth_frames(2, 60, 90)
    for _ in range(4):
        draws = views.draw(rng, frames[0].shape[:2])
        made = views.apply(frames, draws)
        for t, frame in enumerate(frames):
            size = (crop_px, crop_px)
            plain = Image.new("RGB", size, MEAN_COLOUR)
            scaled = Image.fromarray(frame).resize((draws.width, draws.height), Image.Resampling.BILINEAR)
            plain.paste(scaled, (-draws.left, -draws.top))
            plain = ImageOps.mirror(plain) if draws.flip else plain
            zoomed, side = ImageOps.mirror(plain) if draws.zoom_flip else plain, int(draws.zoom * crop_px)
            corner = (draws.zoom_left, draws.zoom_top, draws.zoom_left + side, draws.zoom_top + side)
            zoomed = zoomed.crop(corner).resize(size, Image.Resampling.BILINEAR)
            for name, picture in (("plain", plain), ("transformed", zoomed)):
                assert torch.equal(made[name][t], torch.from_numpy(np.array(picture)).permute(2, 0, 1))


def test_small_frames_lie_anywhere_inside_the_crop():
    views, rng = Views(config(crop_px=32, resize_px=(20, 20))), np.random.default_rng(0)
    tops = {views.draw(rng, (20, 40)).top for _ in range(500)}
    assert tops == set(range(-12, 1))


def test_draws_cover_their_ranges():
    views, rng = Views(config()), np.random.default_rng(0)
    draws = [views.draw(rng, (48, 96)) for _ in range(2000)]
    assert {d.height for d in draws} == set(range(40, 48))
    assert all(d.width == int(96 * d.height / 48) for d in draws)
    assert all(0 <= d.top <= d.height - 32 and 0 <= d.left <= d.width - 32 for d in draws)
    assert all(0.5 <= d.zoom < 1 and max(d.zoom_top, d.zoom_left) <= 32 - int(32 * d.zoom) for d in draws)
    assert any(d.zoom_top == 32 - int(32 * d.zoom) for d in draws)
    for flips in ([d.flip for d in draws], [d.zoom_flip for d in draws]):
        assert 0.45 < np.mean(flips) < 0.55


def test_without_chance_the_centre_is_cut():
    views = Views(config(crop_px=32, resize_px=(32, 32), random_crop=False, flip=0.0, zoom=(1.0, 1.0)))
    (frame,) = smooth_frames(1, 32, 60)
    made = views([frame], np.random.default_rng(3))
    expected = torch.from_numpy(frame[:, 14:46]).permute(2, 0, 1)
    assert torch.equal(made["plain"][0], expected) and torch.equal(made["transformed"][0], expected)
    torch.testing.assert_close(made["theta"][0], torch.eye(2, 3))


def test_flip_of_certainty_mirrors_both_views():
    still = Draws(32, 60, 0, 14, False, False, 1.0, 0, 0)
    views, frames = Views(config()), smooth_frames(1, 32, 60)
    plain, mirrored = views.apply(frames, still), views.apply(frames, replace(still, flip=True))
    assert torch.equal(plain["plain"].flip(-1), mirrored["plain"])
    assert torch.equal(plain["transformed"].flip(-1), mirrored["transformed"])
    assert Views(config(flip=1.0)).draw(np.random.default_rng(0), (32, 60)).flip


def test_noise_multiplies_brightness_contrast_and_saturation_of_each_view():
    flat, views = [np.full((50, 70, 3), 100, np.uint8)] * 3, Views(config(noise=0.5))
    made = [views(flat, np.random.default_rng(seed)) for seed in range(20)]
    greys = [int(grey) for sample in made for view in ("plain", "transformed") for (grey,) in [sample[view].unique()]]
    assert len(set(greys)) > 20 and 50 <= min(greys) < 70 and 130 < max(greys) <= 150  # alike in all frames of a view

    frames, rng = smooth_frames(2, 50, 70), np.random.default_rng(5)
    noisy, grey = views(frames, np.random.default_rng(5)), torch.tensor([0.2989, 0.587, 0.114])[:, None, None]
    pure = views.apply(frames, views.draw(rng, (50, 70)))
    for view in ("plain", "transformed"):
        brightness, contrast, saturation = rng.uniform(0.5, 1.5, 3)
        expected = (pure[view].float() * brightness).clamp(0, 255)
        mean = (expected * grey).sum(1, keepdim=True).mean((2, 3), keepdim=True)
        expected = (mean + contrast * (expected - mean)).clamp(0, 255)
        light = (expected * grey).sum(1, keepdim=True)
        expected = (light + saturation * (expected - light)).clamp(0, 255)
        assert (expected - noisy[view]).abs().max() < 4  # rounded after each of the three
    assert torch.equal(noisy["theta"], pure["theta"])


def test_same_generator_same_sample_also_after_pickling():
    frames = smooth_frames(3, 60, 50)
    views = Views(config())
    one = views(frames, np.random.default_rng([1, 2]))
    two = pickle.loads(pickle.dumps(views))(frames, np.random.default_rng([1, 2]))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_frames_of_other_sizes_in_a_clip_are_brought_to_the_first_ones():
    (small,) = smooth_frames(1, 30, 40)
    made = Views(config())([small.repeat(2, 0).repeat(2, 1), small], np.random.default_rng(0))
    assert (made["plain"][0].int() - made["plain"][1]).abs().max() < 12
