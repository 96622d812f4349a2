"""CRW: Space-Time Correspondence as a Contrastive Random Walk (NeurIPS 2020, arXiv 2006.14613).

Every frame of a clip is cut into overlapping patches, the nodes of a graph.  A walker steps from frame to frame, more
likely to nodes that look similar to its own, and then back to the first frame, where it should reach its first node.

Legend: B clips, T frames, N nodes a frame, C channels of a node, p pixels per side of a patch.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.augment import normalise
from core.errors import UserError
from core.strict import Section, above, at_least, below_one, span
from models.backbones import resnet
from models.extractor import unit
from models.layers import seeded, sheet, tiled
from models.method import Losses
from models.method import Method as BaseMethod

# width / height of the crop of a frame, and of a patch
CROP_RATIO, PATCH_RATIO = (0.7, 1.3), (3 / 4, 4 / 3)
#: side of a patch in TensorBoard's picture
PICTURE_PX = 32
# Mean and deviation of training, also for tracking with networks trained here; the authors track with ImageNet's.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class Config(Section):
    """embedding: C.  edge_dropout: share of the edges between two frames that a walk cannot take.

    crop_px: side of the crop of a frame; crop_area: range of its share of the frame's area.  patch_px, stride_px: side
    of the patches of this crop, and distance from one to the next; patch_area: range of the share of a patch that is
    cropped out and resized to patch_px.
    """

    name: Literal["crw"]
    embedding: Annotated[int, at_least(1)]
    temperature: Annotated[float, above(0)]
    edge_dropout: Annotated[float, below_one()]
    crop_px: Annotated[int, at_least(32)]
    crop_area: Annotated[tuple[float, float], span(0, 1)]
    patch_px: Annotated[int, at_least(16)]
    stride_px: Annotated[int, at_least(1)]
    patch_area: Annotated[tuple[float, float], span(0, 1)]

    def check(self):
        spare = self.crop_px - self.patch_px
        self.require("stride_px", self.stride_px <= spare, f"at most method.crop_px - method.patch_px = {spare}")


class Views:
    """clip -> {"patches" uint8 [T,N,3,p,p]}: an overlapping grid, row by row; every crop drawn on its own.

    The crop of each patch, a little smaller than the patch, keeps the network from telling patches by their place.
    """

    def __init__(self, config: Config):
        from torchvision.transforms import v2  # takes a second, for programs that make no views, too

        self.patch_px, self.stride_px = config.patch_px, config.stride_px
        self.crop = v2.RandomResizedCrop(config.crop_px, config.crop_area, CROP_RATIO)
        self.jitter = v2.RandomResizedCrop(config.patch_px, config.patch_area, PATCH_RATIO)

    def __call__(self, frames, rng):
        with seeded(rng):
            return {"patches": torch.stack([self._patches(torch.from_numpy(f).permute(2, 0, 1)) for f in frames])}

    def _patches(self, pixels):
        """[3,H,W] -> [N,3,p,p]."""
        grid = self.crop(pixels)
        for axis in (1, 2):
            grid = grid.unfold(axis, self.patch_px, self.stride_px)
        return torch.stack([self.jitter(patch) for patch in grid.flatten(1, 2).unbind(1)])


class Method(BaseMethod):
    """The network, with layer4 and a head for training only, and the loss of walks between patches."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.extractor = resnet.ReflectResNet()
        self.extractor.mean, self.extractor.std = MEAN, STD
        self.layer4 = resnet.Backbone("res4", "reflect").layer4
        self.head = nn.Linear(resnet.WIDTHS[-1], config.embedding)

    def forward(self, batch):
        """batch: patches uint8 [B,T,N,3,p,p].  -> Losses: cycle_i and returned_i of the walk of i + 1 steps and back.

        Raises UserError for clips of fewer than 3 frames.
        """
        nodes = self._nodes(batch["patches"])
        with torch.autocast(nodes.device.type, enabled=False):
            dropout = self.config.edge_dropout if self.training else 0.0
            losses, returned = walks(*steps(nodes, self.config.temperature, dropout))
        terms = {f"cycle_{i}": loss for i, loss in enumerate(losses.detach(), 1)}
        return Losses(losses.mean(), terms | {f"returned_{i}": share for i, share in enumerate(returned, 1)})

    def _nodes(self, patches):
        """[B,T,N,3,p,p] -> [B,T,N,C], unit norm over C."""
        if patches.shape[1] < 3:
            raise UserError(f"clip.frames = {patches.shape[1]}: must be 3 or more for crw, whose walks take two steps")
        images = normalise(patches.flatten(0, 2), MEAN, STD)
        maps = self.layer4(self.extractor.maps(images, "res3"))
        return unit(self.head(maps.mean((2, 3)))).unflatten(0, patches.shape[:3])

    @torch.no_grad()
    def pictures(self, batch):
        patches = batch["patches"][:1]
        there, back = steps(self._nodes(patches), self.config.temperature)
        return {"walk": walk_of_one(patches[0], there[0], back[0])}


def steps(nodes_BTNC: Tensor, temperature: float, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """Probabilities of the steps from frame t to t + 1, and from t + 1 to t: two [B,T-1,N,N]; rows sum to 1.

    nodes_BTNC: unit norm over C.  dropout: the probability that an edge is left out, drawn for each direction.
    """
    alike = nodes_BTNC[:, :-1] @ nodes_BTNC[:, 1:].transpose(2, 3) / temperature
    return _chances(alike, dropout), _chances(alike.transpose(2, 3), dropout)


def _chances(alike, dropout):
    if dropout:
        # Drawn from torch's global generator on the CPU, so that a run draws the same edges on every device.
        dropped = torch.rand(alike.shape) < dropout
        alike = alike.masked_fill(dropped.to(alike.device), -1e20)
    return alike.softmax(-1)


def walks(there: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
    """For the walks that turn at frames 2, ..., T-1: the loss, and the share of nodes most likely to reach themselves.

    there, back: as `steps` gives them.  Returns two [T-2].  A loss is the cross entropy of the walk's end against its
    start, a mean over nodes and clips, so that the mean over several processes is the loss of the whole batch.
    """
    B, count, N = there.shape[:3]
    start = torch.arange(N, device=there.device).repeat(B)
    out, home = there[:, 0], back[:, 0]
    losses, returned = [], []
    for i in range(1, count):
        out, home = out @ there[:, i], back[:, i] @ home
        ends = torch.log(out @ home + 1e-20).flatten(0, 1)
        losses.append(F.cross_entropy(ends, start))
        returned.append((ends.argmax(-1) == start).float().mean())
    return torch.stack(losses), torch.stack(returned)


def walk_of_one(patches, there, back):
    """A clip and the walk from the node in the middle of its first frame, as a sheet.  -> uint8 [3, rows, columns].

    patches: uint8 [T,N,3,p,p]; there, back [T-1,N,N]: as `steps` gives them, of one clip.  The sheet has a column for
    each of the T frames.  Rows: the patches (the start has a white border); where the walk is on its way there
    (brightest = likeliest), from left to right; where it is on its way back, from right to left, so that the start
    should be brightest in the first column.
    """
    T, N = patches.shape[:2]
    start = N // 2
    chances = [torch.eye(N, device=there.device)[start]]
    for step in [*there, *back.flip(0)]:
        chances.append(chances[-1] @ step)
    out, home = torch.stack(chances[:T]), torch.stack(chances[T - 1 :]).flip(0)
    photo = F.interpolate(patches.flatten(0, 1).float() / 255, size=(PICTURE_PX, PICTURE_PX)).unflatten(0, (T, N))
    light = lambda chance_TN: (0.2 + 0.8 * chance_TN / chance_TN.amax(1, keepdim=True))[..., None, None, None]
    rows = [photo, photo * light(out), photo * light(home)]
    photo[0, start] = F.pad(photo[0, start, :, 2:-2, 2:-2], (2, 2, 2, 2), value=1.0)
    return sheet(tiled(row, round(N**0.5)) for row in rows)
