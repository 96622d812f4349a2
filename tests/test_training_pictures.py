"""The picture of a validation sequence in TensorBoard."""

import numpy as np
import pytest
from PIL import Image

from core.palette import overlay, write_indexed
from datasets import vos_sequences
from labelprop import Tracker
from tests.test_labelprop_tracker import Colours
from tests.test_labelprop_video import DUL, moving
from training import pictures


@pytest.fixture
def sequence(tmp_path):
    """A red and a green square that move to the right: 7 PNG frames in DAVIS layout."""
    for t, (frame, ids) in enumerate(moving(7)):
        path = tmp_path / f"JPEGImages/480p/squares/{t:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(path)
        write_indexed(tmp_path / f"Annotations/480p/squares/{t:05d}.png", ids)
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("squares\n")
    return vos_sequences.davis(tmp_path)[0]


def test_the_sheet_shows_annotation_prediction_confidence_and_where_a_cell_goes(sequence):
    tracker, numbers = Tracker(Colours(), protocol=DUL, device="cpu"), pictures.shown(7)
    segmented = tracker.segment(sequence.frames(), sequence.given(), confidence=True)
    results = {t: result for t, result in enumerate(segmented) if t in numbers}
    sheet = pictures.validation_sheet(sequence, sequence.annotations, results, tracker).transpose(1, 2, 0)
    frames, truth = zip(*moving(7))
    H, W = truth[0].shape
    assert sheet.dtype == np.uint8 and sheet.shape == (4 * H, 4 * W, 3)
    rows = [[sheet[r * H : r * H + H, c * W : c * W + W].astype(int) for c in range(4)] for r in range(4)]
    for column, t in enumerate((0, 2, 4, 6)):
        np.testing.assert_array_equal(rows[0][column], overlay(frames[t], truth[t]))
    np.testing.assert_array_equal(rows[1][0], rows[0][0])  # the given mask
    assert (rows[1][3] != rows[0][3]).any(), "cells of 8 px do not give the very mask"
    yellow = rows[2][0].mean((0, 1))  # full confidence
    assert yellow[0] > 150 > 100 > yellow[2]
    doubtful = results[6][1] < 0.6
    ground = (truth[6] == 0) & (results[6][1] > 0.95)
    assert doubtful.any() and rows[2][3][ground][:, 1].mean() > rows[2][3][doubtful & (truth[6] == 0)][:, 1].mean() + 40
    red = [
        rows[3][c][truth[t] == 1].sum(-1).mean() - rows[3][c][truth[t] == 0].sum(-1).mean() for c, t in [(0, 0), (3, 6)]
    ]
    assert min(red) > 100, "the cell of the red square is found in the red square"
    assert (rows[3][0] == 255).all(-1).any() and not (rows[3][3] == 255).all(-1).any()  # the white mark of the cell


def test_the_marked_place_lies_in_the_largest_object():
    ids = np.zeros((20, 30), np.uint8)
    ids[2:4, 2:4] = 1
    ids[10:20, 5:7], ids[18:20, 5:25] = 9, 9  # an L, which does not contain its own centre
    y, x = pictures.middle(ids)
    assert ids[y, x] == 9 and (y, x) == (18, 12)
