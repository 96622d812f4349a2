"""The vision transformer and INO's head against the reference network."""

import pytest
import torch

from models.backbones.vit import Backbone
from models.methods.ino import Head
from tests.filling import fill, images


@pytest.fixture(scope="module")
def backbone():
    return fill(Backbone("small", 8, 64)).eval()


@pytest.fixture
def reference(golden):
    return {name: torch.from_numpy(array) for name, array in golden("g7_vits8").items() if array.ndim}


def close(ours, theirs, atol=2e-5):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


def test_names_and_shapes_are_the_published_ones(golden, backbone):
    names = golden("g7_ino_vit_small8_img64_state_dict.json")
    assert {name: list(tensor.shape) for name, tensor in backbone.state_dict().items()} == names


def test_filling_rule(backbone, reference, golden):
    entry = int(golden("g7_vits8")["check_patch_index"])
    name = sorted(backbone.state_dict())[entry]
    close(backbone.state_dict()[name].flatten()[:8], reference["check_patch_first8"], atol=1e-7)
    close(images((1, 3, 64, 96), 1000), reference["x"], atol=0)


@torch.no_grad()
def test_tokens_agree_with_reference(backbone, reference):
    x, mask = reference["x"], reference["mask"]
    close(backbone(x, blocks=7), reference["out_n6_0"])
    close(backbone(x, mask, blocks=7), reference["out_n6_0_masked"])
    close(backbone(x, mask[0], blocks=7), reference["out_n6_0_masked"])
    close(backbone(x)[:, 0], reference["out_n6_last_cls"])
    masked = backbone(x, mask)
    close(masked[:, 0], reference["ml_cls"])
    close(masked[:, 1::4], reference["ml_hw_s4"])
    close(backbone(images((1, 3, 64, 64), 1001), blocks=7)[:, ::4], reference["out64_n6_0_s4"])
    close(backbone.class_attention(x), reference["last_attn_cls_row"], atol=1e-6)


@torch.no_grad()
def test_positions_agree_with_reference(backbone, reference):
    close(backbone.positions(8, 12)[..., ::4], reference["pos_64x96"], atol=1e-6)
    close(backbone.positions(28, 28)[..., ::32], reference["pos_224"], atol=1e-6)
    assert backbone.positions(8, 8) is backbone.pos_embed


@torch.no_grad()
def test_blocks_after_the_last_one_asked_for_are_not_run(backbone):
    ran = []
    hooks = [b.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, b in enumerate(backbone.blocks, 1)]
    backbone(torch.zeros(1, 3, 16, 16), blocks=7)
    for hook in hooks:
        hook.remove()
    assert ran == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("size, channels, patch", [("tiny", 192, 16), ("small", 384, 16), ("base", 768, 8)])
def test_sizes_and_patches(size, channels, patch):
    net = Backbone(size, patch, image_px=32, mask_token=False).eval()
    assert "mask_token" not in net.state_dict()
    assert net(torch.zeros(2, 3, 35, 64), blocks=1).shape == (2, 1 + (35 // patch) * (64 // patch), channels)


def test_stochastic_depth_drops_branches_of_whole_images_in_training_alone():
    torch.manual_seed(0)
    block = Backbone("tiny", 16, 32, drop_path=0.4).blocks[-1]
    branch = torch.ones(4000, 2, 3)
    dropped = block.train()._dropped(branch)
    per_image = dropped.flatten(1)
    assert (per_image == per_image[:, :1]).all()
    assert per_image.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert abs(dropped.mean() - 1) < 0.05
    assert torch.equal(block.eval()._dropped(branch), branch)
    first = Backbone("tiny", 16, 32, drop_path=0.4).blocks[0].train()
    assert torch.equal(first._dropped(branch), branch)


def test_head_agrees_with_reference(golden):
    reference = golden("g7_dinohead64")
    head = fill(Head(384, hidden=2048, bottleneck=256, outputs=64))
    assert sorted(head.state_dict()) == golden("g7_dinohead_keys_sorted.json")
    x = torch.from_numpy(reference["x"])
    close(images((6, 384), 1002), x, atol=0)
    close(head(x), torch.from_numpy(reference["out"]), atol=1e-6)
    assert [name for name, p in head.named_parameters() if not p.requires_grad] == ["last_layer.weight_g"]
    head(torch.zeros(1, 0, 384)).sum().backward()  # no masked patches
