"""From the given mask to the feature grid, and from soft masks back to ids at the video's size.

Legend: M channels (0 = background), h w cells of the feature grid, H W pixels.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import UserError
from core.schema import Propagation

#: channels that are resized to the video's size at a time: bounds the memory with many objects
CHANNELS = 8
HD = {(1080, 1920), (816, 1920)}
#: by Propagation.readout: how a given mask comes to the grid, and soft masks to pixels
ALIGNED: dict[str, Any] = {"mode": "bilinear", "align_corners": True}
TO_GRID = {"smooth": ALIGNED, "grid": ALIGNED, "nearest": {"mode": "nearest-exact"}}
TO_PIXELS = {"smooth": ALIGNED, "grid": {"mode": "bilinear"}, "nearest": {"mode": "nearest"}}


def working_size(height: int, width: int, cfg: Propagation) -> tuple[int, int]:
    """Size (H, W) at which a frame goes through the network.

    Raises UserError where nothing is left after rounding down to cfg.multiple, or where cfg.multiple is null.
    """
    if cfg.multiple is None:
        raise UserError("propagation.multiple = null: must be a number here; Tracker takes the network's cell size")
    given = f"{width}x{height}"
    if cfg.hd_to_720 and (height, width) in HD:
        height, width = 720, 1280
    if cfg.rounding == "up":
        up = lambda side: -(-side // cfg.multiple) * cfg.multiple
        old = min(height, width)
        short = up(cfg.short_side or old)
        # the long side in proportion to the short one as rounded, in whole numbers: floats could pass a cell's edge
        height, width = (up(-(-side * short // old)) for side in (height, width))
    elif cfg.short_side is not None:
        scale = cfg.short_side / min(height, width)
        # the short side exactly, the long one rounded down
        height, width = (
            cfg.short_side if side == min(height, width) else int(side * scale) for side in (height, width)
        )
    if cfg.max_side is not None and max(height, width) > cfg.max_side:
        scale = cfg.max_side / max(height, width)
        height, width = (max(min(side, cfg.multiple), round(side * scale)) for side in (height, width))
    height, width = (side // cfg.multiple * cfg.multiple for side in (height, width))
    if not (height and width):
        raise UserError(f"a frame of {given} pixels: its sides must be propagation.multiple = {cfg.multiple} or more")
    return height, width


def to_grid(
    ids: np.ndarray, channels: list[int], size: Sequence[int], cfg: Propagation, device: str | torch.device
) -> Tensor:
    """One-hot masks of some ids on the feature grid.

    ids: uint8 [H,W]; channels: the id of each channel, 0 = background.  Returns [M,h,w] in [0,1], size = (h, w).
    """
    on_device = torch.as_tensor(ids, device=device)
    shrink = lambda mask: F.interpolate(mask[None, None].float(), size, **TO_GRID[cfg.readout])
    return torch.cat([shrink(on_device == channel)[0] for channel in channels])


def to_ids(soft_Mhw, ids, size, working, cfg, confidence=False):
    """Soft masks on the grid -> the id of every pixel, uint8 [H,W] on the same device.

    ids: the id of each channel (a tensor on that device costs no copy); size, working: (H, W) of the video and of
    the frames that the network saw.  confidence: return (ids, confidence), float32 [H,W] in [0,1], the share of the
    largest channel in the sum of all.
    """
    ids = torch.as_tensor(ids, dtype=torch.uint8, device=soft_Mhw.device)
    if cfg.readout == "grid":
        found = tuple(nearest(part, size) for part in _winner(soft_Mhw, ids, working, cfg, confidence))
    else:
        found = _winner(soft_Mhw, ids, size, cfg, confidence)
    return found if confidence else found[0]


def nearest(ids, size):
    """ids [H,W], array or tensor, resized to (H, W); pixel centres correspond, half-way places go to the lower one."""
    count = partial(torch.arange, device=ids.device) if isinstance(ids, torch.Tensor) else np.arange
    rows, columns = (((2 * count(n) + 1) * old - 1) // (2 * n) for n, old in zip(size, ids.shape))
    return ids[rows[:, None], columns]


def _winner(soft_Mhw, ids, size, cfg, confidence):
    """The id of the largest channel at every pixel, of equal ones the first, and with confidence its share.

    Channels are resized a few at a time.
    """
    best, winner = soft_Mhw.new_full(size, -torch.inf), ids.new_zeros(size)
    total = soft_Mhw.new_zeros(size if confidence else 0)
    for first in range(0, len(soft_Mhw), CHANNELS):
        part = F.interpolate(soft_Mhw[None, first : first + CHANNELS], size, **TO_PIXELS[cfg.readout])[0]
        if cfg.min_max:
            part = stretched(part, constant=0 if cfg.readout == "nearest" else 1)
        value, channel = part.max(0)
        winner = torch.where(value > best, ids[first + channel], winner)
        best = torch.maximum(value, best)
        if confidence:
            total += part.sum(0)
    return (winner, best / total.clamp(min=1e-12)) if confidence else (winner,)


def stretched(masks_MHW, constant=1):
    """Every channel stretched to [0,1] where its maximum is above 0; a constant one is multiplied by `constant`.

    INO's and DINO's code divides 0 by 0 there; DINOv3's makes it 0.
    """
    low, high = masks_MHW.amin((1, 2), keepdim=True), masks_MHW.amax((1, 2), keepdim=True)
    # constant to rounding counts as constant
    varies = (high > 0) & (high - low > 1e-6 * high)
    return torch.where(varies, (masks_MHW - low) / (high - low), constant * masks_MHW)
