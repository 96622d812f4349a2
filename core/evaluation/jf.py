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


def j_and_f(truth, prediction, void=None):
    """J and F of one object in one frame, each in [0, 1].

    Both are computed inside the box around the two masks.  That changes no bit: outside of it, and of the
    one pixel more that a contour can reach to the left and above, nothing is set.
    """
    if void is not None:
        truth, prediction = truth & ~void, prediction & ~void
    x, y, width, height = cv2.boundingRect((truth | prediction).view(np.uint8))
    box = np.s_[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]
    radius = tolerance_px(truth.shape)
    return jaccard(truth[box], prediction[box]), boundary_f(truth[box], prediction[box], radius)


def tolerance_px(shape):
    """Distance in pixels up to which two contours match in a picture of that shape."""
    return math.ceil(TOLERANCE * math.hypot(*shape))


def jaccard(truth, prediction):
    """J = intersection over union; 1 where both masks are empty."""
    union = count(truth | prediction)
    return count(truth & prediction) / union if union else 1.0


def boundary_f(truth, prediction, radius):
    """F = harmonic mean of the shares of either contour that lie within radius pixels of the other.

    A contour that is missing matches nothing; two missing contours match perfectly.
    """
    of_truth, of_prediction = contour(truth), contour(prediction)
    n_truth, n_prediction = count(of_truth), count(of_prediction)
    if not n_truth or not n_prediction:
        return float(n_truth == n_prediction)
    precision = count(of_prediction & widened(of_truth, radius)) / n_prediction
    recall = count(of_truth & widened(of_prediction, radius)) / n_truth
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def count(mask):
    return int(np.count_nonzero(mask))


def contour(mask):
    """Pixels that differ from their right, lower or lower right neighbour; bool [H,W].

    In the last row and column only the neighbour inside the picture counts: the frame is no contour.
    """
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def widened(edge, radius):
    """Pixels at most radius from a set one, bool [H,W]."""
    reach = np.arange(-radius, radius + 1)
    disk = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.uint8)
    return cv2.dilate(edge.view(np.uint8), disk).view(bool)


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
