"""Two folders of masks -> J&F as DAVIS 2017 reports it for the semi-supervised task.

The objects of a sequence are the ids of its first annotation.  (The official program takes 1 .. the highest
id there, which is the same wherever ids are contiguous, as they are in DAVIS; an id left out would count as
an object perfectly predicted.)  The first frame, which is given, and the last are left out.  255 = void:
such pixels count for nothing.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from core.errors import UserError
from core.evaluation import jf
from core.palette import read_ids

VOID = 255


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
    of annotations.  workers: processes, None = one a core.  Raises UserError naming the file for masks that
    are missing, of another size than the annotation, or hold ids that the annotation lacks.
    """
    annotations, results = Path(annotations), Path(results)
    for folder in (annotations, results):
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder of masks")
    names = list(sequences) if sequences is not None else sorted(f.name for f in annotations.iterdir() if f.is_dir())
    if not names:
        raise UserError(f"{annotations}: holds no sequence; expected {annotations}/<sequence>/<frame>.png")
    folders = [(annotations / name, results / name) for name in names]
    workers = min(len(names), workers or os.cpu_count() or 1)
    if workers == 1:
        scores = map(score_sequence, *zip(*folders))
        return [score for of_sequence in scores for score in of_sequence]
    # Spawned, not forked: the caller may hold threads or a GPU.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        try:
            return [score for of_sequence in pool.map(score_sequence, *zip(*folders)) for score in of_sequence]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def score_sequence(annotation, result):
    """Score the objects of one sequence; annotation, result: its two folders -> list of ObjectScore."""
    paths = sorted(annotation.glob("*.png")) if annotation.is_dir() else []
    if len(paths) < 3:
        raise UserError(
            f"{annotation}: {len(paths)} annotated frames; the first and the last are left out, so at least 3 are needed"
        )
    if not result.is_dir():
        raise UserError(f"{result}: no results for this sequence; name those to be scored in a list (--sequences)")
    objects = object_ids(read_ids(paths[0]))
    if not objects:
        raise UserError(f"{paths[0]}: marks no object (0 is background, {VOID} is void), so there is nothing to score")
    known = set(objects) | object_ids(read_ids(paths[-1]))
    measures, stray = [], {}
    for path in paths[1:-1]:
        truth = read_ids(path)
        prediction = read_prediction(result / path.name, truth.shape, path)
        known |= object_ids(truth)
        for id in np.unique(prediction[prediction > 0]).tolist():
            stray.setdefault(id, result / path.name)
        void = truth == VOID
        void = void if void.any() else None
        measures.append([jf.j_and_f(truth == id, prediction == id, void) for id in sorted(objects)])
    for id, path in stray.items():
        if id not in known:
            raise UserError(f"{path}: holds id {id}, which the annotation of this sequence ({sorted(known)}) does not have")
    J_TM, F_TM = np.moveaxis(np.array(measures), 2, 0)
    return [
        ObjectScore(annotation.name, id, len(measures), jf.statistics(J_T), jf.statistics(F_T))
        for id, J_T, F_T in zip(sorted(objects), J_TM.T, F_TM.T)
    ]


def object_ids(ids):
    """The ids in a mask but background and void, as a set."""
    return set(np.unique(ids).tolist()) - {0, VOID}


def read_prediction(path, shape, truth_path):
    """The predicted ids of a frame, checked against the shape [H,W] of its annotation."""
    prediction = read_ids(path)
    if prediction.shape != shape:
        size, expected = (f"{s[1]}x{s[0]}" for s in (prediction.shape, shape))
        raise UserError(f"{path}: {size} pixels, but its annotation {truth_path} has {expected}; write masks in the size of the annotation")
    return prediction


def overall(scores):
    """Means over objects (not over sequences), as DAVIS 2017 reports them."""
    assert scores, "no object scored"
    return Overall(*(jf.Statistics(*np.mean([getattr(s, m) for s in scores], axis=0).tolist()) for m in "JF"))
