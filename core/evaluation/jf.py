"""Region similarity J, boundary accuracy F and their statistics: the DAVIS benchmark's measures on arrays.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016.

Legend: H W pixels.  truth, prediction, void: bool [H,W]; void pixels count for neither.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

TOLERANCE = 0.008  # of the picture's diagonal


class Statistics(NamedTuple):
    """A measure over the frames of a sequence: mean, share above 0.5, loss from first to last quarter."""

    mean: float
    recall: float
    decay: float


def j_and_f(truth, prediction, void=None, radius=None):
    """J and F of one object in one frame, each in [0, 1].

    radius: tolerance_px of the whole picture, to be given where these masks are a part of it.  Both measures
    are computed inside the box around the two masks, which changes no bit.
    """
    box = surroundings(truth | prediction)
    radius = radius or tolerance_px(truth.shape)
    truth, prediction = truth[box], prediction[box]
    if void is not None:
        truth, prediction = truth & ~void[box], prediction & ~void[box]
    return jaccard(truth, prediction), boundary_f(truth, prediction, radius)


def surroundings(mask):
    """The part of a picture outside of which a mask [H,W] has neither pixels nor contours, as an index.

    The box around its pixels and one more on each side: to the left and above for the contour, to the right
    and below so that the contour sees where the mask ends.
    """
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return np.s_[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]


def tolerance_px(shape):
    """Distance in pixels up to which two contours match in a picture of that shape."""
    return math.ceil(TOLERANCE * math.hypot(*shape))


def jaccard(truth, prediction):
    """J = intersection over union; 1 where both masks are empty."""
    union = np.count_nonzero(truth | prediction)
    return np.count_nonzero(truth & prediction) / union if union else 1.0


def boundary_f(truth, prediction, radius):
    """F = harmonic mean of the shares of either contour that lie within radius pixels of the other.

    A contour that is missing matches nothing; two missing contours match perfectly.
    """
    contours = [contour(truth), contour(prediction)]
    n_truth, n_prediction = (np.count_nonzero(edge) for edge in contours)
    if not n_truth or not n_prediction:
        return float(n_truth == n_prediction)
    bands = np.stack([banded(edge, radius) for edge in contours])
    matched = np.bitwise_count(bands & widened(bands, radius)[::-1]).sum((1, 2), dtype=int).tolist()
    recall, precision = matched[0] / n_truth, matched[1] / n_prediction
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def contour(mask):
    """Pixels that differ from their right, lower or lower right neighbour; bool [H,W].

    In the last row and column only the neighbour inside the picture counts: the frame is no contour.
    """
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def banded(edge, radius):
    """Eight bands of a picture, from its top down, in the bits of one: bool [H,W] -> uint8 [h,W].

    Widening then works on eight pixels at a time.  A band is at least radius high, so that only the bands
    above and below it are within reach.
    """
    h = max(-(-len(edge) // 8), radius)
    bands = np.zeros((h, edge.shape[1]), np.uint8)
    for bit, top in enumerate(range(0, len(edge), h)):
        part = edge[top : top + h].view(np.uint8)
        bands[: len(part)] |= part << bit
    return bands


def widened(bands, radius):
    """Pixels at most radius from a set one, of pictures in bands [N,h,W]."""
    h = bands.shape[1]
    row = np.concatenate([bands[:, h - radius :] << 1, bands, bands[:, :radius] >> 1], axis=1)
    near, reach = np.zeros_like(bands), 0
    for dy in range(radius, -1, -1):  # the disk's rows, from its ends to its middle, where it is widest
        widest = math.isqrt(radius**2 - dy**2)
        while reach < widest:
            # Up to twice as wide and one more at once, without gaps.
            step = min(widest - reach, reach + 1)
            reach += step
            wider = row.copy()
            wider[..., step:] |= row[..., :-step]
            wider[..., :-step] |= row[..., step:]
            row = wider
        near |= row[:, radius - dy : radius - dy + h]
        near |= row[:, radius + dy : radius + dy + h]
    return near


def statistics(values):
    """Mean, recall and decay of one measure over the frames of a sequence; NaN frames have no value.

    values: [T].  Decay is the mean of the first minus that of the last of four equal stretches, which share
    the frame between them.
    """
    values = np.asarray(values, np.float64)
    assert values.ndim == 1 and len(values), "one value per frame"
    # 1e-10: halves are rounded up, where NumPy would round them to even.
    cuts = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[: cuts[1] + 1], values[cuts[3] :]
    return Statistics(
        float(np.nanmean(values)),
        float(np.nanmean(values > 0.5)),
        float(np.nanmean(first) - np.nanmean(last)),
    )
