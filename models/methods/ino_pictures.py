"""The picture of an INO training sample for TensorBoard.

Legend: T frames, L local crops a frame, N patches, g l pixels per side of global and local crops.
"""

import torch.nn.functional as F

from models.layers import sheet, tiled

PER_ROW = 4


def training_sample(clip, mask, looks):
    """One clip as a sheet with a column for each frame.  -> uint8 [3, rows, columns].

    clip: "global" [T,3,g,g], "local" [T,L,3,l,l], uint8.  mask: bool [N].  looks [T,heads,N]: attention of the
    teacher's class token.  Rows: the global crop; the same crop with grey masked patches, as the student sees it; the
    attention of the teacher's class token, mean over the heads (brightest = most); the local crops.
    """
    whole = clip["global"].float() / 255
    cells, side = round(len(mask) ** 0.5), whole.shape[-1]
    hidden = _enlarge(mask.float().view(1, 1, cells, cells), side)
    looks = looks.float().mean(1)
    looks = _enlarge((looks / looks.amax(1, keepdim=True)).view(-1, 1, cells, cells), side)
    return sheet([whole, whole * (1 - hidden) + 0.5 * hidden, whole * (0.2 + 0.8 * looks), _small(clip["local"], side)])


def _enlarge(maps, side):
    return F.interpolate(maps, size=(side, side), mode="nearest")


def _small(local, side):
    """[T,L,3,l,l] -> [T,3,height,side]: PER_ROW crops in a row; places without a crop are black."""
    T, L = local.shape[:2]
    small = F.interpolate(local.flatten(0, 1).float() / 255, size=(side // PER_ROW,) * 2, mode="nearest")
    pictures = small.new_zeros(T, L + -L % PER_ROW, 3, *small.shape[-2:])
    pictures[:, :L] = small.unflatten(0, (T, L))
    rows = tiled(pictures, PER_ROW)
    return F.pad(rows, (0, side - rows.shape[-1]))
