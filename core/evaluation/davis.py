"""J&F of two folders of masks, as DAVIS 2017 reports it for the semi-supervised task.

The objects of a sequence are the ids of its first annotation.  The official program takes all ids from 1 to the
highest, which is the same in DAVIS; in other data it would score an id that does not occur as a perfect prediction.
The first and the last frame are not scored.  Pixels of 255 are void and not scored, unless the first annotation marks
nothing else: then 255 is object 1.
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
from core.palette import VOID, ids_in, read_ids

FRAMES_A_WORKER = 500  # a second or two of work, about as long as a process takes to start


@dataclass(frozen=True)
class Scores:
    """J and F, of one object or averaged over objects."""

    J: jf.Statistics
    F: jf.Statistics

    @property
    def jf_mean(self) -> float:
        """J&F, the mean of J.mean and F.mean."""
        return (self.J.mean + self.F.mean) / 2


@dataclass(frozen=True)
class ObjectScores(Scores):
    """J and F of one object over the frames of its sequence.  by_frame: (J, F) of every scored frame."""

    sequence: str
    id: int
    by_frame: tuple[tuple[float, float], ...]

    @property
    def frames(self) -> int:
        """Number of scored frames."""
        return len(self.by_frame)

    @property
    def name(self) -> str:
        """The name in the official tables, for example "bike-packing_2"."""
        return f"{self.sequence}_{self.id}"


def evaluate(annotations, results, sequences=None, workers=None, single=False) -> list[ObjectScores]:
    """Score every object of the sequences, in the order of the sequences.

    annotations, results: folders that hold a folder of PNGs for each sequence.  sequences: names, None = all that are
    in both folders.  workers: processes, None = one per core if there are enough frames.  single: all ids are one
    object, as in DAVIS 2016.  Raises UserError if a folder has another layout, and if a mask is missing, differs in
    size from its annotation, or holds an id that the annotations of the sequence do not have.
    """
    annotations, results = Path(annotations), Path(results)
    layout.check(annotations, results)
    return evaluate_folders(layout.pairs(annotations, results, sequences), workers, single)


def evaluate_folders(folders, workers=None, single=False) -> list[ObjectScores]:
    """Score every object of sequences that are given as pairs of folders (annotation, result)."""
    workers = min(len(folders), workers or worthwhile_workers(folders))
    columns = *zip(*folders), repeat(single)
    if workers == 1:
        return _collected(map(score_sequence, *columns), len(folders))
    # Spawned, not forked: the caller may hold threads or a GPU.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker) as pool:
        return _collected(pool.map(score_sequence, *columns), len(folders))


def worthwhile_workers(folders):
    """One process per core, fewer if a process would have less than FRAMES_A_WORKER frames to score."""
    frames = sum(len(layout.masks_in(annotation)) for annotation, _ in folders)
    return max(1, min(os.cpu_count() or 1, frames // FRAMES_A_WORKER))


def _collected(scores_of_sequences, count):
    # disable=None: a bar on a terminal only.
    bar = tqdm(scores_of_sequences, "J&F", count, leave=False, unit="sequence", dynamic_ncols=True, disable=None)
    return [score for scores in bar for score in scores]


def _start_worker():
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C


def score_sequence(annotation, result, single) -> list[ObjectScores]:
    """Score the objects of one sequence, given by its two folders.  single: all ids are one object."""
    paths = layout.masks_in(annotation)
    if len(paths) < 3:
        raise UserError(
            f"{annotation}: {len(paths)} annotated frames; at least 3 are needed, "
            "because the first and the last are left out"
        )
    for path in layout.masks_in(result):
        if not (annotation / path.name).is_file():
            raise UserError(f"{annotation / path.name}: missing, but {result} has this frame; every frame is needed")
    read = readers(paths[0], single)
    objects = sorted(object_ids(read[0](paths[0])))
    if not objects:
        raise UserError(f"{paths[0]}: marks no object (0 is background, {VOID} is void), so there is nothing to score")
    J_TM, F_TM = np.moveaxis(measure(paths, result, objects, *read), 2, 0)
    return [
        ObjectScores(jf.statistics(J_T), jf.statistics(F_T), result.name, id, tuple(zip(J_T.tolist(), F_T.tolist())))
        for id, J_T, F_T in zip(objects, J_TM.T, F_TM.T)
    ]


def readers(first, single):
    """Two functions, path -> ids as they are scored, uint8 [H,W]: of annotations, and of predictions.

    first: the path of the first annotation.  single: all ids become object 1.
    """
    truth, prediction = np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8)
    if single:
        truth[1:VOID] = prediction[1:] = 1
    if ids_in(read_ids(first)) - {0} == {VOID}:
        truth[VOID] = prediction[VOID] = 1
    return lambda path: cv2.LUT(read_ids(path), truth), lambda path: cv2.LUT(read_ids(path), prediction)


def measure(paths, result, objects, read_truth, read_prediction):
    """J and F of M objects in T frames without the first and the last: [T-2,M,2].

    paths: the T annotations.  result: folder of the predictions.  objects: the M ids.  An object that a prediction
    lacks counts as empty there.  Objects that the annotations hold after the first frame only are not scored.
    """
    known = object_ids(read_truth(paths[0])) | object_ids(read_truth(paths[-1]))
    measures, predicted = [], {}
    for path in paths[1:-1]:
        truth = read_truth(path)
        prediction = read_prediction(result / path.name)
        if prediction.shape != truth.shape:
            size, expected = (f"{ids.shape[1]}x{ids.shape[0]}" for ids in (prediction, truth))
            raise UserError(
                f"{result / path.name}: {size} pixels where its annotation {path} has {expected}; "
                "masks must have the size of the annotation"
            )
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


def object_ids(ids):
    """The set of ids in a mask without background and void."""
    return ids_in(ids) - {0, VOID}


def overall(scores) -> Scores:
    """The mean over objects (not over sequences), as DAVIS 2017 reports it."""
    assert scores, "no object scored"
    return Scores(*(jf.Statistics(*np.mean([getattr(s, m) for s in scores], axis=0).tolist()) for m in "JF"))
