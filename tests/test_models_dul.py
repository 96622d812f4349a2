"""DUL: losses by definition and by reference values, the network, the official snapshot, other checkpoints."""

import pytest
import torch
import torch.nn.functional as F
import torchvision

import models
from core import checkpoint
from core.augment import normalise
from core.errors import UserError
from core.schema import as_plain
from models.backbones.resnet import Backbone
from models.layers import gather_cells, warp
from models.methods.dul import Method, dul_losses, grid_cells, self_training
from models.published import recognised
from tests.filling import images, state
from tests.small import dul_config

GOLDENS = ("g4_loss_b2t3_16", "g4_loss_b2t5_32")


def from_golden(arrays, dtype=torch.float32):
    t = {name: torch.from_numpy(value) for name, value in arrays.items() if getattr(value, "ndim", 0)}
    B, T = int(arrays["B"]), int(arrays["T"])
    x1 = t["x1_normed"].to(dtype).requires_grad_()
    first = x1.unflatten(0, (B, T + 1))
    transformed = torch.cat([first[:, T:], t["x2_normed"].to(dtype).unflatten(0, (B, T - 1))], dim=1)
    theta = t["affine1"].to(dtype).unflatten(0, (B, T))
    indices = t["index_main"].flatten(1), t["index_ref_x"].flatten(1)
    transformed = labelled(transformed, gather_cells(first[:, 0], indices[0]).detach(), t["pseudo"])
    return x1, (first[:, :T], transformed, theta, *indices, 0.05), t


def labelled(transformed, anchors_BnD, pseudo):
    """Replace cells of transformed [B,T,D,h,w] that are not stored (zeros) by the anchor of their label."""
    B, T = transformed.shape[:2]
    labels = pseudo.long().view(B, T, *pseudo.shape[1:]) - torch.arange(B).view(B, 1, 1, 1) * anchors_BnD.shape[1]
    anchors = torch.stack([own[label] for own, label in zip(anchors_BnD, labels)]).movedim(-1, 2)
    return torch.where((transformed == 0).all(2, keepdim=True), anchors, transformed)


@pytest.mark.parametrize("name", GOLDENS)
def test_losses_and_gradient_agree_with_reference(golden, name):
    arrays = golden(name)
    x1, arguments, t = from_golden(arrays)
    terms = dul_losses(*arguments)
    assert terms["temp"].item() == pytest.approx(float(arrays["temp"]), abs=1e-5)
    assert terms["cross_key"].item() == pytest.approx(float(arrays["cross_key"]), abs=1e-5)
    main = terms["temp"] + 0.1 * terms["cross_key"]
    assert main.item() == pytest.approx(float(arrays["main"]), abs=1e-5)
    main.backward()
    stored = t["grad_x1_normed"]
    torch.testing.assert_close(x1.grad[:, :: x1.shape[1] // stored.shape[1]], stored, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", GOLDENS)
def test_pseudo_labels_agree_with_reference(golden, name):
    _, arguments, t = from_golden(golden(name))
    plain, transformed, theta, anchors, _, temperature = arguments
    own = gather_cells(plain[:, 0], anchors)
    logits, labels = self_training(plain, transformed, theta, own, temperature)
    assert torch.equal(labels.flatten(0, 1).view_as(t["pseudo"]).to(torch.uint8), t["pseudo"])
    if "vals" in t:  # stored for every other row and column
        ours = logits.flatten(0, 1).transpose(1, 2).unflatten(2, plain.shape[-2:])[..., ::2, ::2]
        torch.testing.assert_close(ours.detach(), t["vals"], atol=2e-5, rtol=0)


def oracle(plain, transformed, theta, anchor_index, reference_index, tau):
    """The losses by their definition, in loops over cells."""
    B, T, D, h, w = plain.shape
    cell = lambda maps, p: maps[:, p // w, p % w]
    anchors = [(b, cell(plain[b, 0], p)) for b in range(B) for p in anchor_index[b].tolist()]
    terms = []
    for b in range(B):
        for t in range(1, T):
            seen = warp(plain[b, t][None], theta[b, t][None])[0]
            for p in range(h * w):
                logits = torch.stack([cell(seen, p) @ a for _, a in anchors]) / tau
                scores = [cell(transformed[b, t], p) @ a if owner == b else -9e9 for owner, a in anchors]
                label = max(range(len(anchors)), key=lambda i: float(scores[i]))
                terms.append(logits.logsumexp(0) - logits[label])
    queries, targets = [], []
    for b in range(B):
        seen = warp(plain[b, 0][None], theta[b, 0][None])[0]
        queries += [cell(seen, p) for p in reference_index[b].tolist()]
        targets += [cell(transformed[b, 0], p) for p in reference_index[b].tolist()]
    cross = []
    for i, query in enumerate(queries):
        logits = torch.stack([query @ target for target in targets]) / tau
        cross.append(logits.logsumexp(0) - logits[i])
    return torch.stack(terms).mean(), torch.stack(cross).mean()


def test_losses_agree_with_plain_loops():
    generator = torch.Generator().manual_seed(0)
    plain, transformed = (
        F.normalize(torch.randn(2, 3, 5, 6, 7, generator=generator, dtype=torch.float64), dim=2) for _ in range(2)
    )
    theta = torch.tensor([[-0.7, 0.0, 0.2], [0.0, 0.7, -0.1]], dtype=torch.float64).expand(2, 3, 2, 3)
    anchors, cells = (torch.randint(42, (2, n), generator=generator) for n in (5, 3))
    terms = dul_losses(plain, transformed, theta, anchors, cells, 0.05)
    temp, cross = oracle(plain, transformed, theta, anchors, cells, 0.05)
    torch.testing.assert_close(terms["temp"], temp)
    torch.testing.assert_close(terms["cross_key"], cross)


def test_only_labels_come_from_later_transformed_frames():
    plain = F.normalize(torch.randn(1, 3, 4, 4, 4), dim=2).requires_grad_()
    transformed = F.normalize(torch.randn(1, 3, 4, 4, 4), dim=2).requires_grad_()
    theta = torch.eye(2, 3).expand(1, 3, 2, 3)
    terms = dul_losses(plain, transformed, theta, torch.tensor([[0, 5]]), torch.tensor([[1, 2]]), 0.05)
    sum(terms.values()).backward()
    assert transformed.grad[:, 0].abs().sum() > 0
    assert transformed.grad[:, 1:].abs().sum() == 0


def test_losses_keep_float32_under_autocast(monkeypatch):
    torch.manual_seed(1)
    method = Method(dul_config(crop_px=128))
    features = [F.normalize(torch.randn(2, 3, 16, 16, 16) + 2, dim=2) for _ in range(2)]
    monkeypatch.setattr(method, "_embed", lambda *_: features)
    theta = torch.tensor([[-0.71, 0.0, 0.13], [0.0, 0.71, -0.17]]).expand(2, 3, 2, 3)
    pixels = torch.zeros(2, 3, 3, 128, 128, dtype=torch.uint8)
    batch = {"plain": pixels, "transformed": pixels, "theta": theta}
    cells = method._draw_cells(batch["plain"])
    expected = method._losses(batch, *cells)[0]
    with torch.autocast("cpu", torch.bfloat16):
        losses = method._losses(batch, *cells)[0]
    assert torch.equal(losses.total, expected.total)
    assert all(torch.equal(losses.terms[name], term) for name, term in expected.terms.items())


def test_grid_cells_are_a_uniform_grid_inside():
    torch.manual_seed(0)
    cells = grid_cells(200, 16, 4, "cpu")
    rows, columns = (cells // 16).view(200, 4, 4), (cells % 16).view(200, 4, 4)
    assert (rows.diff(dim=1) == 4).all() and (columns.diff(dim=2) == 4).all()
    assert set(rows[:, 0, 0].tolist()) == {0, 1, 2, 3} and rows.max() == 15


def test_gather_cells_takes_row_major_cells():
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    assert gather_cells(maps, torch.tensor([[7, 0]]))[0, :, 0].tolist() == [7.0, 0.0]


def official_state(prefix=""):
    """The state_dict of an official snapshot, filled by the rule of the reference values."""
    own = Method(dul_config(embedding=128)).extractor.state_dict()
    names = ("fast_net." + name.replace("head.", "emb_q.", 1) for name in own)
    filled = state({name: tensor.shape for name, tensor in zip(names, own.values())})
    return {prefix + name: value for name, value in filled.items()}


def test_network_agrees_with_reference(golden):
    reference = {k: torch.from_numpy(v) for k, v in golden("g7_resnet18").items() if v.ndim}
    official = official_state()
    found = recognised({"model": official})
    network = found.make()
    network.load_state_dict(found.state)
    first8 = official["fast_net.backbone.conv1.weight"].flatten()[:8]
    torch.testing.assert_close(first8, reference["check_conv1_first8"], atol=1e-6, rtol=0)
    network.eval()
    with torch.no_grad():
        for layer in ("res3", "res4", "key"):
            unit = F.normalize(network.maps(reference["x"], layer), dim=1)
            torch.testing.assert_close(unit, reference[layer], atol=1e-5, rtol=0)
    network.train()
    batch = images((2, 3, 64, 96), int(golden("g7_resnet18")["train_x_entry"]))
    with torch.no_grad():
        maps = network.backbone(batch)["res4"]
        res4, key = F.normalize(maps, dim=1), F.normalize(network.head(maps), dim=1)
    torch.testing.assert_close(res4[0, ::8], reference["train_res4_b0"], atol=1e-5, rtol=0)
    torch.testing.assert_close(key[:, ::4], reference["train_key"], atol=1e-5, rtol=0)
    bn1 = network.backbone.bn1
    torch.testing.assert_close(bn1.running_mean, reference["train_running_mean_bn1"], atol=1e-5, rtol=0)
    torch.testing.assert_close(bn1.running_var, reference["train_running_var_bn1"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("last", ["res3", "res4"])
def test_random_weights_are_those_of_torchvision(last):
    torch.manual_seed(3)
    ours, after = Backbone(last).state_dict(), torch.rand(1)
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18().state_dict()
    assert torch.equal(after, torch.rand(1))
    kept = [name for name in theirs if not name.startswith("fc.") and (last == "res4" or "layer4" not in name)]
    assert [*ours] == kept and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_official_snapshot_loads_by_name(golden, tmp_path, prefix):
    names = golden("g7_dul_state_dict.json")
    official = official_state(prefix)
    assert {k.removeprefix(prefix): list(v.shape) for k, v in official.items()} == names
    path = tmp_path / "epoch100_score0.690_res4.pth"
    torch.save({"model": official, "opt": {}, "score": 0.69, "epoch": 100}, path)
    loaded = models.load(path)
    assert (loaded.protocol, loaded.changes, loaded.layers[0], loaded.training) == ("DUL", {}, "res4", False)
    network = Method(dul_config(embedding=128)).extractor.eval()
    theirs = lambda name: prefix + "fast_net." + name.replace("head.", "emb_q.", 1)
    network.load_state_dict({name: official[theirs(name)] for name in network.state_dict()})
    frames = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        wanted = F.normalize(network.maps(normalise(frames), "res4"), dim=1)
        assert torch.equal(loaded(frames, "res4"), wanted)
    method = Method(dul_config(embedding=128))
    assert models.initialise(method, path) == []
    assert torch.equal(method.extractor.head.conv2.bias, official[prefix + "fast_net.emb_q.conv2.bias"])


def test_snapshots_that_do_not_fit_are_listed(tmp_path):
    broken = {k: v for k, v in official_state().items() if k != "fast_net.emb_q.conv2.bias"}
    broken["fast_net.extra"] = torch.zeros(1)
    broken["fast_net.backbone.conv1.weight"] = torch.zeros(64, 3, 3, 3)
    path = tmp_path / "broken.pth"
    torch.save({"model": broken}, path)
    with pytest.raises(UserError) as error:
        models.load(path)
    for words in ("missing: head.conv2.bias", "left over: extra", "backbone.conv1.weight [64, 3, 3, 3]"):
        assert words in str(error.value)


class Dangerous:
    def __reduce__(self):
        return (print, ("code ran",))


def test_files_that_are_no_checkpoints_are_refused(tmp_path, capsys):
    cases = {
        "code.pth": {"model": Dangerous()},
        "other.pth": {"weights": torch.zeros(2)},
        "list.pth": [1, 2],
        "alike.pth": {"method": "dul", "config": 1},
    }
    for name, content in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=name):
            models.load(tmp_path / name)
    assert "code ran" not in capsys.readouterr().out
    with pytest.raises(UserError) as error:
        checkpoint.load(tmp_path / "code.pth")
    assert "GLOBAL print" in str(error.value) and "safe_globals" not in str(error.value)
    (tmp_path / "text.pth").write_text("hello")
    whole = (tmp_path / "other.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    # the parser of torch raises an IndexError for these bytes
    (tmp_path / "odd.pth").write_bytes(b"\x80\x02.")
    for name in ("text.pth", "cut.pth", "odd.pth", "absent.pth"):
        with pytest.raises(UserError, match=name):
            checkpoint.load(tmp_path / name)
    with pytest.raises(UserError, match="folder"):
        checkpoint.load(tmp_path)


def test_untrained_weights_follow_the_seed():
    weights = [models.load("untrained", overrides=[f"seed={s}"]).head.conv1.weight for s in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_checkpoint_brings_its_network_and_its_protocol(tmp_path):
    config = models.read_config(models.UNTRAINED, ["method.embedding=16", "propagation.radius=7"])
    method = models.build(config)
    checkpoint.save(tmp_path / "best.pth", {"method": method.state_dict(), "config": as_plain(config)})
    loaded = models.load(tmp_path / "best.pth")
    assert (loaded.protocol, loaded.changes, loaded.training) == ("DUL", {"radius": 7}, False)
    frames = torch.rand(1, 3, 32, 40)
    with torch.no_grad():
        assert torch.equal(loaded(frames, "key"), method.extractor.eval()(frames, "key"))
    with pytest.raises(UserError, match="brings its own configuration"):
        models.load(tmp_path / "best.pth", overrides=["method.embedding=8"])


def test_weights_to_give_away(tmp_path):
    config = models.read_config(models.UNTRAINED, ["method.embedding=16", "propagation.radius=7"])
    content = {"method": models.build(config).state_dict(), "config": as_plain(config), "step": 3, "revision": "abc"}
    checkpoint.save(tmp_path / "last.pth", content)
    path = tmp_path / "weights.safetensors"
    models.give_away(tmp_path / "last.pth", path)
    whole, given = models.load(tmp_path / "last.pth"), models.load(path)
    assert (given.protocol, given.changes, given.layers, given.training) == ("DUL", {"radius": 7}, whole.layers, False)
    frames = torch.rand(1, 3, 32, 40)
    with torch.no_grad():
        assert (given(frames, "key") * whole(frames, "key")).sum(1).min() > 0.9999
    assert 22e6 < path.stat().st_size < 25e6
    method = Method(dul_config())
    assert models.initialise(method, path) == []
    assert torch.equal(method.extractor.head.conv2.bias, given.head.conv2.bias)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="SHA256SUMS"):
        models.load(path)
    (tmp_path / "SHA256SUMS").unlink()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        models.load(path)
    with pytest.raises(UserError, match="no such checkpoint"):
        models.load(tmp_path / "absent.safetensors")


def test_weights_of_another_precision_fit_and_of_another_kind_do_not(tmp_path):
    config = models.read_config(models.UNTRAINED, ["method.embedding=16"])
    whole = {"method": models.build(config).state_dict(), "config": as_plain(config)}

    def load(**changes):
        checkpoint.save(tmp_path / "a.pth", whole | {"method": whole["method"] | changes})
        return models.load(tmp_path / "a.pth")

    name, value = next((name, value) for name, value in whole["method"].items() if name.endswith("conv1.weight"))
    assert all(p.dtype == torch.float32 for p in load(**{name: value.double()}).parameters())
    for wrong in (value.to(torch.int8), value.to(torch.complex64), value.to_sparse(), 3):
        with pytest.raises(UserError, match=rf"a.pth: .*{name}"):
            load(**{name: wrong})
    method = Method(dul_config())
    with pytest.raises(UserError, match="a.pth: .*left over: 7"):
        checkpoint.load_strictly(method, {**method.state_dict(), 7: value}, "a.pth")


@pytest.mark.parametrize(
    "metadata, sums, message",
    [
        ("[1", "", "metadata"),
        ('{"method": {"name": "other"}}', "", "metadata"),
        ('{"method": {"name": "dul"}, "protocol": "DUL"}', "", "metadata"),
        ("{}", "one-word", "SHA256SUMS"),
    ],
)
def test_metadata_that_describe_no_network_are_named(tmp_path, metadata, sums, message):
    checkpoint.save_weights(tmp_path / "a.safetensors", {"a": torch.eye(2)}, {"network": metadata})
    (tmp_path / "SHA256SUMS").write_text(sums)
    with pytest.raises(UserError, match=message):
        models.load(tmp_path / "a.safetensors")


def test_pictures_show_a_sample():
    torch.manual_seed(0)
    method = Method(dul_config()).eval()
    views = torch.randint(0, 256, (2, 2, 3, 3, 64, 64), dtype=torch.uint8)
    batch = {"plain": views[0], "transformed": views[1], "theta": torch.eye(2, 3).expand(2, 3, 2, 3)}
    (sheet,) = method.pictures(batch).values()
    assert sheet.dtype == torch.uint8 and tuple(sheet.shape) == (3, 5 * 64, 3 * 64)
    assert torch.equal(sheet[:, 64:128, 64:128], views[1, 0, 1])
    assert sheet.float().std() > 10
