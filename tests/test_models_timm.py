"""Extractors of timm's networks.  Without timm, only the error is tested that says how to install it."""

import sys

import pytest
import torch
import torchvision

import models
from core import checkpoint
from core.errors import UserError
from models.backbones.vit import Backbone as OwnViT

VIT, CONVNEXT = "vit_tiny_patch16_224", "convnext_atto"


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="timm is optional: python -m pip install -r requirements-optional.txt")


def untrained(name):
    return models.load(f"timm:{name}@untrained")


@pytest.mark.parametrize(
    "name, keys, cells, channels",
    [
        (VIT, [f"block{n}" for n in range(12, 0, -1)], [16] * 12, [192] * 12),
        (CONVNEXT, ["stage4", "stage3", "stage2", "stage1"], [32, 16, 8, 4], [320, 160, 80, 40]),
        ("resnet18", ["stage4", "stage3", "stage2", "stage1"], [32, 16, 8, 4], [512, 256, 128, 64]),
    ],
)
def test_keys_cells_and_unit_features(timm, name, keys, cells, channels):
    network = untrained(name)
    assert list(network.layers) == keys and [network.cell_px(key) for key in keys] == cells
    assert network.protocol == "DINO" and not network.training
    rng = torch.Generator().manual_seed(0)
    for key, px, D in list(zip(keys, cells, channels))[:: 11 if name == VIT else 1]:
        with torch.no_grad():
            maps = network(torch.rand(2, 3, 9 * px, 11 * px, generator=rng), key)
        assert maps.shape == (2, D, 9, 11)
        torch.testing.assert_close(maps.norm(dim=1), torch.ones(2, 9, 11))
        with pytest.raises(UserError, match=f"{9 * px + 2} x {11 * px} px: .*multiple = {px}"):
            network(torch.rand(1, 3, 9 * px + 2, 11 * px), key)


@pytest.mark.parametrize("name, prefix_tokens", [("deit_tiny_distilled_patch16_224", 2), ("eva02_tiny_patch14_224", 1)])
def test_tokens_that_are_no_patches_are_left_out(timm, name, prefix_tokens):
    network = untrained(name)
    inner, px = network.network, network.cell_px("block12")
    assert inner.num_prefix_tokens == prefix_tokens
    frames = torch.rand(1, 3, 3 * px, 5 * px)
    with torch.no_grad():
        tokens = inner.forward_features(frames)  # all tokens of the last block, after the norm
        assert tokens.shape[1] == prefix_tokens + 15
        wanted = tokens[0, prefix_tokens:].T.unflatten(1, (3, 5))
        torch.testing.assert_close(network.maps(frames, "block12")[0], wanted)


def test_a_vision_transformer_is_the_projects_own(timm, tmp_path):
    """The same weights give the same features, at the frame size for which positions are not resized."""
    own = OwnViT("tiny", 16, 224, mask_token=False).eval()
    head = {"head.weight": torch.zeros(1000, 192), "head.bias": torch.zeros(1000)}
    torch.save({"model": {f"module.{k}": v for k, v in {**own.state_dict(), **head}.items()}}, tmp_path / "vit.pth")
    network = models.load(f"timm:{VIT}@{tmp_path / 'vit.pth'}")
    frames = torch.rand(1, 3, 224, 224)
    for n in (5, 12):
        with torch.no_grad():
            tokens = own((frames - 0.5) / 0.5, blocks=n)[0, 1:]  # timm's mean and deviation for this network
            found = network(frames, f"block{n}")[0]
        wanted = torch.nn.functional.normalize(tokens, dim=-1).T.unflatten(1, (14, 14))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_resnet_is_torchvisions(timm, tmp_path):
    theirs = torchvision.models.resnet18().eval()
    save = pytest.importorskip("safetensors.torch").save_file
    save(theirs.state_dict(), tmp_path / "resnet.safetensors")
    network = models.load(f"timm:resnet18@{tmp_path / 'resnet.safetensors'}")
    frames = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = torch.nn.Sequential(*list(theirs.children())[:-2])(frames)
        torch.testing.assert_close(network.maps(frames, "stage4"), maps)


def test_weights_are_those_that_timm_has(timm, monkeypatch):
    make, asked = timm.create_model, []
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, pretrained, **more: (asked.append((name, pretrained)), make(name, pretrained=False, **more))[1],
    )
    models.load("timm:resnet18.a1_in1k")
    assert asked[-1] == ("resnet18.a1_in1k", True)
    untrained("resnet18")
    assert asked[-1] == ("resnet18", False)

    def offline(name, pretrained, **_):
        raise OSError("the hub cannot be reached\nlong advice")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"no weights for resnet18 .*the hub cannot be reached; .*timm:resnet18@PATH"):
        models.load("timm:resnet18")


@pytest.mark.parametrize(
    "name, said",
    [
        ("vit_smal_patch14_dinov2", "no network 'vit_smal_patch14_dinov2', did you mean 'vit_small_patch14_dinov2'"),
        ("resnet18.a1_in2k", "did you mean 'resnet18.a1_in1k'"),
        ("", "no network ''"),
        ("hf-hub:someone/something", "no network 'hf-hub"),
    ],
)
def test_unknown_names(timm, name, said):
    with pytest.raises(UserError, match=said):
        models.load(f"timm:{name}")


@pytest.mark.parametrize(
    "name, said",
    [
        ("mixer_s32_224", "mixer_s32_224 does not map frames of any size to cells of 32 px .*doesn't match"),
        ("crossvit_tiny_240", "crossvit_tiny_240 (does not map frames of any size|has no feature maps)"),
    ],
)
def test_networks_without_a_map_of_any_size(timm, name, said):
    with pytest.raises(UserError, match=said):
        untrained(name)


def test_sizes_that_a_network_refuses_are_named(timm, monkeypatch):
    network = untrained(CONVNEXT)

    def refuse(*_, **__):
        raise AssertionError("no such size")

    monkeypatch.setattr(network.network, "forward_intermediates", refuse)
    with pytest.raises(UserError, match="8 x 16 px .AssertionError no such size.; .*propagation.multiple=32"):
        network(torch.rand(1, 3, 8, 16), "stage1")


def test_files_must_fit(timm, tmp_path):
    state = untrained(CONVNEXT).network.state_dict()
    path = tmp_path / "weights.pth"
    lost = "stages.3.blocks.1.mlp.fc1.bias"
    torch.save({name: value for name, value in state.items() if name != lost}, path)
    with pytest.raises(UserError, match=f"{path}: does not fit this network; missing: {lost}"):
        models.load(f"timm:{CONVNEXT}@{path}")
    torch.save({"what": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=f"{path}: "):
        models.load(f"timm:{CONVNEXT}@{path}")
    torch.save([1], path)
    with pytest.raises(UserError, match=f"{path}: holds a list"):
        models.load(f"timm:{CONVNEXT}@{path}")
    with pytest.raises(UserError, match="no such checkpoint"):
        models.load(f"timm:{CONVNEXT}@{tmp_path / 'absent.safetensors'}")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x08\0\0\0\0\0\0\0{broken")
    with pytest.raises(UserError, match=f"{broken}: is not a readable checkpoint"):
        checkpoint.load(broken)


def test_a_name_of_timm_without_its_prefix_is_told(timm):
    with pytest.raises(UserError, match="resnet18: no such checkpoint.*timm:resnet18"):
        models.load("resnet18")


@pytest.mark.parametrize("version", ["1.0.9", "0.9.16.dev0"])
def test_releases_that_may_run_code_are_refused(timm, monkeypatch, version):
    monkeypatch.setattr(timm, "__version__", version)
    with pytest.raises(UserError, match=f"timm {version}: must be 1.0.26 or newer"):
        untrained(VIT)


def test_without_timm_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="it is optional: python -m pip install -r requirements-optional.txt"):
        models.load("timm:resnet18")
