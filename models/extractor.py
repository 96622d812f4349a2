"""The contract between networks and trackers: features of frames, and the facts that a tracker needs about them.

Legend: B frames, D channels, H W pixels, h w cells.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from core.augment import IMAGENET_MEAN, IMAGENET_STD, normalise
from core.errors import UserError


class Extractor(nn.Module):
    """A network whose layers give features for the cells of a frame.  Subclasses set `layers`, `cell_px` and `maps`."""

    #: names of the feature layers, the default first
    layers: tuple[str, ...] = ()
    #: mean and deviation by which frames are normalised: red, green, blue
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    #: the protocol that the network was published with, a file of configs/protocols, and {key: value} that differ
    protocol: str = "DUL"
    changes: dict[str, Any] = {}

    def forward(self, frames: Tensor, layer: str) -> Tensor:
        """frames [B,3,H,W], RGB in [0,1] -> features [B,D,h,w], float32, unit norm over D."""
        return unit(self.maps(normalise(frames, self.mean, self.std), layer))

    def maps(self, images: Tensor, layer: str) -> Tensor:
        """images [B,3,H,W], normalised -> feature maps [B,D,h,w]."""
        raise NotImplementedError

    def cell_px(self, layer: str) -> int:
        """Pixels per side of a cell of a layer."""
        raise NotImplementedError

    def require_layer(self, layer: str, key: str = "layer") -> None:
        """Raise UserError unless the network has the layer.  key: the layer's name in the message."""
        if layer not in self.layers:
            raise UserError(f"{key} = {layer!r}: must be one of {', '.join(self.layers)} for this network")

    def require_whole_cells(self, images: Tensor, cell_px: int) -> None:
        """Raise UserError unless both sides of images [..,H,W] are multiples of cell_px."""
        H, W = images.shape[-2:]
        if H % cell_px or W % cell_px:
            raise UserError(f"frames of {H} x {W} px: this network needs propagation.multiple = {cell_px}")


def unit(maps: Tensor) -> Tensor:
    """maps [B,D,...] in float32, with L2 norm 1 over D."""
    return F.normalize(maps.float(), dim=1)
