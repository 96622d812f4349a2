"""DUL: Dense Unsupervised Learning for Video Segmentation (NeurIPS 2021, arXiv 2111.06265).

A network learns from raw video by self-training.  Each cell of a clip is assigned to the most similar anchor, a cell on
a grid in the clip's first frame.  The assignment in the transformed view is the label of the cell in the plain view.

Legend: B clips, T frames, D channels, h w cells, N anchors a clip, C anchors of all clips, m cells of the cross-view
term.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from core import distributed
from core.augment import normalise
from core.schema import Section, above, at_least, between, multiple_of, span
from models.backbones.resnet import STRIDE, ResNet
from models.extractor import unit
from models.layers import gather_cells, warp
from models.method import Losses
from models.method import Method as BaseMethod
from models.methods.dul_pictures import training_sample
from models.methods.dul_views import Views

__all__ = ["Config", "Method", "Views", "dul_losses"]


@dataclass(frozen=True)
class Config(Section):
    """embedding: channels of the layer `key`.

    anchor_grid, cross_grid: cells per side, 8 -> N = 64, 4 -> m = 16.  crop_px: side of both views.  resize_px: range
    of the short side before the crop.  random_crop: false = crop the centre.  flip: probability, for the clip and again
    for the transformed view.  zoom: range of the side of the transformed view relative to that of the plain view.
    """

    name: Literal["dul"]
    embedding: Annotated[int, at_least(1)]
    temperature: Annotated[float, above(0)]
    anchor_grid: Annotated[int, at_least(1)]
    cross_grid: Annotated[int, at_least(1)]
    cross_weight: Annotated[float, at_least(0)]
    crop_px: Annotated[int, multiple_of(STRIDE, least=32)]
    resize_px: Annotated[tuple[int, int], span(16, 4096)]
    random_crop: bool
    flip: Annotated[float, between(0, 1)]
    zoom: Annotated[tuple[float, float], span(0, 1)]

    def check(self):
        cells = self.crop_px // STRIDE
        for key in ("anchor_grid", "cross_grid"):
            self.require(key, getattr(self, key) <= cells, f"at most method.crop_px / {STRIDE} = {cells}")


class Method(BaseMethod):
    """The network, and the self-training loss on its layer `key`."""

    undivided = "the anchors of all clips of a batch are the classes of one loss; lower data.batch_size, or add GPUs"

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.extractor = ResNet(config.embedding)

    def forward(self, batch):
        """batch: plain, transformed uint8 [B,T,3,H,W], theta [B,T,2,3].  -> Losses: total, temp, cross_key."""
        anchor_index, reference_index = self._draw_cells(batch["plain"])
        return self._losses(batch, anchor_index, reference_index)[0]

    def _losses(self, batch, anchor_index, reference_index):
        plain, transformed = self._embed(normalise(batch["plain"]), normalise(batch["transformed"]))
        # In float32: autocast would round the grid of the warp, which then picks wrong cells, and the similarities, of
        # which the largest decides a pseudo label.
        with torch.autocast(plain.device.type, enabled=False):
            terms = dul_losses(
                plain, transformed, batch["theta"], anchor_index, reference_index, self.config.temperature
            )
        total = terms["temp"] + self.config.cross_weight * terms["cross_key"]
        return Losses(total, {k: v.detach() for k, v in terms.items()}), plain, transformed

    def _embed(self, plain, transformed):
        """Features [B,T,D,h,w] of the layer `key` for both views, unit norm over D.

        The transformed frames 1..T-1 are without gradient: they take a second pass through the network.  Both passes
        move the statistics of batch norm.
        """
        B, T = plain.shape[:2]
        with_gradient = torch.cat([plain, transformed[:, :1]], dim=1).flatten(0, 1)
        first = self._key(with_gradient).unflatten(0, (B, T + 1))
        with torch.no_grad():
            rest = self._key(transformed[:, 1:].flatten(0, 1)).unflatten(0, (B, T - 1))
        return first[:, :T], torch.cat([first[:, T:], rest], dim=1)

    def _key(self, images):
        return unit(self.extractor.maps(images, "key"))

    def _draw_cells(self, plain):
        """Anchors and cross-view cells: uniform grids with one random offset per clip and axis."""
        B, side = plain.shape[0], plain.shape[-1] // STRIDE
        return (
            grid_cells(B, side, self.config.anchor_grid, plain.device),
            grid_cells(B, side, self.config.cross_grid, plain.device),
        )

    @torch.no_grad()
    def pictures(self, batch):
        one = {name: value[:1] for name, value in batch.items()}
        anchor_index, reference_index = self._draw_cells(one["plain"])
        _, plain, transformed = self._losses(one, anchor_index, reference_index)
        logits, labels = self_training(plain, transformed, one["theta"], anchor_index, self.config.temperature)
        return {"sample": training_sample(one, logits[0], labels[0], anchor_index[0], plain.shape[-2:])}


def grid_cells(clips, side, grid, device):
    """Flat indices [clips, grid * grid] of a uniform grid x grid among the side x side cells.

    The grid has one random offset per clip and axis, 0 <= offset < side // grid, drawn from torch's global generator on
    the CPU, so that a run draws the same cells on every device.
    """
    step = side // grid
    offset = torch.randint(step, (clips, 2, 1))
    places = torch.arange(grid) * step + offset  # [clips, 2, grid]
    rows, columns = places[:, 0], places[:, 1]
    return (rows[:, :, None] * side + columns[:, None, :]).flatten(1).to(device)


def dul_losses(plain_BTDhw, transformed_BTDhw, theta_BT23, anchor_index_Bn, reference_index_Bm, temperature):
    """The two terms of the loss (Sec. 3 of the paper).

    plain_BTDhw, transformed_BTDhw: features of the two views, unit norm over D.  theta_BT23: warps the plain view onto
    the transformed view (affine_grid).  anchor_index_Bn, reference_index_Bm: flat indices of cells of frame 0.
    Gradient flows into plain_BTDhw and into frame 0 of transformed_BTDhw; its other frames only give labels.

    Returns {"temp", "cross_key"}, scalars.  The anchors of all processes are the classes, so that the mean over the
    processes is the loss of one process with the whole batch.
    """
    logits, labels = self_training(plain_BTDhw, transformed_BTDhw, theta_BT23, anchor_index_Bn, temperature)
    temp = F.cross_entropy(logits[:, 1:].flatten(0, 2), labels[:, 1:].flatten())
    cross_key = _cross_view(plain_BTDhw, transformed_BTDhw, theta_BT23, reference_index_Bm, temperature)
    return {"temp": temp, "cross_key": cross_key}


def self_training(plain_BTDhw, transformed_BTDhw, theta_BT23, anchor_index_Bn, temperature):
    """Warped logits [B,T,hw,C] of the plain view over all anchors, and pseudo labels [B,T,hw] in 0..C-1."""
    B, T = plain_BTDhw.shape[:2]
    own = gather_cells(plain_BTDhw[:, 0], anchor_index_Bn)  # [B,N,D]
    anchors = distributed.gather(own.flatten(0, 1))  # [C,D]
    # The warp copies whole cells: warping features of D channels gives the same logits as warping logits of C.
    warped = warp(plain_BTDhw.flatten(0, 1), theta_BT23.flatten(0, 1)).unflatten(0, (B, T))
    logits = warped.flatten(3).transpose(2, 3) @ anchors.T / temperature
    with torch.no_grad():
        affinity = torch.einsum("btdp,bnd->btpn", transformed_BTDhw.flatten(3), own)
        first = torch.arange(B, device=own.device) + distributed.rank() * B
        labels = affinity.argmax(-1) + (first * own.shape[1])[:, None, None]
    return logits, labels


def _cross_view(plain_BTDhw, transformed_BTDhw, theta_BT23, reference_index_Bm, temperature):
    """The cross-view term: cells of frame 0 must find themselves in the other view among the cells of all clips."""
    warped = warp(plain_BTDhw[:, 0], theta_BT23[:, 0])
    queries = gather_cells(warped, reference_index_Bm).flatten(0, 1)
    targets = gather_cells(transformed_BTDhw[:, 0], reference_index_Bm).flatten(0, 1)
    own = torch.arange(len(queries), device=queries.device) + distributed.rank() * len(queries)
    return F.cross_entropy(queries @ distributed.gather(targets).T / temperature, own)
