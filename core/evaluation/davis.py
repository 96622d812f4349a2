"""Two folders of masks -> J&F as DAVIS 2017 reports it for the semi-supervised task.

The objects of a sequence are the ids of its first annotation.  (The official program takes 1 .. the highest
id there, which is the same wherever ids are contiguous, as they are in DAVIS; an id left out would count as
an object perfectly predicted.)  The first frame, which is given, and the last are left out.  255 = void:
such pixels count for nothing, unless 255 is all that a sequence's first annotation marks: then it is the object 1.
"""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from core.errors import UserError
from core.evaluation import folders as layout
from core.evaluation import jf
from core.palette import ids_in, read_ids

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


def evaluate(annotations, results, sequences=None, workers=None, single=False):
    """Score every object of the sequences -> list of ObjectScore, in the order of the sequences.

    annotations, results: folders with one folder of PNGs a sequence.  sequences: names; None = all that both
    folders hold.  workers: processes, None = one a core if there is enough to do.  single: all ids are one object,
    as in DAVIS 2016.  Raises UserError naming the file for masks that are missing, of another size than the
    annotation, or hold ids that the annotation lacks, and for folders that cannot be what they are given as.
    """
    annotations, results = Path(annotations), Path(results)
    layout.check(annotations, results)
    return evaluate_folders(layout.pairs(annotations, results, sequences), workers, single)


def evaluate_folders(folders, workers=None, single=False):
    """The same for a list of (annotation, result), one pair of folders a sequence."""
    workers = min(len(folders), workers or worthwhile_workers(folders))
    columns = *zip(*folders), repeat(single)
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
    frames = sum(len(layout.masks_in(annotation)) for annotation, _ in folders)
    return max(1, min(os.cpu_count() or 1, frames // FRAMES_A_WORKER))


def _collected(scores_of_sequences, count):
    # disable=None: a bar on a terminal only.
    bar = tqdm(scores_of_sequences, "J&F", count, leave=False, unit="sequence", dynamic_ncols=True, disable=None)
    return [score for scores in bar for score in scores]


def _start_worker():
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to answer


def score_sequence(annotation, result, single=False):
    """Score the objects of one sequence; annotation, result: its two folders -> list of ObjectScore."""
    paths = layout.masks_in(annotation)
    if len(paths) < 3:
        raise UserError(
            f"{annotation}: {len(paths)} annotated frames; at least 3 are needed, "
            "because the first and the last are left out"
        )
    for path in layout.masks_in(result):
        if not (annotation / path.name).is_file():
            raise UserError(f"{annotation / path.name}: missing, but {result} has this frame; every frame is needed")
    tables = id_tables(read_ids(paths[0]), single)
    objects = sorted(object_ids(translated(read_ids(paths[0]), tables[0])))
    if not objects:
        raise UserError(f"{paths[0]}: marks no object (0 is background, {VOID} is void), so there is nothing to score")
    J_TM, F_TM = np.moveaxis(measure(paths, result, objects, tables), 2, 0)
    return [
        ObjectScore(result.name, id, len(J_T), jf.statistics(J_T), jf.statistics(F_T))
        for id, J_T, F_T in zip(objects, J_TM.T, F_TM.T)
    ]


def id_tables(first, single):
    """What the ids of annotations, and of predictions, count as in a sequence: uint8 [256] each, None = themselves.

    first: its first annotation.  Where that marks its objects with 255 alone, 255 is no void but the object 1.
    """
    white = object_ids(first) == set() and VOID in ids_in(first)
    if not (white or single):
        return None, None
    truth = np.minimum(np.arange(256), 1 if single else VOID).astype(np.uint8)
    prediction = truth.copy()
    truth[VOID], prediction[VOID] = (1 if white else VOID), 1
    return truth, prediction


def translated(ids, table):
    return ids if table is None else cv2.LUT(ids, table)


def measure(paths, result, objects, tables):
    """J and F of every object in every frame but the first and the last -> [T-2,M,2].

    An object that a prediction lacks is empty there.  Predicted ids that stand in no annotation of the
    sequence are refused; those of objects that appear later are not, but are not scored.
    """
    read_truth = lambda path: translated(read_ids(path), tables[0])
    known = object_ids(read_truth(paths[0])) | object_ids(read_truth(paths[-1]))
    measures, predicted = [], {}
    for path in paths[1:-1]:
        truth = read_truth(path)
        prediction = translated(read_prediction(result / path.name, truth.shape, path), tables[1])
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
