"""Region similarity J, boundary accuracy F and their statistics: the DAVIS benchmark's measures on arrays.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016.

Legend: H W pixels.  truth, prediction, void: bool [H,W]; void pixels are not scored.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

TOLERANCE = 0.008  # of the picture's diagonal


class Statistics(NamedTuple):
    """A measure over the frames of a sequence: mean, share above 0.5, first quarter minus last quarter."""

    mean: float
    recall: float
    decay: float


def j_and_f(truth, prediction, void=None, radius=None):
    """J and F of one object in one frame, each in [0, 1].

    radius: tolerance_px of the whole picture, needed where the masks are a part of it.
    """
    box = surroundings(truth | prediction)  # pixels outside change neither measure
    radius = radius or tolerance_px(truth.shape)
    truth, prediction = truth[box], prediction[box]
    if void is not None:
        truth, prediction = truth & ~void[box], prediction & ~void[box]
    return jaccard(truth, prediction), boundary_f(truth, prediction, radius)


def surroundings(mask):
    """The box that holds all pixels and contours of a mask [H,W], as an index.

    The box is one pixel larger on each side than the mask: contours lie one pixel to the left of it and above it.
    """
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return np.s_[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]


def tolerance_px(shape):
    """The distance in pixels up to which two contours match in a picture of shape [H,W]."""
    return math.ceil(TOLERANCE * math.hypot(*shape))


def jaccard(truth, prediction):
    """J = intersection over union; 1 where both masks are empty."""
    union = np.count_nonzero(truth | prediction)
    return np.count_nonzero(truth & prediction) / union if union else 1.0


def boundary_f(truth, prediction, radius):
    """F = harmonic mean of precision and recall: the share of each contour that is within radius of the other.

    F is 0 if one contour is empty, 1 if both are.
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
    """Pixels that differ from their right, lower or lower right neighbour inside the picture; bool [H,W]."""
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def banded(edge, radius):
    """Pack eight horizontal bands of a picture into the bits of one: bool [H,W] -> uint8 [h,W].

    `widened` then works on eight pixels at a time.  A band has at least radius rows, so that pixels within the radius
    lie in the same band or in one of its neighbours.
    """
    h = max(-(-len(edge) // 8), radius)
    bands = np.zeros((h, edge.shape[1]), np.uint8)
    for bit, top in enumerate(range(0, len(edge), h)):
        part = edge[top : top + h].view(np.uint8)
        bands[: len(part)] |= part << bit
    return bands


def widened(bands, radius):
    """The pixels within the radius of a set pixel.  bands and result: uint8 [N,h,W], as `banded` makes them."""
    h = bands.shape[1]
    row = np.concatenate([bands[:, h - radius :] << 1, bands, bands[:, :radius] >> 1], axis=1)
    near, reach = np.zeros_like(bands), 0
    for dy in range(radius, -1, -1):  # rows of the disk, from the narrow ends to the wide middle
        widest = math.isqrt(radius**2 - dy**2)
        while reach < widest:
            step = min(widest - reach, reach + 1)  # a larger step would leave gaps
            reach += step
            wider = row.copy()
            wider[..., step:] |= row[..., :-step]
            wider[..., :-step] |= row[..., step:]
            row = wider
        near |= row[:, radius - dy : radius - dy + h]
        near |= row[:, radius + dy : radius + dy + h]
    return near


def statistics(values):
    """Mean, recall and decay of a measure over the frames of a sequence.  values: [T], NaN = no value.

    Decay is the mean of the first of four equal parts minus the mean of the last.  Neighbouring parts share a frame.
    """
    values = np.asarray(values, np.float64)
    assert values.ndim == 1 and len(values), "one value per frame"
    # 1e-10: halves are rounded up; NumPy rounds them to even.
    cuts = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[: cuts[1] + 1], values[cuts[3] :]
    decay = np.nanmean(first) - np.nanmean(last)
    return Statistics(float(np.nanmean(values)), float(np.nanmean(values > 0.5)), float(decay))
