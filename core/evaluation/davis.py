"""Two folders of masks -> J&F as DAVIS 2017 reports it for the semi-supervised task.

The objects of a sequence are the ids of its first annotation.  (The official program takes 1 .. the highest
id there, which is the same wherever ids are contiguous, as they are in DAVIS; an id left out would count as
an object perfectly predicted.)  The first frame, which is given, and the last are left out.  255 = void:
such pixels count for nothing.
"""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from core.errors import UserError
from core.evaluation import jf
from core.palette import ids_in, read_ids
from core.suggest import suggestion

VOID = 255
FRAMES_A_WORKER = 500  # a second or two of work; a process that imports torch takes as long to start


@dataclass(frozen=True)
class ObjectScore:
    """J and F of one object over its sequence; frames: how many were scored."""

    sequence: str
    id: int
    frames: int
    J: jf.Statistics
    F: jf.Statistics

    @property
    def name(self):
        """As in the official tables, e.g. "bike-packing_2"."""
        return f"{self.sequence}_{self.id}"


@dataclass(frozen=True)
class Overall:
    """Means over objects; jf_mean = J&F, the mean of J.mean and F.mean."""

    J: jf.Statistics
    F: jf.Statistics

    @property
    def jf_mean(self):
        return (self.J.mean + self.F.mean) / 2


def evaluate(annotations, results, sequences=None, workers=None):
    """Score every object of the sequences -> list of ObjectScore, in the order of the sequences.

    annotations, results: folders with one folder of PNGs a sequence.  sequences: names; None = every folder
    of annotations.  workers: processes, None = one a core if there is enough to do.  Raises UserError naming
    the file for masks that are missing, of another size than the annotation, or hold ids that the annotation
    lacks.
    """
    annotations, results = Path(annotations), Path(results)
    for folder in (annotations, results):
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder of masks")
    known = sorted(folder.name for folder in annotations.iterdir() if folder.is_dir())
    chosen = known if sequences is None else dict.fromkeys(sequences)  # named twice, scored once
    if not chosen:
        raise UserError(f"{annotations}: holds no sequence; expected {annotations}/<sequence>/<frame>.png")
    for name in chosen:
        if name not in known:
            raise UserError(f"{annotations / name}: there is no such sequence{suggestion(name, known)}")
    return evaluate_folders([(annotations / name, results / name) for name in chosen], workers)


def evaluate_folders(folders, workers=None):
    """The same for a list of (annotation, result), one pair of folders a sequence."""
    workers = min(len(folders), workers or worthwhile_workers(folders))
    columns = zip(*folders)
    if workers == 1:
        return _collected(map(score_sequence, *columns), len(folders))
    # Spawned, not forked: the caller may hold threads or a GPU.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_start_worker) as pool:
        try:
            return _collected(pool.map(score_sequence, *columns), len(folders))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def worthwhile_workers(folders):
    """One a core, but none for fewer frames than are scored while it starts."""
    frames = sum(1 for annotation, _ in folders for _ in annotation.glob("*.png"))
    return max(1, min(os.cpu_count() or 1, frames // FRAMES_A_WORKER))


def _collected(scores_of_sequences, count):
    # disable=None: a bar on a terminal only.
    bar = tqdm(scores_of_sequences, "J&F", count, leave=False, unit="sequence", dynamic_ncols=True, disable=None)
    return [score for scores in bar for score in scores]


def _start_worker():
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to answer


def score_sequence(annotation, result):
    """Score the objects of one sequence; annotation, result: its two folders -> list of ObjectScore."""
    paths = sorted(annotation.glob("*.png"))
    if len(paths) < 3:
        raise UserError(
            f"{annotation}: {len(paths)} annotated frames; at least 3 are needed, "
            "because the first and the last are left out"
        )
    if not result.is_dir():
        raise UserError(f"{result}: no results for this sequence; list the sequences to score (--sequences)")
    objects = sorted(object_ids(read_ids(paths[0])))
    if not objects:
        raise UserError(
            f"{paths[0]}: marks no object (0 is background, {VOID} is void), so there is nothing to score"
        )
    J_TM, F_TM = np.moveaxis(measure(paths, result, objects), 2, 0)
    return [
        ObjectScore(result.name, id, len(J_T), jf.statistics(J_T), jf.statistics(F_T))
        for id, J_T, F_T in zip(objects, J_TM.T, F_TM.T)
    ]


def measure(paths, result, objects):
    """J and F of every object in every frame but the first and the last -> [T-2,M,2].

    An object that a prediction lacks is empty there.  Predicted ids that stand in no annotation of the
    sequence are refused; those of objects that appear later are not, but are not scored.
    """
    known = object_ids(read_ids(paths[0])) | object_ids(read_ids(paths[-1]))
    measures, predicted = [], {}
    for path in paths[1:-1]:
        truth = read_ids(path)
        prediction = read_prediction(result / path.name, truth.shape, path)
        radius, box = jf.tolerance_px(truth.shape), jf.surroundings(truth | prediction)
        truth, prediction = truth[box], prediction[box]
        ids = ids_in(truth)
        known |= ids - {0, VOID}
        for id in ids_in(prediction) - {0}:
            predicted.setdefault(id, result / path.name)
        void = truth == VOID if VOID in ids else None
        measures.append([jf.j_and_f(truth == id, prediction == id, void, radius) for id in objects])
    for id, path in predicted.items():
        if id not in known:
            raise UserError(f"{path}: holds id {id}; the annotation of this sequence has {sorted(known)}")
    return np.array(measures)


def object_ids(mask):
    """The numbers in a mask but background and void, as a set."""
    return ids_in(mask) - {0, VOID}


def read_prediction(path, shape, truth_path):
    """The predicted ids of a frame, checked against the shape [H,W] of its annotation."""
    prediction = read_ids(path)
    if prediction.shape != shape:
        size, expected = (f"{width}x{height}" for height, width in (prediction.shape, shape))
        raise UserError(
            f"{path}: {size} pixels where its annotation {truth_path} has {expected}; "
            "masks must have the size of the annotation"
        )
    return prediction


def overall(scores):
    """Means over objects (not over sequences), as DAVIS 2017 reports them."""
    assert scores, "no object scored"
    return Overall(*(jf.Statistics(*np.mean([getattr(s, m) for s in scores], axis=0).tolist()) for m in "JF"))
