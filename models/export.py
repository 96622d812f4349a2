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

    layer: None = the default layer.  Programs of residual networks and of timm's networks take any number of frames of
    any size.  A program of INO's network takes one frame of `size` (H, W), for which its position embedding is resized.
    Raises UserError for a layer or a size that the network does not take, and for a network that cannot be exported.
    """
    layer = extractor.layers[0] if layer is None else layer
    extractor.require_layer(layer)
    network = Features(extractor, layer).eval()
    device, px = next(extractor.parameters()).device, extractor.cell_px(layer)
    frames = lambda count, height, width: torch.rand(count, 3, height, width, device=device)
    try:
        with torch.no_grad():
            free = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
            program = traced(network, (frames(2, 8 * px, 12 * px),), dynamic_shapes=free)
            if not _takes(program, frames(1, 11 * px, 9 * px)):
                program = traced(network, (frames(1, *size),))
    except RuntimeError as error:
        raise UserError(f"{type(extractor).__name__} cannot be exported ({str(error).splitlines()[0]})") from error
    return program


def _takes(program, frames):
    """Whether a program runs on these frames: lengths that count as free may still be restricted."""
    try:
        program.module()(frames)
    except (AssertionError, RuntimeError):
        return False
    return True


def write(program: ExportedProgram, path: str | Path) -> None:
    """Write a program for torch.export.load.  Raises UserError where the file cannot be written."""
    data = io.BytesIO()
    save(program, data)
    with replacing(path) as part:
        part.write_bytes(data.getvalue())
