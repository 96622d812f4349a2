"""How much faster is J&F here than by the official program's way, on one core, and do they agree to the last bit?

    python -m benchmarks.metrics [--annotations DIR] [--heights 480 1080] [--frames 12] [--repeats 5]

Two parts, each timed for both, who take turns, on one core:
    measures   masks of the objects in memory -> J and F
    program    folders of PNGs -> all scores; both read them with Pillow, which is most of what ours takes
"As official" is what the official DAVIS 2017 program does, step by step: whole sequences in memory, separated into
objects by arrays of float64; for every object full frames, an empty mask of void pixels taken off, contours from
three shifted copies, and each contour dilated with OpenCV by the full disk.
Masks: annotations, each sequence by itself ("found") and all laid over each other ("layered": more objects a
frame), against masks with an algorithm's mistakes: objects moved, shrunk, grown or lost, and specks far off.
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
    """A mask with the mistakes that label propagation makes: uint8 [H,W]."""
    out, (height, width) = np.zeros_like(ids), ids.shape
    for id in sorted(davis.object_ids(ids)):
        mask, some = (ids == id).astype(np.uint8), max(1, height // 80)
        disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * some + 1, 2 * some + 1))
        kind = rng.choice(["moved", "shrunk", "grown", "specks", "lost"], p=[0.3, 0.2, 0.2, 0.2, 0.1])
        if kind == "moved":
            mask = np.roll(mask, rng.integers(-some, some + 1, 2), axis=(0, 1))
        elif kind in ("shrunk", "grown"):
            mask = (cv2.erode if kind == "shrunk" else cv2.dilate)(mask, disk)
        elif kind == "specks":
            for x, y in rng.integers((width, height), size=(4, 2)).tolist():
                cv2.circle(mask, (x, y), some, 1, cv2.FILLED)
        if kind != "lost":
            out[mask > 0] = id
    return out


def found_sequences(annotations, frames, height):
    """name -> id masks [T,H,W] of that height: frames of each sequence, evenly chosen."""
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
    """All sequences of the first one's size over each other, each an object: one sequence."""
    first, *_ = sequences.values()
    ids = np.zeros_like(first)
    for number, masks in enumerate(sequences.values(), 1):
        if masks.shape == ids.shape:
            ids[(masks > 0) & (masks != davis.VOID)] = number
    return {"all": ids}


def compare(title, plain, ours, frames, repeats):
    """One row of the table; the largest difference."""
    runs = timing.alternated({"plain": plain, "ours": ours}, repeats)
    cells = []
    for clock in ("cpu", "wall"):
        slow, fast = (1e3 * timing.median(each, clock) / frames for each in runs.values())
        cells += [f"{slow:.2f}", f"{fast:.2f}", f"{slow / fast:.1f}"]
    difference = float(np.abs(runs["plain"][-1].result - runs["ours"][-1].result).max())
    timing.row(*title, *cells, difference)
    return difference


def rows(title, sequences, repeats):
    """Both parts of one set of sequences -> the largest difference."""
    rng = np.random.default_rng(0)
    results = {name: np.stack([mistaken(ids, rng) for ids in ids_THW]) for name, ids_THW in sequences.items()}
    objects = {name: sorted(davis.object_ids(ids_THW[0])) for name, ids_THW in sequences.items()}
    cases = [[separated(each[name][1:-1], objects[name]) for each in (sequences, results)] for name in sequences]
    frames = sum(truth.shape[1] for truth, _ in cases)
    title = (title, f"{sum(truth.shape[0] * truth.shape[1] for truth, _ in cases) / frames:.1f}")
    measures = lambda way: np.concatenate([way(*case).ravel() for case in cases])
    works = (partial(measures, way) for way in (plain_measures, our_measures))
    worst = compare((*title, "measures"), *works, frames, repeats)
    with tempfile.TemporaryDirectory() as folder:
        folders = Path(folder, "truth"), Path(folder, "results")
        for masks, where in zip((sequences, results), folders):
            for name, ids_THW in masks.items():
                for t, ids in enumerate(ids_THW):
                    write_indexed(where / name / f"{t:05d}.png", ids)
        works = (partial(way, *folders) for way in (plain_program, our_program))
        return max(worst, compare((*title, "program"), *works, frames, repeats))


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
    worst = 0
    for height in args.heights:
        found = found_sequences(args.annotations, args.frames, height)
        for title, sequences in (("found", found), ("layered", layered(found))):
            worst = max(worst, rows(f"{height}p {title}", sequences, args.repeats))
    sys.exit(worst > 0)


if __name__ == "__main__":
    main()
