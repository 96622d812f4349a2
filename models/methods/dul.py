"""DUL: Dense Unsupervised Learning for Video Segmentation (NeurIPS 2021, arXiv 2111.06265).

A network learns from raw video by self-training.  Each cell of a clip is assigned to the most similar anchor, a cell on
a grid in the clip's first frame.  The assignment in the transformed view is the label of the cell in the plain view.

Legend: B clips, T frames, D channels, h w cells, N anchors a clip, C anchors of all clips, m cells of the cross-view
term, c = crop_px, the side of both views.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F

from core import distributed
from core.augment import crop, flip, normalise, resize, short_side_size, theta_flip_zoom
from core.strict import Section, above, at_least, between, multiple_of, span
from models.backbones.resnet import STRIDE, ResNet
from models.extractor import unit
from models.layers import gather_cells, sheet, warp
from models.method import Losses
from models.method import Method as BaseMethod


@dataclass(frozen=True)
class Config(Section):
    """embedding: channels of the layer `key`.

    anchor_grid, cross_grid: cells per side, 8 -> N = 64, 4 -> m = 16.  crop_px: side of both views.  resize_px: range
    of the short side before the crop.  random_crop: false = crop the centre.  flip: probability, for the clip and again
    for the transformed view.  zoom: range of the side of the transformed view relative to that of the plain view.
    noise: brightness, contrast and saturation of each view of a clip are multiplied by numbers drawn from
    [1 - noise, 1 + noise]; the paper has none.
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
    noise: Annotated[float, between(0, 1)] = 0.0

    def check(self):
        cells = self.crop_px // STRIDE
        for key in ("anchor_grid", "cross_grid"):
            self.require(key, getattr(self, key) <= cells, f"at most method.crop_px / {STRIDE} = {cells}")
        self.require(
            "zoom",
            int(self.zoom[0] * self.crop_px) >= 1,
            "large enough: zoom[0] times method.crop_px must be 1 or more",
        )


@dataclass(frozen=True)
class Draws:
    """The random draws for one clip, the same for all its frames; lengths are in pixels.

    height, width: size that the frames are resized to.  top, left: corner of the crop there, negative where the frame
    is smaller than the crop.  flip: both views are flipped.  zoom_flip, zoom (share of the side), zoom_top, zoom_left:
    the flip and the crop that turn the plain view into the transformed view.
    """

    height: int
    width: int
    top: int
    left: int
    flip: bool
    zoom_flip: bool
    zoom: float
    zoom_top: int
    zoom_left: int


class Views:
    """clip -> {"plain", "transformed" uint8 [T,3,c,c], "theta" [T,2,3]}.

    grid_sample(plain, affine_grid(theta)) = transformed, up to interpolation.  Padding has the mean colour, which is 0
    up to half a grey level when normalised.
    """

    def __init__(self, config: Config):
        self.config = config
        self.changes: tuple = ()
        if config.noise:
            from torchvision.transforms.v2 import functional  # takes a second

            self.changes = functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation

    def __call__(self, frames, rng):
        sample = self.apply(frames, self.draw(rng, frames[0].shape[:2]))
        for view in ("plain", "transformed"):
            for change in self.changes:
                sample[view] = change(sample[view], rng.uniform(1 - self.config.noise, 1 + self.config.noise))
        return sample

    def draw(self, rng, size):
        """Draw for one clip.  size: (height, width) of the frames.  rng: numpy Generator."""
        side, (low, high) = self.config.crop_px, self.config.resize_px
        short = int(low + (high - low) * rng.random()) if high > low else low
        height, width = short_side_size(*size, short)
        top, left = (self._place(rng, extent) for extent in (height, width))
        flipped, zoom_flipped = (rng.random() >= 1 - self.config.flip for _ in range(2))
        zoom = rng.uniform(*self.config.zoom)
        zoom_top, zoom_left = (int(rng.integers(0, side - int(zoom * side) + 1)) for _ in range(2))
        return Draws(height, width, top, left, flipped, zoom_flipped, zoom, zoom_top, zoom_left)

    def _place(self, rng, extent):
        """The corner of the crop along an axis; a frame smaller than the crop lies anywhere inside the crop."""
        spare = extent - self.config.crop_px
        return int(rng.integers(min(0, spare), max(0, spare) + 1)) if self.config.random_crop else round(spare / 2)

    def apply(self, frames, draws):
        """The training sample of T frames, uint8 RGB [H,W,3], for given draws."""
        side, zoom_px = self.config.crop_px, int(draws.zoom * self.config.crop_px)
        plain = np.empty((len(frames), side, side, 3), np.uint8)
        transformed = np.empty_like(plain)

        for frame, plain_frame, transformed_frame in zip(frames, plain, transformed):
            pixels = crop(resize(frame, draws.height, draws.width), draws.top, draws.left, side)
            plain_frame[:] = flip(pixels) if draws.flip else pixels
            pixels = flip(plain_frame) if draws.zoom_flip else plain_frame
            corner = pixels[draws.zoom_top :, draws.zoom_left :]
            transformed_frame[:] = resize(corner[:zoom_px, :zoom_px], side, side)

        theta = theta_flip_zoom(draws.zoom_flip, draws.zoom, draws.zoom_top, draws.zoom_left, zoom_px, side)
        plain, transformed = (torch.from_numpy(view).permute(0, 3, 1, 2).contiguous() for view in (plain, transformed))
        return {"plain": plain, "transformed": transformed, "theta": theta.repeat(len(frames), 1, 1)}


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
        anchors = gather_cells(plain[:, 0], anchor_index)
        logits, labels = self_training(plain, transformed, one["theta"], anchors, self.config.temperature)
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
    anchors_BnD = gather_cells(plain_BTDhw[:, 0], anchor_index_Bn)
    later = (maps[:, 1:] for maps in (plain_BTDhw, transformed_BTDhw, theta_BT23))  # frame 0 has no labels
    logits, labels = self_training(*later, anchors_BnD, temperature)
    temp = F.cross_entropy(logits.flatten(0, 2), labels.flatten())
    cross_key = _cross_view(plain_BTDhw, transformed_BTDhw, theta_BT23, reference_index_Bm, temperature)
    return {"temp": temp, "cross_key": cross_key}


def self_training(plain_BTDhw, transformed_BTDhw, theta_BT23, anchors_BnD, temperature):
    """Warped logits [B,T,hw,C] of the plain view over all anchors, and pseudo labels [B,T,hw] in 0..C-1.

    anchors_BnD: the clips' own anchors.  The cells of all T frames are compared with them.
    """
    B, T = plain_BTDhw.shape[:2]
    anchors = distributed.gather(anchors_BnD.flatten(0, 1)) / temperature  # [C,D], far smaller than the logits
    # The warp copies whole cells: warping features of D channels gives the same logits as warping logits of C.
    warped = warp(plain_BTDhw.flatten(0, 1), theta_BT23.flatten(0, 1)).unflatten(0, (B, T))
    logits = warped.flatten(3).transpose(2, 3) @ anchors.T
    with torch.no_grad():
        affinity = torch.einsum("btdp,bnd->btpn", transformed_BTDhw.flatten(3), anchors_BnD)
        first = torch.arange(B, device=affinity.device) + distributed.rank() * B
        labels = affinity.argmax(-1) + (first * anchors_BnD.shape[1])[:, None, None]
    return logits, labels


def _cross_view(plain_BTDhw, transformed_BTDhw, theta_BT23, reference_index_Bm, temperature):
    """The cross-view term: cells of frame 0 must find themselves in the other view among the cells of all clips."""
    warped = warp(plain_BTDhw[:, 0], theta_BT23[:, 0])
    queries = gather_cells(warped, reference_index_Bm).flatten(0, 1)
    targets = gather_cells(transformed_BTDhw[:, 0], reference_index_Bm).flatten(0, 1)
    own = torch.arange(len(queries), device=queries.device) + distributed.rank() * len(queries)
    return F.cross_entropy(queries @ distributed.gather(targets).T / temperature, own)


def training_sample(batch, logits, labels, anchor_index, grid):
    """One clip as a sheet with a column for each frame.  -> uint8 [3, rows, columns].

    batch: one clip as the loss gets it.  logits [T,hw,N], labels [T,hw]: as from dul.self_training.  grid: (h, w).
    Rows: the plain view (anchors marked on frame 0); the transformed view; its pseudo labels; the prediction of the
    plain view, warped onto it; and where labels and prediction disagree (white = the label has probability 0).
    """
    h, w = grid
    size = batch["plain"].shape[-2:]
    chance = logits.softmax(-1)
    miss = 1 - chance.gather(-1, labels[..., None])[..., 0]
    colours = _anchor_colours(anchor_index, h, w)
    plain_photo, transformed_photo = (batch[view][0].float() / 255 for view in ("plain", "transformed"))
    rows = [
        _mark(plain_photo, anchor_index, h, w),
        transformed_photo,
        0.35 * transformed_photo + 0.65 * _cells(colours[labels], h, w, size),
        _cells(colours[chance.argmax(-1)], h, w, size),
        _cells(miss[..., None].expand(-1, -1, 3), h, w, size),
    ]
    return sheet(rows)


def _anchor_colours(index, h, w):
    """A colour [N,3] for each anchor by its place: red grows downwards, green to the right."""
    row, column = index // w / max(h - 1, 1), index % w / max(w - 1, 1)
    return torch.stack([row, column, 1 - (row + column) / 2], dim=-1).float()


def _cells(values_TPC, h, w, size):
    """The values of all P = h * w cells as pictures [T,C,*size]."""
    maps = values_TPC.transpose(1, 2).unflatten(2, (h, w)).float()
    return F.interpolate(maps, size=size, mode="nearest")


def _mark(photo, index, h, w):
    """The photo with a white square on every anchor of frame 0."""
    photo = photo.clone()
    step_y, step_x = photo.shape[-2] / h, photo.shape[-1] / w
    for cell in index.tolist():
        y, x = int((cell // w + 0.5) * step_y), int((cell % w + 0.5) * step_x)
        photo[0, :, max(y - 2, 0) : y + 2, max(x - 2, 0) : x + 2] = 1.0
    return photo
