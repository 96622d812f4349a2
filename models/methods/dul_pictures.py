"""The picture of a DUL training sample for TensorBoard.

Legend: T frames, N anchors, h w cells, C channels.
"""

import torch
import torch.nn.functional as F

from models.layers import sheet


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
