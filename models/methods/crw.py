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
from core.schema import Section, above, at_least, below_one, span
from models.backbones.resnet import CHANNELS, Backbone, ReflectResNet
from models.extractor import unit
from models.method import Losses
from models.method import Method as BaseMethod
from models.methods.crw_pictures import walk_of_one
from models.methods.crw_views import Views

__all__ = ["Config", "Method", "Views", "steps", "walks"]

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


class Method(BaseMethod):
    """The network, with layer4 and a head for training only, and the loss of walks between patches."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.extractor = ReflectResNet()
        self.extractor.mean, self.extractor.std = MEAN, STD
        self.layer4 = Backbone("res4", "reflect").layer4
        self.head = nn.Linear(CHANNELS["res4"], config.embedding)

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
