"""CRW: walks against their definition and the reference values; patches, network, pictures, published checkpoints."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import models
from core import checkpoint
from core.augment import normalise
from core.errors import UserError
from core.schema import as_plain
from datasets.clip import sample_frames
from models.backbones.resnet import Backbone
from models.methods import crw
from models.methods.crw import walk_of_one
from models.published import recognised
from tests.filling import state
from tests.small import crw_config


def nodes_of(clips=2, frames=4, nodes=5, channels=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(clips, frames, nodes, channels, generator=generator), dim=-1)


def batch_of(clips=2, frames=4, nodes=4, side=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (clips, frames, nodes, 3, side, side)
    return {"patches": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)}


@pytest.fixture(scope="module")
def method():
    torch.manual_seed(1)
    return crw.Method(crw_config())


def oracle(nodes, temperature):
    """Reference: losses and shares of returned walkers by definition, one walker at a time, in float64."""
    q = nodes.double().numpy()
    B, T, N, _ = q.shape
    losses, returned = [], []
    for last in range(2, T):
        route = [*range(last + 1), *reversed(range(last))]
        errors, home = [], 0
        for b in range(B):
            for n in range(N):
                chance = np.eye(N)[n]
                for here, there in zip(route, route[1:]):
                    after = np.zeros(N)
                    for i in range(N):
                        odds = np.array([np.exp(q[b, here, i] @ q[b, there, j] / temperature) for j in range(N)])
                        after += chance[i] * odds / odds.sum()
                    chance = after
                errors.append(-np.log(chance[n]))
                home += chance.argmax() == n
        losses.append(np.mean(errors))
        returned.append(home / (B * N))
    return losses, returned


def test_walks_are_what_the_definition_says():
    nodes = nodes_of(frames=5)
    losses, returned = crw.walks(*crw.steps(nodes, 0.2))
    wanted, shares = oracle(nodes, 0.2)
    assert len(wanted) == 3 and 0 < min(shares) < 1
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    np.testing.assert_allclose(returned, shares, rtol=1e-6)


def test_walks_agree_with_the_reference(golden):
    reference = golden("g11_crw_walk")
    q = torch.from_numpy(reference["q_BCTN"]).requires_grad_()
    losses, returned = crw.walks(*crw.steps(q.permute(0, 2, 3, 1), float(reference["temperature"])))
    losses.mean().backward()
    np.testing.assert_allclose(losses.detach(), reference["cycles"], atol=1e-5)
    np.testing.assert_allclose(losses.mean().item(), reference["loss"], atol=1e-5)
    np.testing.assert_allclose(returned, reference["accuracies"], atol=1e-6)
    np.testing.assert_allclose(q.grad, reference["grad_q_BCTN"], atol=1e-6)


def test_the_loss_of_several_processes_is_the_mean_over_their_clips():
    nodes = nodes_of(clips=4).requires_grad_()
    loss = lambda clips: crw.walks(*crw.steps(clips, 0.2))[0].mean()
    (whole,) = torch.autograd.grad(loss(nodes), nodes)
    parts = torch.autograd.grad((loss(nodes[:2]) + loss(nodes[2:])) / 2, nodes)[0]
    torch.testing.assert_close(parts, whole, atol=1e-7, rtol=1e-5)


def test_dropped_edges_are_drawn_anew_for_either_direction():
    nodes = nodes_of(nodes=30)
    torch.manual_seed(3)
    there, back = crw.steps(nodes, 0.5, dropout=0.25)
    torch.manual_seed(3)
    for chances, alike in ((there, nodes[:, :-1] @ nodes[:, 1:].mT), (back, nodes[:, 1:] @ nodes[:, :-1].mT)):
        kept = torch.rand(alike.shape) >= 0.25
        odds = kept * torch.exp(alike / 0.5)
        torch.testing.assert_close(chances, odds / odds.sum(-1, keepdim=True))
        assert 0.2 < (chances == 0).float().mean() < 0.3


def test_forward_is_the_loss_of_the_patches_frame_by_frame(method):
    batch, network = batch_of(clips=1), Backbone("res4", "reflect")
    for part in (network, method):
        part.eval()
    network.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in method.extractor.state_dict().items()}
        | {f"layer4.{k}": v for k, v in method.layer4.state_dict().items()}
    )
    nodes = torch.zeros(1, 4, 4, 8)
    with torch.no_grad():
        for t in range(4):
            images = normalise(batch["patches"][0, t], (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
            for n, maps in enumerate(network(images)["res4"]):
                vector = method.head(maps.mean((1, 2)))
                nodes[0, t, n] = vector / vector.norm()
        losses = method(batch)
    wanted, shares = oracle(nodes, 0.05)
    np.testing.assert_allclose([losses.terms["cycle_1"], losses.terms["cycle_2"]], wanted, rtol=1e-3)
    assert (losses.terms["returned_1"], losses.terms["returned_2"]) == tuple(torch.tensor(shares))
    assert losses.total.item() == pytest.approx(np.mean(wanted), rel=1e-3)


def test_edges_are_dropped_in_training_alone(method, monkeypatch):
    asked, steps = [], crw.steps
    monkeypatch.setattr(crw, "steps", lambda *arguments: asked.append(arguments[-1]) or steps(*arguments))
    for mode in (True, False):
        method.train(mode)(batch_of())
    assert asked == [0.1, 0.0]


def test_every_weight_learns(method):
    method.train()(batch_of()).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    with pytest.raises(UserError, match=r"clip\.frames = 2"):
        method(batch_of(frames=2))


def test_patches_are_a_grid_of_jittered_crops():
    config = crw_config(crop_px=64, patch_px=32, stride_px=16)
    rows = np.broadcast_to(np.arange(100, 228, dtype=np.uint8)[:, None, None], (128, 128, 3))
    frames = [np.ascontiguousarray(rows), np.ascontiguousarray(rows.transpose(1, 0, 2))]
    before = torch.get_rng_state()
    patches = crw.Views(config)(frames, np.random.default_rng(0))["patches"]
    assert (patches.dtype, tuple(patches.shape)) == (torch.uint8, (2, 9, 3, 32, 32))
    down, right = patches.float().mean((2, 3, 4)).view(2, 3, 3)
    assert (down.diff(dim=0) > 8).all() and (right.diff(dim=1) > 8).all()
    # without jitter, patches side by side would show the same rows of the frame
    assert (down.diff(dim=1) != 0).any(dim=1).all()
    assert torch.equal(torch.get_rng_state(), before)
    again, other = (crw.Views(config)(frames, np.random.default_rng(seed))["patches"] for seed in (0, 1))
    assert torch.equal(patches, again) and not torch.equal(patches, other)


def test_patches_show_the_share_that_the_configuration_says():
    """The frame has one grey level per row; a patch of a quarter of its area shows half of its rows."""
    config = crw_config(crop_px=128, patch_px=64, stride_px=64, crop_area=(1, 1), patch_area=(0.25, 0.25))
    ramp = np.ascontiguousarray(np.broadcast_to(np.arange(128, dtype=np.uint8)[:, None, None], (128, 128, 3)))
    patches = crw.Views(config)([ramp] * 3, np.random.default_rng(0))["patches"].float()
    spans = (patches.amax((2, 3, 4)) - patches.amin((2, 3, 4))) / 64
    assert spans.min() > 0.4 and spans.max() < 0.61


def test_pictures_show_patches_and_walk(method):
    patches = batch_of(clips=1, frames=3, nodes=9, side=32)["patches"]
    (sheet,) = method.eval().pictures({"patches": patches}).values()
    assert sheet.dtype == torch.uint8 and tuple(sheet.shape) == (3, 3 * 96, 3 * 96)
    onwards = torch.eye(9).roll(1, dims=1).expand(2, 9, 9)  # from every node to the next, and back
    sheet = walk_of_one(patches[0], onwards, onwards.mT)
    tile = lambda row, t, n: sheet[:, 96 * row + 32 * (n // 3) :, 96 * t + 32 * (n % 3) :][:, :32, :32]
    assert torch.equal(tile(0, 1, 5), patches[0, 1, 5])
    start = tile(0, 0, 4)
    assert (start[:, 0] == 255).all() and torch.equal(start[:, 2:-2, 2:-2], patches[0, 0, 4, :, 2:-2, 2:-2])
    for row in (1, 2):
        for t, n in np.ndindex(3, 9):
            share = 1.0 if n == 4 + t else 0.2
            torch.testing.assert_close(tile(row, t, n).float(), patches[0, t, n] * share, atol=0.6, rtol=0)


def published(layer4=True, head=512):
    """A checkpoint in the format of CRW's authors, filled by the rule of the reference values."""
    own = Backbone("res4" if layer4 else "res3", "reflect").state_dict()
    shapes = {f"encoder.model.{name}": value.shape for name, value in own.items()}
    return {"model": state({**shapes, "selfsim_fc.0.weight": (128, head), "selfsim_fc.0.bias": (128,)}), "epoch": 25}


def test_a_training_starts_from_a_published_snapshot(tmp_path):
    path, content = tmp_path / "pretrained.pth", published()
    torch.save(content, path)
    method, model = crw.Method(crw_config(embedding=128)), content["model"]
    assert models.initialise(method, path) == []
    for ours, theirs in {
        "extractor.backbone.layer3.1.conv2.weight": "encoder.model.layer3.1.conv2.weight",
        "layer4.0.conv1.weight": "encoder.model.layer4.0.conv1.weight",
        "head.weight": "selfsim_fc.0.weight",
        "head.bias": "selfsim_fc.0.bias",
    }.items():
        assert torch.equal(method.state_dict()[ours], model[theirs])
    torch.save(published(layer4=False, head=256), path)
    fresh = models.initialise(method, path)
    assert {name.split(".")[0] for name in fresh} == {"layer4", "head"}


def test_what_is_trained_tracks_with_layer3_alone(tmp_path, method):
    config = models.read_config(models.ROOT / "configs/crw_sample.yaml", ["method.embedding=8"])
    checkpoint.save(tmp_path / "best.pth", {"method": method.state_dict(), "config": as_plain(config)})
    extractor = models.load(tmp_path / "best.pth")
    assert (extractor.layers, extractor.protocol, extractor.mean[0]) == (("res3",), "DUL", 0.4914)
    assert sum(p.numel() for p in extractor.parameters()) == 2_782_784
    frames = torch.rand(1, 3, 32, 40)
    with torch.no_grad():
        images = normalise(frames, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
        wanted = F.normalize(method.eval().extractor.maps(images, "res3"), dim=1)
        assert torch.equal(extractor(frames, "res3"), wanted)
    assert recognised(published()).make().mean == (0.485, 0.456, 0.406), "as their authors evaluate"


def test_values_of_the_paper():
    c = models.read_config(models.ROOT / "configs/crw_kinetics.yaml")
    m = c.method
    assert (m.temperature, m.edge_dropout, m.embedding) == (0.05, 0.1, 128)
    assert (m.crop_px, m.crop_area, m.patch_px, m.stride_px, m.patch_area) == (256, (0.8, 0.95), 64, 32, (0.7, 0.9))
    assert (c.clip.frames, c.clip.fps, c.clip.order, c.clip.clips_per_video) == (4, 8, "kept", 5)
    assert (c.optim.name, c.optim.lr, c.optim.weight_decay, c.data.batch_size) == ("adam", 1e-4, 0, 20)
    assert (c.schedule.epochs, c.schedule.factor, c.schedule.every_epochs) == (25, 0.3, 20)


@pytest.mark.parametrize("length, gap", [(100, 8), (20, 5), (4, 1)])
def test_clips_of_frame_folders_are_every_eighth_frame_or_closer(length, gap):
    settings = ["data.reader=frames", "clip.fps=null", "clip.gap=8", "clip.step=whole"]
    clip = models.read_config(models.ROOT / "configs/crw_kinetics.yaml", settings).clip
    assert set(np.diff(sample_frames(length, clip, np.random.default_rng(0)))) == {gap}


def test_config_refuses_what_cannot_be():
    for changes, said in [
        ({"stride_px": 17}, "method.stride_px = 17: must be at most method.crop_px - method.patch_px = 16"),
        ({"edge_dropout": 1.0}, "method.edge_dropout"),
        ({"patch_area": (0.9, 0.7)}, "method.patch_area"),
    ]:
        with pytest.raises(UserError, match=said):
            crw_config(**changes)
