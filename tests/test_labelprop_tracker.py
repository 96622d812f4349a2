"""Tracker: whole videos, videos frame by frame, the calls of its extractor, and its arguments."""

import threading
from contextlib import closing
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core import protocols
from core.errors import UserError
from labelprop import Tracker
from labelprop.readout import to_ids
from models.backbones.resnet import ResNet
from tests.test_labelprop_pipeline import counting_frames, settled
from tests.test_labelprop_video import DUL, INO, colours, moving, segment_video


class Colours(nn.Module):
    """An extractor of mean colours; the layer `fine` brightens the frames first."""

    layers = ("plain", "fine")
    protocol, changes = "INO", {}

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3, 3, 3))
        self.calls = []

    def cell_px(self, layer):
        return {"plain": 8, "fine": 4}[layer]

    def forward(self, frames, layer):
        self.calls.append((layer, len(frames), torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return colours(frames * self.weight.mean() * (1.2 if layer == "fine" else 1))


def stepped(tracker, frames, masks):
    return np.stack([tracker.step(frame, masks.get(t)) for t, frame in enumerate(frames)])


@pytest.mark.parametrize("cfg", [replace(DUL, radius=3), INO])
def test_frame_by_frame_gives_the_masks_of_the_whole_video(cfg):
    frames, truth = zip(*moving(8, 64, 48, enters=4))
    tracker, masks = Tracker(Colours(), protocol=cfg, device="cpu", batch=3), {1: truth[1], 4: truth[4]}
    whole = np.stack(list(tracker.segment(iter(frames), masks)))
    np.testing.assert_array_equal(whole, np.stack(list(segment_video(frames, masks, colours, cfg))))
    assert whole.dtype == np.uint8 and [set(np.unique(ids)) for ids in whole[[0, 3, 7]]] == [{0}, {0, 1}, {0, 1, 2}]
    for _ in range(2):
        np.testing.assert_array_equal(stepped(tracker, frames, masks), whole)
        assert tracker.step(frames[0], truth[0]).dtype == np.uint8  # continues the same video
        tracker.reset()
    np.testing.assert_array_equal(stepped(tracker, frames, masks | {6: truth[4] % 2}), whole)  # no new object in it


def test_a_video_in_between_does_not_disturb_the_live_one():
    frames, truth = zip(*moving(4, 64, 48))
    tracker = Tracker(Colours(), protocol=DUL, device="cpu")
    alone = stepped(tracker, frames, {0: truth[0]})
    tracker.reset()
    for t, frame in enumerate(frames):
        np.testing.assert_array_equal(tracker.step(frame, truth[0] if t == 0 else None), alone[t])
        list(tracker.segment(frames[::-1][:2], {0: truth[3]}))


def test_a_segmented_video_that_is_closed_leaves_no_thread():
    frames, truth = zip(*moving(30, 64, 48))
    before, read = set(threading.enumerate()), []
    tracker = Tracker(Colours(), protocol=DUL, device="cpu", batch=2)
    with closing(tracker.segment(counting_frames(frames, read), {0: truth[0]})) as results:
        next(results)
    assert settled(read) <= 2 * 4 and set(threading.enumerate()) <= before


def test_defaults_are_the_extractors():
    extractor = Colours().train()
    tracker = Tracker(extractor)
    assert (tracker.layer, tracker.propagation) == ("plain", replace(protocols.named("INO"), multiple=8))
    assert tracker.device.type in ("cpu", "cuda") and tracker.precision == "fp32"
    assert not extractor.training and extractor.weight.is_contiguous(memory_format=torch.channels_last)
    assert Tracker(extractor, "fine", "DINO", "cpu", max_side=64).propagation == replace(
        protocols.named("DINO"), multiple=4, max_side=64
    )
    assert Tracker(extractor, protocol=DUL, device=torch.device("cpu")).propagation == DUL


def test_a_live_video_whose_features_are_no_numbers_ends():
    frames, truth = zip(*moving(3, 64, 48))
    extractor = Colours()
    tracker = Tracker(extractor, protocol=DUL, device="cpu")
    tracker.step(frames[0], truth[0])
    extractor.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        tracker.step(frames[1])


class Normed(Colours):
    """Colours behind two batch norms and a square root; `coarse` is a batch norm of maps no finer than the cells."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.coarse = nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3)

    def forward(self, frames, layer):
        cells = self.coarse(F.avg_pool2d(frames, 8))
        return super().forward(self.second(self.first(frames).abs().sqrt()) + cells.mean(), layer)


def averaged(norm, inputs_THWC):
    """What a batch norm with the mean of the frames' own means and variances gives, by plain loops."""
    means = np.mean([frame.mean((0, 1)) for frame in inputs_THWC], axis=0)
    variances = np.mean([frame.var((0, 1), ddof=1) for frame in inputs_THWC], axis=0)
    return lambda frame: (frame - means) / np.sqrt(variances + norm.eps)


def test_an_adapted_tracker_has_a_copy_whose_batch_norm_is_the_videos():
    extractor, frames = Normed(), np.random.default_rng(0).integers(0, 256, (6, 16, 24, 3), np.uint8)
    tracker, asked = Tracker(extractor, protocol=replace(DUL, norm_frames=3), device="cpu"), []
    first, before = tracker.features(_inputs(frames[1])), extractor.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    other = tracker.adapted(6, lambda t: frames[t] // 2)
    adapted = tracker.adapted(6, lambda t: asked.append(t) or frames[t])
    assert asked == [0, 2, 5]

    eps, chosen = extractor.first.eps, frames[[0, 2, 5]] / 255
    # While it is measured, the second batch norm sees frames normalised by their own means and variances.
    own = [(frame - frame.mean((0, 1))) / np.sqrt(frame.var((0, 1)) + eps) for frame in chosen]
    inner = np.sqrt(np.abs(averaged(extractor.first, chosen)(frames[1] / 255)))
    outer = averaged(extractor.second, np.sqrt(np.abs(own)))(inner)
    kept = (frames[1] / 255).mean() / np.sqrt(1 + eps)  # coarse maps keep the means and variances of the training
    expected = colours(torch.from_numpy(outer + kept).permute(2, 0, 1)[None].float())
    torch.testing.assert_close(adapted.features(_inputs(frames[1])), expected)
    assert not torch.allclose(other.features(_inputs(frames[1])), expected)
    again = other.adapted(6, lambda t: frames[t])  # the video before is forgotten
    torch.testing.assert_close(again.features(_inputs(frames[1])), expected)

    torch.testing.assert_close(tracker.features(_inputs(frames[1])), first)  # the network itself stays as it was
    assert all(torch.equal(value, before[name]) for name, value in extractor.state_dict().items())
    assert not extractor.training and extractor.first.momentum == 0.1


def test_duls_network_adapts_the_batch_norms_of_its_stem_and_layer1():
    network, frames = ResNet().eval(), np.random.default_rng(0).integers(0, 256, (3, 48, 30, 3), np.uint8)
    adapted = Tracker(network, protocol=replace(DUL, norm_frames=3), device="cpu").adapted(3, lambda t: frames[t])
    expected = deepcopy(network)
    for part in (expected.backbone.bn1, *(getattr(b, n) for b in expected.backbone.layer1 for n in ("bn1", "bn2"))):
        part.reset_running_stats()
        part.train().momentum = None
    with torch.no_grad():
        for frame in frames:
            expected(_inputs(frame), "res4")
        expected = expected.eval()(_inputs(frames[0]), "res4")
        assert not torch.allclose(network(_inputs(frames[0]), "res4"), expected, atol=1e-3)
    torch.testing.assert_close(adapted.features(_inputs(frames[0])), expected)


def _inputs(frame):
    return torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255


def test_an_adapted_tracker_follows_as_its_features_say():
    frames, truth = zip(*moving(5, 64, 48))
    cfg = replace(DUL, radius=3, norm_frames=2)
    adapted = Tracker(Normed(), protocol=cfg, device="cpu", batch=2).adapted(5, lambda t: frames[t])
    expected = np.stack(list(segment_video(frames, {0: truth[0]}, adapted.features, cfg)))
    np.testing.assert_array_equal(np.stack(list(adapted.segment(iter(frames), {0: truth[0]}))), expected)
    np.testing.assert_array_equal(stepped(adapted, frames, {0: truth[0]}), expected)


def test_frames_to_adapt_to_of_a_short_video_and_of_one_that_is_damaged():
    frames, asked = np.random.default_rng(0).integers(0, 256, (9, 16, 24, 3), np.uint8), []

    def frame(t):
        asked.append(t)
        if t == 8:
            raise UserError("damaged")
        return frames[t] if t != 4 else frames[t, :8]

    tracker = Tracker(Normed(), protocol=replace(DUL, norm_frames=3), device="cpu")
    damaged, short = tracker.adapted(9, frame), tracker.adapted(1, frame)
    assert asked == [0, 4, 8, 0]
    torch.testing.assert_close(damaged.features(_inputs(frames[1])), short.features(_inputs(frames[1])))


@pytest.mark.parametrize("extractor, count, length", [(Normed(), 0, 9), (Colours(), 4, 9), (Normed(), 4, 0)])
def test_without_frames_or_batch_norm_nothing_is_adapted(extractor, count, length):
    tracker = Tracker(extractor, protocol=replace(DUL, norm_frames=count), device="cpu")
    assert tracker.adapted(length, None) is tracker


@pytest.mark.parametrize("precision, autocast", [("fp32", False), ("bf16", True)])
def test_the_network_runs_in_the_precision_asked_for(precision, autocast):
    extractor = Colours()
    tracker = Tracker(extractor, "fine", device="cpu", precision=precision)
    assert tracker.features(torch.rand(2, 3, 16, 16)).dtype == torch.float32
    assert extractor.calls == [("fine", 2, autocast, False)]
    assert tracker.precision == ("bf16" if autocast else "fp32")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"layer": "fines"}, "layer = 'fines': .*plain, fine.*did you mean 'fine'"),
        ({"protocol": "DLU"}, "protocol = 'DLU'.*'DUL'"),
        ({"precision": "fp8"}, "precision = 'fp8'.*bf16"),
        ({"device": "gpu"}, "device = 'gpu'.*cuda"),
        ({"device": "meta"}, "device = 'meta'.*cuda"),
        ({"batch": 0}, "batch = 0"),
        ({"max_side": 3}, "max_side = 3"),
        ({"backend": "fast"}, "backend = 'fast'.*windowed"),
    ],
)
def test_arguments_that_are_not_allowed(arguments, message):
    with pytest.raises(UserError, match=message):
        Tracker(Colours(), **{"device": "cpu", **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_a_gpu_that_is_not_there(device):
    with pytest.raises(UserError, match="no CUDA device"):
        Tracker(Colours(), device=device)


def test_frames_and_masks_that_do_not_fit_a_live_video():
    (first, ids), (second, _) = moving(2, 64, 48)
    tracker = Tracker(Colours(), protocol=DUL, device="cpu")
    with pytest.raises(UserError, match="frame 0 is 40x64, its frame 48x64"):
        tracker.step(first, ids[:, :40])
    assert (tracker.step(first, ids) == ids).all()  # the error changed nothing
    with pytest.raises(UserError, match="frame 1 is 40x64, the frames before it 48x64"):
        tracker.step(second[:, :40])
    with pytest.raises(UserError, match="given at frame 1 is float64"):
        tracker.step(second, ids / 2)
    assert set(np.unique(tracker.step(second))) == {0, 1, 2}


def test_a_compiled_extractor_that_does_not_compile_is_told(monkeypatch):
    def compile(module):
        def fails(*_):
            raise torch._dynamo.exc.TorchDynamoException("no compiler\nmore")

        return fails

    monkeypatch.setattr(torch, "compile", compile)
    tracker = Tracker(Colours(), device="cpu", compiled=True)
    with pytest.raises(UserError, match=r"--compile: .*\(no compiler\)"):
        tracker.features(torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize("cfg", [replace(DUL, radius=3), INO, replace(INO, readout="nearest", short_side=None)])
def test_confidence_is_the_share_of_the_id_in_all_soft_masks(cfg):
    frames, truth = zip(*moving(6, 64, 48, enters=3))
    tracker, masks = Tracker(Colours(), protocol=cfg, device="cpu", batch=2), {1: truth[1], 3: truth[3]}
    plain = list(tracker.segment(frames, masks))
    pairs = list(tracker.segment(frames, masks, confidence=True))
    for t, (ids, confidence) in enumerate(pairs):
        np.testing.assert_array_equal(ids, plain[t])
        assert confidence.dtype == np.float32 and confidence.shape == ids.shape
        stepped_ids, stepped_confidence = tracker.step(frames[t], masks.get(t), confidence=True)
        np.testing.assert_array_equal(stepped_ids, ids)
        np.testing.assert_array_equal(stepped_confidence, confidence)
    assert (pairs[0][1] == 1).all()  # no object yet
    objects = [1, 1, 2, 2, 2]
    for (_, confidence), count in zip(pairs[2:], objects[1:]):
        assert 1 / (count + 1) - 1e-6 <= confidence.min() < confidence.max() <= 1 + 1e-6


def test_confidence_of_known_soft_masks():
    soft = torch.tensor([0.2, 0.6, 0.0]).view(3, 1, 1).expand(3, 4, 4)
    for readout in ("smooth", "grid", "nearest"):
        ids, confidence = to_ids(soft, [0, 5, 9], (8, 12), (8, 8), replace(DUL, readout=readout), confidence=True)
        assert (ids == 5).all() and ids.shape == confidence.shape == (8, 12)
        torch.testing.assert_close(confidence, torch.full((8, 12), 0.75))
