"""The projection head of INO (DINO's head): an MLP to a bottleneck, then cosines with learnt directions.

Legend: D channels, K outputs.
"""

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import initialise


class Head(nn.Module):
    """[..,D] -> [..,K]: linear, GELU, linear, GELU, linear to the bottleneck, unit norm, `Directions`."""

    def __init__(self, channels, hidden, bottleneck, outputs):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.apply(initialise)
        self.last_layer = Directions(bottleneck, outputs)

    def forward(self, x):
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class Directions(nn.Module):
    """Linear layer without bias whose rows have the length weight_g, fixed at 1; only weight_v is learnt.

    Torch's weight_norm and the published weights have the same names.
    """

    def __init__(self, channels, outputs):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1), requires_grad=False)
        self.weight_v = nn.Parameter(nn.Linear(channels, outputs, bias=False).weight.detach())

    def forward(self, x):
        return F.linear(x, F.normalize(self.weight_v, dim=1) * self.weight_g)
