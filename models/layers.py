"""Small parts that several methods use.

Legend: B images, T frames, D channels, H W pixels, h w cells, P = h * w, n chosen cells.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def conv_head(in_channels, out_channels):
    """Per-cell projection: 1x1 convolution, batch norm, ReLU, 1x1 convolution.  [B,D_in,h,w] -> [B,D_out,h,w]."""
    first, second = nn.Conv2d(in_channels, in_channels, 1), nn.Conv2d(in_channels, out_channels, 1)
    norm, relu = nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)
    return nn.Sequential(OrderedDict(conv1=first, bn1=norm, relu=relu, conv2=second))


def warp(maps_BDhw, theta_B23):
    """maps warped by theta as affine_grid defines it (align_corners=False): the nearest cells, 0 outside."""
    grid = F.affine_grid(theta_B23.to(maps_BDhw.dtype), list(maps_BDhw.shape), align_corners=False)
    return F.grid_sample(maps_BDhw, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def gather_cells(maps_BDhw, index_Bn):
    """The vectors [B,n,D] of maps at flat cell indices (row * w + column)."""
    flat_BPD = maps_BDhw.flatten(2).transpose(1, 2)
    return torch.gather(flat_BPD, 1, index_Bn[..., None].expand(-1, -1, flat_BPD.shape[-1]))


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Inside, torch's global generator, from which torchvision draws, is seeded for one sample by `rng`.

    So the sample does not depend on the number of workers and on other draws of the process.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        yield


def sheet(rows):
    """Rows of pictures, each row [T,3,H,W] in [0,1], as one picture for TensorBoard: uint8 [3, rows, columns]."""
    picture = torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def tiled(pictures, columns):
    """The N pictures of every frame, [T,N,3,H,W], as one picture with so many columns: [T,3,height,width]."""
    return pictures.unflatten(1, (-1, columns)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def initialise(module):
    """Give a linear layer truncated normal weights (0.02) and zero biases; other modules stay as they are."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
