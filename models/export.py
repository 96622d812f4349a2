"""An extractor as a program of torch.export, which runs without this project."""

import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, save
from torch.export import export as traced

from core.atomic import replacing
from core.errors import UserError
from models.extractor import Extractor


class Features(nn.Module):
    """One layer of an extractor: frames [B,3,H,W], RGB in [0,1] -> features [B,D,h,w], unit norm over D."""

    def __init__(self, extractor: Extractor, layer: str):
        super().__init__()
        self.extractor, self.layer = extractor, layer

    def forward(self, frames: Tensor) -> Tensor:
        return self.extractor(frames, self.layer)


def export(extractor: Extractor, layer: str | None = None, size: tuple[int, int] = (480, 848)) -> ExportedProgram:
    """One layer as a program; program.module()(frames) runs it.

    layer: None = the default one.  Residual networks take any number of frames of any size.  Vision transformers take
    one frame of `size` (H, W), since their position embedding is resized for it.  Raises UserError for a layer or a
    size that the network does not have, and for a network that cannot be exported.
    """
    layer = extractor.layers[0] if layer is None else layer
    extractor.require_layer(layer)
    network = Features(extractor, layer).eval()
    any_size = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    device = next(extractor.parameters()).device
    try:
        with torch.no_grad():
            # torch takes a length of 1 for fixed: two frames stand for any number.
            program = traced(network, (torch.rand(2, 3, *size, device=device),), dynamic_shapes=any_size)
            if sum(isinstance(length, int) for length in input_shape(program)) > 1:  # not the channels alone
                program = traced(network, (torch.rand(1, 3, *size, device=device),))
    except RuntimeError as error:
        raise UserError(f"{type(extractor).__name__} cannot be exported ({str(error).splitlines()[0]})") from error
    return program


def input_shape(program: ExportedProgram) -> tuple:
    """[B,3,H,W] that an exported program takes: numbers, and symbols for lengths that are free."""
    (name,) = program.graph_signature.user_inputs
    (frames,) = [node for node in program.graph.nodes if node.name == name]
    return tuple(frames.meta["val"].shape)


def write(program: ExportedProgram, path: str | Path) -> None:
    """Write it for torch.export.load.  Raises UserError where the file cannot be written."""
    data = io.BytesIO()
    save(program, data)
    with replacing(path) as part:
        part.write_bytes(data.getvalue())
