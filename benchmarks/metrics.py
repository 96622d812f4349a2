"""How much faster is J&F here than in the official program, on one core, and are the results equal to the last bit?

    python -m benchmarks.metrics [--annotations DIR] [--heights 480 1080] [--frames 12] [--repeats 5]

Both compute J and F from ids in memory, in turns.  "As official" follows the steps of the official DAVIS 2017 program:
whole sequences at once; objects separated by arrays of float64; full frames; an empty void mask removed; contours from
three shifted copies, dilated with OpenCV by the full disk.
Annotations are compared with copies that have mistakes, each sequence alone ("found") and all in one ("layered": many
objects a frame).  The exit code is 1 if results differ.
"""

import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from benchmarks import timing
from core.errors import UserError, reported
from core.evaluation import davis, jf
from core.palette import read_ids


def plain_contour(mask):
    """The contour of a mask as the official program finds it."""
    right, below, corner = (np.zeros_like(mask) for _ in range(3))
    right[:, :-1], below[:-1], corner[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edge = (mask ^ right) | (mask ^ below) | (mask ^ corner)
    edge[-1] = mask[-1] ^ right[-1]
    edge[:, -1] = mask[:, -1] ^ below[:, -1]
    edge[-1, -1] = False
    return edge


def plain_f(truth, prediction):
    """F of one object in one frame, as official."""
    radius = int(np.ceil(0.008 * np.linalg.norm(truth.shape)))
    reach = np.arange(-radius, radius + 1)
    disk = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.uint8)
    void = np.zeros_like(prediction)
    of_truth, of_prediction = plain_contour(truth & ~void), plain_contour(prediction & ~void)
    near_truth, near_prediction = (cv2.dilate(edge.astype(np.uint8), disk) for edge in (of_truth, of_prediction))
    n_truth, n_prediction = np.sum(of_truth), np.sum(of_prediction)
    if n_truth == 0 or n_prediction == 0:
        return float(n_truth == n_prediction)
    precision = np.sum(of_prediction * near_truth) / n_prediction
    recall = np.sum(of_truth * near_prediction) / n_truth
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def as_official(pairs):
    """J and F of every object and frame.  pairs: (annotation, prediction) of each sequence, ids [T,H,W]."""
    measures = []
    for pair in pairs:
        objects = np.array(sorted(davis.object_ids(pair[0][0])))[:, None, None, None]
        truth, prediction = (np.ones((len(objects), *ids.shape)) * objects == ids for ids in pair)
        void = np.zeros_like(prediction)
        both = np.sum((truth & prediction) & ~void, axis=(-2, -1))
        either = np.sum((truth | prediction) & ~void, axis=(-2, -1))
        J = np.where(either, both / np.maximum(either, 1), 1.0)
        F = [[plain_f(*frame) for frame in zip(*masks)] for masks in zip(truth, prediction)]
        measures.append(np.stack([J, F], -1).reshape(-1, 2))
    return np.concatenate(measures)


def ours(pairs):
    """As as_official, by this project."""
    measures = []
    for pair in pairs:
        objects = sorted(davis.object_ids(pair[0][0]))
        measures += [jf.j_and_f(*(ids == id for ids in frame)) for id in objects for frame in zip(*pair)]
    return np.array(measures)


def mistaken(ids, rng):
    """A copy of ids [H,W] with mistakes: objects are moved, every fifth has specks far off, every tenth is missing."""
    out, (height, width) = np.zeros_like(ids), ids.shape
    some = max(1, height // 80)
    for id in sorted(davis.object_ids(ids)):
        chance = rng.random()
        if chance < 0.1:
            continue
        out[np.roll(ids == id, rng.integers(-some, some + 1, 2), axis=(0, 1))] = id
        if chance > 0.8:
            for x, y in rng.integers((width, height), size=(4, 2)).tolist():
                cv2.circle(out, (x, y), some, id, cv2.FILLED)
    return out


def found_sequences(annotations, frames, height):
    """For each sequence the ids [T,H,W] of evenly spaced frames, resized to a height H = `height`."""
    sequences = []
    for folder in sorted(Path(annotations).glob("*/")):
        paths = sorted(folder.glob("*.png"))
        if len(paths) >= frames:
            masks = [read_ids(paths[t]) for t in np.linspace(0, len(paths) - 1, frames).round().astype(int)]
            size = (round(masks[0].shape[1] * height / masks[0].shape[0]), height)
            sequences.append(np.stack([cv2.resize(m, size, interpolation=cv2.INTER_NEAREST) for m in masks]))
    if not sequences:
        raise UserError(f"--annotations {annotations}: no folder of {frames} masks or more; choose fewer --frames")
    return sequences


def layered(sequences):
    """One sequence: all sequences that have the size of the first, drawn over each other, each as one object."""
    ids = np.zeros_like(sequences[0])
    for number, masks in enumerate(sequences, 1):
        if masks.shape == ids.shape:
            ids[(masks > 0) & (masks != davis.VOID)] = number
    return [ids]


def compare(title, sequences, repeats):
    """Print a row of the table.  Returns the largest difference."""
    rng = np.random.default_rng(0)
    pairs = [(truth, np.stack([mistaken(ids, rng) for ids in truth])) for truth in sequences]
    plain, fast = timing.alternated({way: partial(way, pairs) for way in (as_official, ours)}, repeats).values()
    frames, difference = sum(map(len, sequences)), np.abs(plain[-1].result - fast[-1].result).max()
    cells = []
    for clock in ("cpu", "wall"):
        before, after = (1e3 * timing.median(runs, clock) / frames for runs in (plain, fast))
        cells += [f"{before:.2f}", f"{after:.2f}", f"{before / after:.1f}"]
    timing.row(title, f"{len(fast[-1].result) / frames:.1f}", *cells, difference)
    return difference


@reported
def main(argv=None):
    parser = timing.arguments(__doc__, repeats=5)
    parser.add_argument("--annotations", default="data/davis2017/Annotations/480p", help="DIR/<sequence>/<frame>.png")
    parser.add_argument("--heights", type=timing.count, nargs="+", default=[480, 1080])
    parser.add_argument("--frames", type=timing.count, default=12, help="of each sequence")
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    print(f"{args.annotations}, ms a frame on one core, medians of {args.repeats} alternated runs\n")
    timing.head("masks", "objects", "as official, CPU", "ours", "ratio", "clock", "ours", "ratio", "difference")
    differences = []
    for height in args.heights:
        found = found_sequences(args.annotations, args.frames, height)
        for title, sequences in (("found", found), ("layered", layered(found))):
            differences.append(compare(f"{height}p {title}", sequences, args.repeats))
    sys.exit(1 if max(differences) > 0 else 0)


if __name__ == "__main__":
    main()
