"""Checkpoints that the authors of INO, DINO and CRW published are recognised and load without running code."""

import argparse
import io
import json
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
import torchvision

import models
from core import checkpoint, protocols
from core.augment import normalise
from core.errors import UserError
from models.backbones.vit import Backbone
from models.methods.ino import Method
from tests.conftest import GOLDEN
from tests.small import ino_config


class Payload:
    """An object that runs code when it is unpickled."""

    def __reduce__(self):
        return (print, ("code ran",))


def filled(shapes):
    """{name: shape} -> a state_dict of small random numbers."""
    draw = torch.Generator().manual_seed(0)
    return {name: torch.rand(tuple(shape), generator=draw) * 0.1 for name, shape in shapes.items()}


def stepped(kind):
    """The state of an optimiser as the authors' programs save it: learning rate and weight decay are numpy numbers."""
    layer = torch.nn.Linear(3, 2)
    optimiser = kind(layer.parameters(), lr=np.float64(1e-3))
    for group in optimiser.param_groups:
        group["lr"], group["weight_decay"] = np.linspace(1e-3, 1e-4, 3)[1], np.float32(0.04)
    layer(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    return optimiser.state_dict()


@pytest.fixture(scope="module")
def networks():
    """The student and the teacher of an official INO checkpoint."""
    layout = json.loads((GOLDEN / "g7_ino_checkpoint_layout.json").read_text())
    student, teacher = (filled(layout[name]) for name in ("student", "teacher"))
    return {"student": student, "teacher": {name: value * 1.01 for name, value in teacher.items()}}


@pytest.fixture
def ino_file(networks, tmp_path):
    """A function that writes an official INO checkpoint with changes -> (its path, its content without them)."""

    def write(**changes):
        content = dict(networks)
        content["dino_loss_cls_list"] = {"0.center": torch.linspace(-1, 1, 4096)[None]}
        content["dino_loss_hw_list"] = {"0.center": torch.linspace(1, 2, 4096)[None]}
        content |= {"optimizer": stepped(torch.optim.AdamW), "epoch": np.int64(25)}
        content["args"] = argparse.Namespace(arch="vit_small", patch_size=8, lr=3e-3, data_path="/data", use_fp16=True)
        path = tmp_path / "checkpoint.pth"
        torch.save({name: value for name, value in {**content, **changes}.items() if value is not None}, path)
        return path, content

    return write


@pytest.fixture
def dino_state(golden):
    return filled(golden("g7_dino_checkpoint_layout.json")["pretrain_file_keys"])


def same_features(extractor, backbone, blocks):
    frames = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = backbone.eval()(normalise(frames), blocks=blocks)[0, 1:]
        wanted = torch.nn.functional.normalize(tokens, dim=-1).T.unflatten(1, (4, 6))
        torch.testing.assert_close(extractor(frames, f"block{blocks}")[0], wanted)


def backbone_in(network, prefix):
    own = Backbone("small", 8, 64)
    start = f"{prefix}backbone."
    own.load_state_dict({k.removeprefix(start): v for k, v in network.items() if k.startswith(start)})
    return own


def test_ino_checkpoint(ino_file):
    path, content = ino_file()
    extractor = models.load(path)
    assert (extractor.layers[0], extractor.protocol, extractor.cell_px("block7")) == ("block7", "INO", 8)
    assert not extractor.training
    same_features(extractor, backbone_in(content["student"], "module."), 7)


def test_ino_training_starts_from_an_official_checkpoint(ino_file):
    path, content = ino_file()
    method = models.build(models.read_config(models.ROOT / "configs/charades.yaml"))
    assert models.initialise(method, path) == []
    assert torch.equal(method.centre_class, content["dino_loss_cls_list"]["0.center"][0])
    assert torch.equal(method.centre_patch, content["dino_loss_hw_list"]["0.center"][0])
    head = content["student"]["module.headlist.headlist.0.mlp.2.bias"]
    assert torch.equal(method.student.head.mlp[2].bias, head)
    assert torch.equal(method.teacher.head.mlp[2].bias, content["teacher"]["headlist.headlist.0.mlp.2.bias"])


@pytest.mark.parametrize("kept", ["student", "backbone"])
def test_ino_file_without_its_teacher(ino_file, tmp_path, kept):
    path, content = ino_file(teacher=None)
    if kept == "backbone":
        start = "module.backbone."
        backbone = {k.removeprefix(start): v for k, v in content["student"].items() if k.startswith(start)}
        torch.save(backbone, path)
    extractor = models.load(path)
    assert (extractor.layers[0], extractor.protocol) == ("block7", "INO")
    same_features(extractor, backbone_in(content["student"], "module."), 7)
    method = models.build(models.read_config(models.ROOT / "configs/charades.yaml"))
    missing = models.initialise(method, path)
    for ours in ("centre_class", "teacher.head.mlp.2.bias", "student.head.mlp.2.bias"):
        assert (ours in missing) == (kept == "backbone")
    for ours, theirs in zip(method.teacher.backbone.parameters(), method.student.backbone.parameters()):
        assert torch.equal(ours, theirs)


def test_ino_checkpoint_of_another_size(tmp_path):
    own = Method(ino_config(size="tiny", patch=16, global_px=32, local_px=16, image_px=32)).state_dict()
    theirs = lambda network, prefix: {
        prefix + name.removeprefix(f"{network}.").replace("head.", "headlist.headlist.0."): value
        for name, value in own.items()
        if name.startswith(f"{network}.")
    }
    path = tmp_path / "small.pth"
    torch.save({"student": theirs("student", "module."), "teacher": theirs("teacher", "")}, path)
    extractor = models.load(path)
    assert extractor.cell_px("block7") == 16
    assert all(torch.equal(value, own[f"student.{name}"]) for name, value in extractor.state_dict().items())
    with pytest.raises(UserError, match="of another shape"):
        models.initialise(Method(ino_config()), path)


def test_code_in_a_checkpoint_does_not_run(ino_file, capsys):
    path, _ = ino_file(args=argparse.Namespace(epoch=3, hidden=Payload()))
    with pytest.raises(UserError, match="needs code to be run"):
        models.load(path)
    assert "code ran" not in capsys.readouterr().out
    pickle.loads(pickle.dumps(Payload()))  # unpickling it does run the code
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
    extractor = models.load(path)
    assert (extractor.layers[0], extractor.protocol, extractor.backbone.side) == ("block12", "DINO", 28)
    backbone = Backbone("small", 8, 224, mask_token=False)
    backbone.load_state_dict(dino_state)
    same_features(extractor, backbone, 12)
    if layout != "plain":
        return
    config = models.read_config(models.ROOT / "configs/charades.yaml", ["method.image_px=224"])
    method = models.build(config)
    assert "student.backbone.mask_token" in models.initialise(method, path)
    same_features(method.eval().extractor, backbone, 12)


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_numpy_numbers_load_under_both_names_of_their_module(tmp_path, monkeypatch, module):
    """numpy before 2.0 pickles numbers with the first name, later releases with the second."""
    path, buffer = tmp_path / "epoch060_score0.693_res4.pth", io.BytesIO()
    torch.save({"score": np.float64(0.693), "epoch": np.int64(60), "opt": stepped(torch.optim.Adam)}, buffer)
    with zipfile.ZipFile(buffer) as before, zipfile.ZipFile(path, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", f"{module}.multiarray".encode())
            after.writestr(name, content)
    content = checkpoint.load(path)
    assert content["score"] == 0.693 and content["epoch"] == 60
    assert content["opt"]["param_groups"][0]["lr"] == 5.5e-4


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
    extractor = models.load(path)
    assert extractor.layers == ("res3",) and protocols.named(extractor.protocol).repeat_reference
    frames = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(net(normalise(frames)), dim=1)
        assert wanted.shape == (1, 256, 6, 8)
        torch.testing.assert_close(extractor(frames, "res3"), wanted)


@pytest.mark.parametrize(
    "content, said",
    [
        (
            {
                "cls_token": torch.zeros(1, 1, 1024),
                "pos_embed": torch.zeros(1, 257, 1024),
                "patch_embed.proj.weight": torch.zeros(1024, 3, 14, 14),
            },
            r"1024 channels and patches of 14 px.*small \(384\)",
        ),
        ({"model": {"encoder.model.layer4.0.conv1.weight": torch.zeros(1)}}, "a ResNet of another make.*what fits"),
        ({"weird": torch.zeros(1)}, "holds weird; what fits"),
    ],
)
def test_other_files_are_told_what_they_look_like(tmp_path, content, said):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match=f"{path}: .*{said}"):
        models.load(path)


@pytest.mark.parametrize("value", [3, torch.zeros(384), torch.zeros(0, 3, 8, 8), torch.eye(2).to_sparse()])
@pytest.mark.parametrize("name", ["pos_embed", "patch_embed.proj.weight"])
def test_tensors_that_no_transformer_has_are_told(dino_state, tmp_path, name, value):
    torch.save({**dino_state, name: value}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="odd.pth: "):
        models.load(tmp_path / "odd.pth")


def test_config_refuses_what_cannot_be():
    for changes, said in [
        ({"global_px": 30}, "method.global_px = 30: must be a multiple of method.patch = 8"),
        ({"mask_share": (0.5, 0.1)}, "method.mask_share"),
        ({"feature_block": 13}, "method.feature_block = 13: must be between 1 and 12"),
        ({"teacher_temperature": 0.0}, "method.teacher_temperature"),
    ]:
        with pytest.raises(UserError, match=said):
            ino_config(**changes)
