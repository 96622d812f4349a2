"""How much faster is J&F here than in the official program, on one core, and are the results equal to the last bit?

    python -m benchmarks.metrics [--annotations DIR] [--heights 480 1080] [--frames 12] [--repeats 5]

Two parts, each in two ways that take turns:
    measures   masks of objects in memory -> J and F
    program    folders of PNGs -> all scores; both ways read them with Pillow, which takes most of our time
"As official" follows the steps of the official DAVIS 2017 program: whole sequences in memory; objects separated by
arrays of float64; full frames; an empty void mask removed; contours from three shifted copies, dilated with OpenCV.
Annotations are compared with copies that have mistakes, each sequence alone ("found") and all in one ("layered": many
objects a frame).
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from benchmarks import timing
from core.errors import UserError, reported
from core.evaluation import davis, jf
from core.palette import read_ids, write_indexed


def plain_j(truth_MTHW, prediction_MTHW):
    """J [M,T] over full frames, as official."""
    void = np.zeros_like(prediction_MTHW)
    both = np.sum((truth_MTHW & prediction_MTHW) & ~void, axis=(-2, -1))
    either = np.sum((truth_MTHW | prediction_MTHW) & ~void, axis=(-2, -1))
    return np.where(either, both / np.maximum(either, 1), 1.0)


def plain_contour(mask):
    right, below, corner = (np.zeros_like(mask) for _ in range(3))
    right[:, :-1], below[:-1], corner[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edge = (mask ^ right) | (mask ^ below) | (mask ^ corner)
    edge[-1] = mask[-1] ^ right[-1]
    edge[:, -1] = mask[:, -1] ^ below[:, -1]
    edge[-1, -1] = False
    return edge


def plain_f(truth, prediction):
    """F of one object over one full frame, as official."""
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


def plain_measures(truth_MTHW, prediction_MTHW):
    """J and F [2,M,T]."""
    f = [[plain_f(a, b) for a, b in zip(*both)] for both in zip(truth_MTHW, prediction_MTHW)]
    return np.array([plain_j(truth_MTHW, prediction_MTHW), f])


def our_measures(truth_MTHW, prediction_MTHW):
    both = zip(truth_MTHW, prediction_MTHW)
    return np.array([[jf.j_and_f(*frame) for frame in zip(*masks)] for masks in both]).transpose(2, 0, 1)


def separated(ids_THW, objects):
    """Masks of every object, bool [M,T,H,W], by way of float64 as official."""
    numbers = np.ones((len(objects), *ids_THW.shape)) * np.array(objects)[:, None, None, None]
    return numbers == ids_THW[None]


def plain_program(annotations, results):
    """Mean, recall and decay of J and F, [objects,2,3]."""
    rows = []
    for folder in sorted(annotations.iterdir()):
        paths = sorted(folder.glob("*.png"))
        truth = np.stack([read_ids(path) for path in paths])
        prediction = np.stack([read_ids(results / folder.name / path.name) for path in paths[1:-1]])
        objects = sorted(davis.object_ids(truth[0]))
        j, f = plain_measures(*(separated(ids, objects) for ids in (truth[1:-1], prediction)))
        rows += [[jf.statistics(j_T), jf.statistics(f_T)] for j_T, f_T in zip(j, f)]
    return np.array(rows)


def our_program(annotations, results):
    return np.array([[score.J, score.F] for score in davis.evaluate(annotations, results, workers=1)])


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
    """{name: ids [T,H,W]} of that height, from evenly spaced frames of each sequence."""
    sequences = {}
    for folder in sorted(Path(annotations).glob("*/")):
        paths = sorted(folder.glob("*.png"))
        if len(paths) >= frames:
            masks = [read_ids(paths[t]) for t in np.linspace(0, len(paths) - 1, frames).round().astype(int)]
            size = (round(masks[0].shape[1] * height / masks[0].shape[0]), height)
            sequences[folder.name] = np.stack([cv2.resize(m, size, interpolation=cv2.INTER_NEAREST) for m in masks])
    if not sequences:
        raise UserError(f"--annotations {annotations}: no folder of {frames} masks or more; choose fewer --frames")
    return sequences


def layered(sequences):
    """One sequence: all sequences that have the size of the first, drawn over each other, each as one object."""
    first, *_ = sequences.values()
    ids = np.zeros_like(first)
    for number, masks in enumerate(sequences.values(), 1):
        if masks.shape == ids.shape:
            ids[(masks > 0) & (masks != davis.VOID)] = number
    return {"all": ids}


def compare(title, sequences, repeats):
    """Measure both parts on some sequences and print their rows.  Returns the largest difference."""
    rng = np.random.default_rng(0)
    results = {name: np.stack([mistaken(ids, rng) for ids in ids_THW]) for name, ids_THW in sequences.items()}
    objects = {name: sorted(davis.object_ids(ids_THW[0])) for name, ids_THW in sequences.items()}
    cases = [[separated(each[name][1:-1], objects[name]) for each in (sequences, results)] for name in sequences]
    frames = sum(truth.shape[1] for truth, _ in cases)
    count = sum(truth.shape[0] * truth.shape[1] for truth, _ in cases) / frames
    measures = lambda way: np.concatenate([way(*case).ravel() for case in cases])
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        folders = Path(folder, "truth"), Path(folder, "results")
        for masks, where in zip((sequences, results), folders):
            for name, ids_THW in masks.items():
                for t, ids in enumerate(ids_THW):
                    write_indexed(where / name / f"{t:05d}.png", ids)
        for part, works in {
            "measures": {way: partial(measures, way) for way in (plain_measures, our_measures)},
            "program": {way: partial(way, *folders) for way in (plain_program, our_program)},
        }.items():
            plain, ours = timing.alternated(works, repeats).values()
            cells = []
            for clock in ("cpu", "wall"):
                slow, fast = (1e3 * timing.median(runs, clock) / frames for runs in (plain, ours))
                cells += [f"{slow:.2f}", f"{fast:.2f}", f"{slow / fast:.1f}"]
            difference = float(np.abs(plain[-1].result - ours[-1].result).max())
            timing.row(title, f"{count:.1f}", part, *cells, difference)
            worst = max(worst, difference)
    return worst


@reported
def main(argv=None):
    parser = timing.arguments(__doc__, repeats=5)
    parser.add_argument("--annotations", default="data/davis2017/Annotations/480p", help="DIR/<sequence>/<frame>.png")
    parser.add_argument("--heights", type=int, nargs="+", default=[480, 1080])
    parser.add_argument("--frames", type=int, default=12, help="of each sequence, 3 or more")
    args = parser.parse_args(argv)
    if args.frames < 3:
        raise UserError(f"--frames {args.frames}: must be 3 or more, because the first and the last are left out")
    cv2.setNumThreads(1)
    print(f"{args.annotations}, ms a frame on one core, medians of {args.repeats} alternated runs\n")
    timing.head("masks", "objects", "part", "as official, CPU", "ours", "ratio", "clock", "ours", "ratio", "difference")
    worst = 0.0
    for height in args.heights:
        found = found_sequences(args.annotations, args.frames, height)
        for title, sequences in (("found", found), ("layered", layered(found))):
            worst = max(worst, compare(f"{height}p {title}", sequences, args.repeats))
    sys.exit(worst > 0)


if __name__ == "__main__":
    main()
