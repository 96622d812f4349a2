"""The user's own video: later masks correct the results; a run writes all results or none."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from core.atomic import locked
from core.errors import UserError
from core.palette import read_ids
from labelprop import Tracker, follow
from tests.test_labelprop_tracker import Colours, Normed
from tests.test_labelprop_video import DUL, moving

pytest.importorskip("av", reason="films need the package av")
SIZE = 64, 48


def shown(frames):
    return (SimpleNamespace(number=t, name=f"{t:05d}", seconds=t / 25, pixels=frame) for t, frame in enumerate(frames))


@pytest.fixture
def tracker():
    return Tracker(Colours(), protocol=replace(DUL, radius=3), device="cpu")


@pytest.fixture
def scene():
    return [np.stack(part) for part in zip(*moving(8, *SIZE, enters=4))]


def test_masks_of_new_objects_add_them(tracker, scene):
    frames, truth = scene
    given = {0: truth[0], 4: np.where(truth[4] == 2, truth[4], 0)}
    plain = list(tracker.segment(frames, given, confidence=True))
    found = list(follow.carried(shown(frames), tracker, given))
    assert [frame.number for frame, _, _ in found] == list(range(8))
    for (_, ids, confidence), (plain_ids, plain_confidence) in zip(found, plain, strict=True):
        np.testing.assert_array_equal(ids, plain_ids)
        np.testing.assert_array_equal(confidence, plain_confidence)


def test_masks_of_followed_objects_correct_them(tracker, scene):
    frames, truth = scene
    wrong = np.roll(truth[0], 12, axis=1)
    later = np.where(truth[5] == 1, truth[5], 0)  # object 1 only: object 2 stays as followed
    given = {0: wrong, 4: np.where(truth[4] == 2, truth[4], 0), 5: later}
    found = [ids for _, ids, _ in follow.carried(shown(frames), tracker, given)]
    assert len(found) == 8
    before = list(tracker.segment(frames, {t: given[t] for t in (0, 4)}))
    for t in range(5):
        np.testing.assert_array_equal(found[t], before[t])
    np.testing.assert_array_equal(found[5], follow.corrected(before[5], later))
    assert ((found[5] == 1) == (truth[5] == 1)).all() and (found[5] == 2).any()
    np.testing.assert_array_equal(found[6], list(tracker.segment(frames[5:], {0: found[5]}))[1])


def test_corrections_one_after_another_and_behind_the_end(tracker, scene):
    frames, truth = scene
    given = {1: truth[1], 2: truth[2], 3: truth[3], 20: truth[0]}
    found = [ids for _, ids, _ in follow.carried(shown(frames), tracker, given)]
    assert len(found) == 8 and not found[0].any()
    for t in (2, 3):
        np.testing.assert_array_equal(found[t], truth[t])


class Task:
    """A task with given frames and masks, without a video file."""

    def __init__(self, frames, masks):
        self.pictures, self.masks, self.length, self.fps = frames, masks, len(frames), 25.0
        frame = lambda number: list(shown(frames))[number]
        self.video = SimpleNamespace(path=Path("scene.mp4"), size=frames[0].shape[:2], frame=frame)

    def frame(self, place):
        return self.pictures[place]

    def frames(self):
        return shown(self.pictures)

    def given(self):
        return self.masks


@pytest.fixture
def task(scene):
    return Task(scene[0], {0: scene[1][0]})


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_results(tracker, task, tmp_path, capsys):
    follow.run(task, tracker, tmp_path, {"name": "a"})
    told = capsys.readouterr().out
    assert "1 object: 1" in told and "8 frames" in told and "overlay.mp4" in told
    names = [f"{t:05d}.png" for t in range(8)]
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == names
    table = json.loads((tmp_path / "objects.json").read_text())
    assert (table["width"], table["height"], table["fps"]) == (48, 64, 25)
    assert [entry["mask"] for entry in table["frames"]] == names
    for entry in table["frames"]:
        mask = read_ids(tmp_path / "masks" / entry["mask"]) == 1
        found = entry["objects"]["1"]
        assert found["area"] == mask.sum() and 0.5 <= found["confidence"] <= 1
        x, y, width, height = found["box"]
        assert mask[y : y + height, x : x + width].sum() == mask.sum()
        assert mask[y].any() and mask[:, x].any() and mask[y + height - 1].any() and mask[:, x + width - 1].any()
    np.testing.assert_array_equal(read_ids(tmp_path / "given/00000.png"), task.masks[0])
    with Image.open(tmp_path / "given/00000.jpg") as picture:
        assert picture.size == (48, 64)
    with Image.open(tmp_path / "preview.gif") as picture:
        assert picture.size == (48, 64) and picture.n_frames == 8


def test_the_network_is_adapted_to_the_frames_that_are_followed(task, tmp_path):
    tracker = Tracker(Normed(), protocol=replace(DUL, radius=3, norm_frames=3), device="cpu")
    follow.run(task, tracker, tmp_path, {"name": "a"})
    adapted = tracker.adapted(task.length, task.frame)
    for t, ids in enumerate(adapted.segment(iter(task.pictures), task.given())):
        np.testing.assert_array_equal(read_ids(tmp_path / f"masks/{t:05d}.png"), ids)
    pixels = torch.rand(1, 3, 8, 8)
    assert not torch.allclose(adapted.features(pixels), tracker.features(pixels))


def test_an_object_that_is_not_there():
    empty = follow.measures(np.zeros((4, 4), bool), np.ones((4, 4)))
    assert empty == {"area": 0, "box": None, "confidence": None}


def test_a_second_run(tracker, task, tmp_path, capsys):
    follow.run(task, tracker, tmp_path, {"name": "a"})
    before, stamp = content(tmp_path), (tmp_path / "overlay.mp4").stat().st_mtime_ns
    follow.run(task, tracker, tmp_path, {"name": "a"})
    assert "finished before" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"another origin \(differs: name.*--overwrite"):
        follow.run(task, tracker, tmp_path, {"name": "b"})
    assert content(tmp_path) == before and (tmp_path / "overlay.mp4").stat().st_mtime_ns == stamp
    (tmp_path / "masks/00003.png").unlink()
    follow.run(task, tracker, tmp_path, {"name": "a"})
    assert content(tmp_path) == before
    for name in ("00099.png", "00099.jpg", "mine.png"):
        (tmp_path / "given" / name).write_bytes(b"of a mask that is not given any more, and of the user")
    with locked(tmp_path), pytest.raises(UserError, match="another program writes here"):
        follow.run(task, tracker, tmp_path, {"name": "b"}, overwrite=True)
    follow.run(task, tracker, tmp_path, {"name": "b"}, overwrite=True)
    assert not [*tmp_path.glob("given/00099*")] and (tmp_path / "given/mine.png").exists()
    assert json.loads((tmp_path / "origin.json").read_text()) == {"name": "b", "frames": 8}


def test_files_of_others_are_not_replaced(tracker, task, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/drawn.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="holds masks of another origin"):
        follow.run(task, tracker, tmp_path, {"name": "a"})
    assert list(content(tmp_path)) == ["masks/drawn.png"]
    task.video.path = tmp_path / "overlay.mp4"
    with pytest.raises(UserError, match="overlay.mp4: would be replaced"):
        follow.run(task, tracker, tmp_path, {"name": "a"}, overwrite=True)


@pytest.mark.parametrize("ends", [KeyboardInterrupt, SystemExit, UserError])
def test_nothing_unfinished_stays_and_the_same_run_goes_on(tracker, task, tmp_path, monkeypatch, capsys, ends):
    calls, measures = [], follow.measures

    def fails(*arguments):
        calls.append(None)
        if len(calls) == 4:
            raise ends("stopped")
        return measures(*arguments)

    monkeypatch.setattr(follow, "measures", fails)
    with pytest.raises(ends):
        follow.run(task, tracker, tmp_path, {"name": "a"})
    assert not [*tmp_path.iterdir()]
    assert ("the same command" in capsys.readouterr().err) == (ends is not UserError)
    follow.run(task, tracker, tmp_path, {"name": "a"})
    assert (tmp_path / "overlay.mp4").exists()
    calls.clear()
    with pytest.raises(ends):  # what was in given/ before, perhaps --mask itself, stays
        follow.run(task, tracker, tmp_path, {"name": "a"}, overwrite=True)
    assert sorted(content(tmp_path)) == ["given/00000.jpg", "given/00000.png"]


def test_a_kill_leaves_nothing_that_counts(tracker, task, tmp_path):
    follow.run(task, tracker, tmp_path, {"name": "a"})
    whole = content(tmp_path)
    # The state after a program was killed while it renamed its results.
    follow.write_record(tmp_path, {"name": "b"}, None)
    (tmp_path / "objects.json").unlink()
    (tmp_path / ".overlay.mp4.123").write_bytes(b"half")
    (tmp_path / ".masks.part").mkdir()
    follow.run(task, tracker, tmp_path, {"name": "a"})
    assert content(tmp_path) == whole and not list(tmp_path.glob(".*"))
