"""Export of extractors with torch.export."""

import io
from functools import partial

import pytest
import torch

from core.errors import UserError
from models import __main__ as command
from models import load
from models.backbones.vit import Backbone, ViT
from models.export import export, write


@pytest.mark.parametrize("layer", ["key", "res3"])
def test_residual_networks_take_any_frames(layer):
    extractor = load()
    program = export(extractor, layer).module()
    for shape in ((1, 3, 64, 96), (3, 3, 40, 56)):
        frames = torch.rand(shape)
        torch.testing.assert_close(program(frames), extractor(frames, layer))


def test_transformers_take_one_frame_of_a_size(tmp_path):
    extractor = ViT(Backbone("tiny", 8, 32), 7).eval()
    program = export(extractor, size=(48, 64))
    write(program, tmp_path / "a.pt2")
    loaded = torch.export.load(io.BytesIO((tmp_path / "a.pt2").read_bytes())).module()
    frames = torch.rand(1, 3, 48, 64)
    torch.testing.assert_close(loaded(frames), extractor(frames, "block7"))
    with pytest.raises((RuntimeError, AssertionError)):
        loaded(torch.rand(1, 3, 64, 64))


def test_what_cannot_be_exported():
    extractor = ViT(Backbone("tiny", 8, 32), 7).eval()
    with pytest.raises(UserError, match="multiple = 8"):
        export(extractor, size=(50, 64))
    with pytest.raises(UserError, match="layer = 'res4'"):
        export(extractor, "res4")


def test_the_command(tmp_path, called):
    call = partial(called, command.main)
    weights = load.__defaults__[0]
    assert "a.pt2" in call(weights, tmp_path / "a.pt2", "--key", "res3")[1]
    assert (tmp_path / "a.pt2").exists()
    for arguments, message in [
        ((weights, tmp_path / "a.onnx"), ".safetensors"),
        ((weights, tmp_path / "a.pt2", "--key", "res9"), "res9"),
        ((weights, tmp_path / "a.pt2", "--size", "big"), "WIDTHxHEIGHT"),
        ((tmp_path / "none.pth", tmp_path / "a.pt2"), "none.pth"),
    ]:
        code, told = call(*arguments)
        assert code == 2 and message in told
