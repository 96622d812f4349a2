"""Checkpoints that the authors of INO and DINO published load by name, without running code."""

import argparse
import pickle
import re

import pytest
import torch
import torchvision

from core.errors import UserError
from models import snapshots
from models.backbones.vit import Backbone
from models.methods.ino import Config, Method
from tests.filling import state
from tests.small import ino_config


class Payload:
    """What an attacker would put into a file."""

    def __reduce__(self):
        return (print, ("code ran",))


def filled(shapes):
    return state({name: tuple(shape) for name, shape in shapes.items()})


@pytest.fixture
def ino_file(golden, tmp_path):
    """Writes an official INO checkpoint, with changes, and returns its path."""
    layout = golden("g7_ino_checkpoint_layout.json")

    def write(**changes):
        content = {name: filled(layout[name]) for name in ("student", "teacher")}
        content["teacher"] = {name: value * 1.01 for name, value in content["teacher"].items()}
        content["dino_loss_cls_list"] = {"0.center": torch.linspace(-1, 1, 4096)[None]}
        content["dino_loss_hw_list"] = {"0.center": torch.linspace(1, 2, 4096)[None]}
        content |= {"optimizer": {"state": {}, "param_groups": []}, "epoch": 25}
        content["args"] = argparse.Namespace(arch="vit_small", patch_size=8, lr=3e-3, data_path="/data", use_fp16=True)
        path = tmp_path / "checkpoint.pth"
        torch.save({name: value for name, value in {**content, **changes}.items() if value is not None}, path)
        return path, content

    return write


@pytest.fixture
def dino_state(golden):
    return filled(golden("g7_dino_checkpoint_layout.json")["pretrain_file_keys"])


def same_features(method, backbone, blocks):
    frames = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = backbone.eval()(frames, blocks=blocks)[0, 1:]
    wanted = torch.nn.functional.normalize(tokens, dim=-1).T.unflatten(1, (4, 6))
    torch.testing.assert_close(method.features(frames, f"block{blocks}")[0], wanted)


@pytest.mark.parametrize("inference, prefix", [("student", "module."), ("teacher", "")])
def test_ino_checkpoint(ino_file, inference, prefix):
    path, content = ino_file()
    method, config = snapshots.restore(path, overrides=[f"method.inference={inference}"])
    assert method.keys[0] == "block7" and not method.training
    davis, ytvos = (config.propagation_on(dataset, method.cell_px("block7")) for dataset in ("davis", "ytvos"))
    assert (davis.radius, davis.multiple) == (40, 8) and (ytvos.radius, ytvos.multiple) == (50, 8)
    backbone = Backbone("small", 8, 64)
    backbone.load_state_dict({
        name.removeprefix(f"{prefix}backbone."): value
        for name, value in content[inference].items()
        if name.startswith(f"{prefix}backbone.")
    })
    same_features(method, backbone, 7)
    assert torch.equal(method.centre_class, content["dino_loss_cls_list"]["0.center"][0])
    assert torch.equal(method.centre_patch, content["dino_loss_hw_list"]["0.center"][0])
    head = content["student"]["module.headlist.headlist.0.mlp.2.bias"]
    assert torch.equal(method.student.head.mlp[2].bias, head)


def test_ino_checkpoint_of_another_size(tmp_path):
    config = ino_config(size="tiny", patch=16, global_px=32, local_px=16, image_px=32)
    own = Method(config).state_dict()
    theirs = lambda network, prefix: {
        prefix + name.removeprefix(f"{network}.").replace("head.", "headlist.headlist.0."): value
        for name, value in own.items()
        if name.startswith(f"{network}.")
    }
    path = tmp_path / "small.pth"
    torch.save({"student": theirs("student", "module."), "teacher": theirs("teacher", "")}, path)
    method, loaded = snapshots.restore(path)
    described = ("size", "patch", "image_px", "outputs", "head_hidden", "bottleneck")
    assert [getattr(loaded.method, k) for k in described] == [getattr(config, k) for k in described]
    assert method.cell_px("block7") == 16
    assert all(torch.equal(value, own[name]) for name, value in method.state_dict().items())


def test_ino_checkpoint_without_its_teacher_is_refused_by_name(ino_file):
    path, _ = ino_file(teacher=None)
    with pytest.raises(UserError, match=f"{path}: looks like an INO checkpoint, but its 'teacher' is missing"):
        snapshots.restore(path)


def test_code_in_a_checkpoint_does_not_run(ino_file, capsys):
    path, _ = ino_file(args=argparse.Namespace(epoch=3, hidden=Payload()))
    with pytest.raises(UserError, match="needs code to be run"):
        snapshots.restore(path)
    assert "code ran" not in capsys.readouterr().out
    pickle.loads(pickle.dumps(Payload()))  # it would have
    assert "code ran" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["plain", "training", "distributed"])
def test_dino_checkpoint(dino_state, tmp_path, layout):
    prefix = {"plain": "", "training": "backbone.", "distributed": "module.backbone."}[layout]
    content = {prefix + name: value for name, value in dino_state.items()}
    if prefix:
        content[prefix.replace("backbone.", "head.") + "mlp.0.weight"] = torch.zeros(2048, 384)
        student = {f"module.{name.removeprefix('module.')}": value * 0 for name, value in content.items()}
        content = {"student": student, "teacher": content, "epoch": 100, "args": argparse.Namespace(arch="vit_small")}
    path = tmp_path / "dino_deitsmall8_pretrain.pth"
    torch.save(content, path)
    method, config = snapshots.restore(path)
    assert (config.method.image_px, config.method.outputs, method.keys[0]) == (224, None, "block12")
    p = config.propagation_on("ytvos", 8)
    assert config.protocol == "DINO" and p == config.propagation_on("davis", 8) and p.multiple == 8
    assert (p.window, p.radius, p.context, p.temperature, p.top_k) == ("square", 12, 7, 0.1, 5)
    backbone = Backbone("small", 8, 224, mask_token=False)
    backbone.load_state_dict(dino_state)
    same_features(method, backbone, 12)
    assert snapshots.restore(path, overrides=["propagation.radius=9"])[1].propagation.radius == 9
    other = snapshots.restore(path, overrides=["protocol=INO", "propagation.radius=9"])[1]
    assert (other.protocol, other.propagation.radius, other.propagation_ytvos.radius) == ("INO", 9, 50)
    assert other.method.feature_block == 12
    with pytest.raises(UserError, match="method.outputs = null"):
        method({}, None)
    with pytest.raises(UserError, match="method.inference"):
        snapshots.restore(path, overrides=["method.inference=teacher"])


@pytest.mark.parametrize("layout", ["new", "old"])
def test_crw_checkpoint(golden, tmp_path, layout):
    names = golden("g7_crw_checkpoint_layout.json")["model"]
    model = filled(names)
    reference = torchvision.models.resnet18()
    reference.load_state_dict({k.removeprefix("encoder.model."): v for k, v in model.items()}, strict=False)
    for name, module in reference.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.stride = (1, 1) if name.startswith("layer3") else module.stride
            module.padding_mode = "reflect"
    net = torch.nn.Sequential(*list(reference.children())[:7]).eval()
    if layout == "old":
        model = {re.sub(r"(conv\d)\.weight$", r"\1.1.weight", name): value for name, value in model.items()}
        assert "encoder.model.conv1.1.weight" in model and "encoder.model.layer1.0.conv2.1.weight" in model
    path = tmp_path / "pretrained.pth"
    torch.save({"model": model, "optimizer": {}, "epoch": 10, "args": argparse.Namespace(head_depth=0)}, path)
    method, config = snapshots.restore(path)
    assert method.keys == ("res3",) and config.propagation.repeat_reference
    frames = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(net(frames), dim=1)
    assert wanted.shape == (1, 256, 6, 8)
    torch.testing.assert_close(method.features(frames, "res3"), wanted)
    with pytest.raises(UserError, match="method.embedding = null"):
        method({}, None)


@pytest.mark.parametrize(
    "content, said",
    [
        ({"cls_token": torch.zeros(1, 1, 1024), "pos_embed": torch.zeros(1, 257, 1024),
          "patch_embed.proj.weight": torch.zeros(1024, 3, 14, 14)},
         r"1024 channels and patches of 14 px.*small \(384\)"),
        ({"model": {"encoder.model.layer4.0.conv1.weight": torch.zeros(1)}}, "a ResNet of another make.*what fits"),
        ({"weird": torch.zeros(1)}, "holds weird; what fits"),
    ],
)
def test_other_files_are_told_what_they_look_like(tmp_path, content, said):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match=f"{path}: .*{said}"):
        snapshots.restore(path)


def test_config_refuses_what_cannot_be():
    for changes, said in [
        ({"global_px": 30}, "method.global_px = 30: must be a multiple of method.patch = 8"),
        ({"mask_share": (0.5, 0.1)}, "method.mask_share"),
        ({"feature_block": 13}, "method.feature_block = 13: must be between 1 and 12"),
        ({"teacher_temperature": 0.0}, "method.teacher_temperature"),
    ]:
        with pytest.raises(UserError, match=said):
            ino_config(**changes)
    assert isinstance(ino_config(), Config)
