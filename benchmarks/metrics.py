"""How much faster is J&F here than by the official program's way, on one core, and do they agree to the last bit?

    python benchmarks/metrics.py [--annotations DIR] [--heights 480 1080] [--frames 12] [--repeats 5]

Two parts, each timed for both, who take turns, on one core:
    measures   masks of the objects in memory -> J and F
    program    folders of PNGs -> all scores; both read them with Pillow, which is most of what ours takes
"As official" is what the official DAVIS 2017 program does, step by step: whole sequences in memory, separated into
objects by arrays of float64; for every object full frames, an empty mask of void pixels taken off, contours from
three shifted copies, and each contour dilated with OpenCV by the full disk.
Masks: annotations, each sequence by itself ("found") and all laid over each other ("layered": more objects a
frame), against masks with an algorithm's mistakes: objects moved, shrunk, grown or lost, and specks far off.
CPU seconds are less moved by a busy machine than seconds of the clock.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.errors import UserError, reported  # noqa: E402
from core.evaluation import davis, jf  # noqa: E402
from core.palette import read_ids, write_indexed  # noqa: E402


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


def separated(ids_THW, objects):
    """Masks of every object, bool [M,T,H,W], by way of float64 as official."""
    numbers = np.ones((len(objects), *ids_THW.shape)) * np.array(objects)[:, None, None, None]
    return numbers == ids_THW[None]


def plain_statistics(values):
    cuts = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(int)
    bins = [values[first : last + 1] for first, last in zip(cuts, cuts[1:])]
    return np.nanmean(values), np.nanmean(values > 0.5), np.nanmean(bins[0]) - np.nanmean(bins[3])


def plain_program(annotations, results):
    """Mean, recall and decay of J and F, [objects,2,3]."""
    rows = []
    for folder in sorted(annotations.iterdir()):
        paths = sorted(folder.glob("*.png"))
        truth = np.stack([read_ids(path) for path in paths])
        prediction = np.stack([read_ids(results / folder.name / path.name) for path in paths[1:-1]])
        objects = sorted(davis.object_ids(truth[0]))
        j, f = plain_measures(*(separated(ids, objects) for ids in (truth[1:-1], prediction)))
        rows += [[plain_statistics(j_T), plain_statistics(f_T)] for j_T, f_T in zip(j, f)]
    return np.array(rows)


def our_measures(truth_MTHW, prediction_MTHW):
    both = zip(truth_MTHW, prediction_MTHW)
    return np.array([[jf.j_and_f(*frame) for frame in zip(*masks)] for masks in both]).transpose(2, 0, 1)


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
            shift = np.float32([[1, 0, rng.integers(-some, some + 1)], [0, 1, rng.integers(-some, some + 1)]])
            mask = cv2.warpAffine(mask, shift, (width, height))
        elif kind in ("shrunk", "grown"):
            mask = (cv2.erode if kind == "shrunk" else cv2.dilate)(mask, disk)
        elif kind == "specks":
            for _ in range(4):
                spot = (int(rng.integers(width)), int(rng.integers(height)))
                cv2.circle(mask, spot, some, 1, cv2.FILLED)
        if kind != "lost":
            out[mask > 0] = id
    return out


def found_sequences(annotations, frames, height):
    """name -> id masks [T,H,W] of that height: frames of each sequence, evenly chosen."""
    sequences = {}
    for folder in sorted(Path(annotations).glob("*/")):
        paths = sorted(folder.glob("*.png"))
        chosen = np.linspace(0, len(paths) - 1, frames).round().astype(int) if len(paths) >= frames else []
        masks = [read_ids(paths[t]) for t in chosen]
        if masks:
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


def write(sequences, folder):
    for name, ids_THW in sequences.items():
        for t, ids in enumerate(ids_THW):
            write_indexed(folder / name / f"{t:05d}.png", ids)


def timed(work):
    """Seconds of the clock, of the CPU, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def compare(title, plain, ours, frames, repeats):
    """One row of the table; the largest difference."""
    runs = [(timed(plain), timed(ours)) for _ in range(repeats)]
    median = lambda way, clock: 1e3 * statistics.median(run[way][clock] for run in runs) / frames
    (slow, fast), (slow_cpu, fast_cpu) = ([median(way, clock) for way in (0, 1)] for clock in (0, 1))
    difference = float(np.abs(runs[-1][0][2] - runs[-1][1][2]).max())
    print(
        f"| {title} | {slow_cpu:.2f} | {fast_cpu:.2f} | {slow_cpu / fast_cpu:.1f} "
        f"| {slow:.2f} | {fast:.2f} | {slow / fast:.1f} | {difference} |",
        flush=True,
    )
    return difference


def rows(title, sequences, repeats):
    """Both parts of one set of sequences -> the largest difference."""
    rng = np.random.default_rng(0)
    results = {name: np.stack([mistaken(ids, rng) for ids in ids_THW]) for name, ids_THW in sequences.items()}
    cases = []
    for name, ids in sequences.items():
        objects = sorted(davis.object_ids(ids[0]))
        cases.append([separated(masks[1:-1], objects) for masks in (ids, results[name])])
    frames, masks = (sum(np.prod(truth.shape[first:2]) for truth, _ in cases) for first in (1, 0))
    title = f"{title} | {masks / frames:.1f}"
    plain, ours = (
        lambda way=way: np.concatenate([way(*case).ravel() for case in cases]) for way in (plain_measures, our_measures)
    )
    worst = compare(f"{title} | measures", plain, ours, frames, repeats)
    with tempfile.TemporaryDirectory() as folder:
        folders = Path(folder, "truth"), Path(folder, "results")
        for masks, where in zip((sequences, results), folders):
            write(masks, where)
        plain, ours = (lambda way=way: way(*folders) for way in (plain_program, our_program))
        return max(worst, compare(f"{title} | program", plain, ours, frames, repeats))


@reported
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", default="data/davis2017/Annotations/480p", help="DIR/<sequence>/<frame>.png")
    parser.add_argument("--heights", type=int, nargs="+", default=[480, 1080])
    parser.add_argument("--frames", type=int, default=12, help="of each sequence, 3 or more")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.frames < 3:
        raise UserError(f"--frames {args.frames}: must be 3 or more, because the first and the last are left out")
    cv2.setNumThreads(1)
    print(f"{args.annotations}, ms a frame on one core, medians of {args.repeats} alternated runs\n")
    print("| masks | objects | part | as official, CPU | ours | ratio | clock | ours | ratio | largest difference |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    worst = 0
    for height in args.heights:
        found = found_sequences(args.annotations, args.frames, height)
        for title, sequences in (("found", found), ("layered", layered(found))):
            worst = max(worst, rows(f"{height}p {title}", sequences, args.repeats))
    sys.exit(worst > 0)


if __name__ == "__main__":
    main()
