"""The picture of a CRW training sample for TensorBoard."""

import torch
import torch.nn.functional as F

from models.layers import sheet, tiled

PATCH_PX = 32


def walk_of_one(patches, there, back):
    """A clip and the walk from the node in the middle of its first frame, as a sheet.  -> uint8 [3, rows, columns].

    patches: uint8 [T,N,3,p,p]; there, back [T-1,N,N]: as crw.steps gives them, of one clip.  The sheet has a column for
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
    photo = F.interpolate(patches.flatten(0, 1).float() / 255, size=(PATCH_PX, PATCH_PX)).unflatten(0, (T, N))
    rows = [photo, photo * _light(out), photo * _light(home)]
    photo[0, start] = F.pad(photo[0, start, :, 2:-2, 2:-2], (2, 2, 2, 2), value=1.0)
    return sheet(tiled(row, round(N**0.5)) for row in rows)


def _light(places):
    """Probabilities [T,N] -> brightness [T,N,1,1,1]."""
    return (0.2 + 0.8 * places / places.amax(1, keepdim=True))[..., None, None, None]
