import multiprocessing
import os
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from core.errors import UserError
from core.palette import read_ids
from core.schema import Propagation
from labelprop import runner
from labelprop.video import Video

SIZE = (48, 64)
CFG = Propagation(
    window="disc", radius=3, window_reference=False, temperature=0.05, top_k=5, context=3, repeat_reference=True
)


@dataclass
class Moving:
    """A coloured square that moves over noise."""

    name: str
    length: int = 6
    every: int = 1  # every n-th frame is written
    width: int = 16  # of the object in the given mask, in px

    @property
    def frame_names(self):
        return tuple(f"{t:05d}" for t in range(self.length))

    @property
    def written(self):
        return tuple(t % self.every == 0 for t in range(self.length))

    def frames(self):
        for t in range(self.length):
            frame = np.random.default_rng(t).integers(0, 60, (*SIZE, 3), np.uint8)
            frame[16:32, 8 + 2 * t : 24 + 2 * t] += np.array([150, 100, 20], np.uint8)
            yield frame

    def frame(self, t):
        return list(self.frames())[t]

    def given(self):
        ids = np.zeros(SIZE, np.uint8)
        ids[16:32, 8 : 8 + self.width] = 7
        return {0: ids}


def colours(frames):
    """Stands in for a network: mean colours of 8x8 cells."""
    return F.normalize(F.avg_pool2d(frames, 8, ceil_mode=True), dim=1)


def tracker(features, layer="x"):
    """Stands in for a Tracker that uses these features."""
    segment = lambda frames, masks: Video(features, CFG).segment(frames, masks, ahead=2)
    own = SimpleNamespace(layer=layer, device=torch.device("cpu"), segment=segment, adapted=lambda *_: own)
    return own


class Counting:
    """As `colours`, but counts the frames and raises `error` from frame number `at` on."""

    def __init__(self, at=None, error=None):
        self.frames, self.at, self.error = 0, at, error

    def __call__(self, frames):
        self.frames += len(frames)
        if self.at is not None and self.frames >= self.at:
            raise self.error
        return colours(frames)


def files(folder):
    """{relative path: bytes} of all files in a folder and below, hidden files too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder that an uninterrupted run writes.  Tests must not change it."""
    out = tmp_path_factory.mktemp("whole")
    runner.run([Moving("one"), Moving("two")], tracker(colours), out)
    return out


@pytest.fixture
def whole(finished):
    """The files of `finished`."""
    return files(finished)


def test_the_network_is_adapted_to_each_sequence_before_it_is_followed(tmp_path):
    seen, sequences = [], [Moving("one"), Moving("two", length=4)]

    def network(frames):
        seen.append("followed")
        return colours(frames)

    def adapted(length, frame):
        seen.append((length, frame(length - 1)[16, 6 + 2 * length].tolist()))
        return tracker(network)

    fake = SimpleNamespace(layer="x", device=torch.device("cpu"), adapted=adapted)
    runner.run(sequences, fake, tmp_path)
    last = [(s.length, s.frame(s.length - 1)[16, 6 + 2 * s.length].tolist()) for s in sequences]
    assert seen == [last[0], *["followed"] * 6, last[1], *["followed"] * 4]


def test_masks_and_overlays_of_written_frames(tmp_path):
    masks = runner.run([Moving("one", every=2)], tracker(colours, "res4"), tmp_path)
    assert masks == tmp_path / "res4_vos"
    names = ["00000", "00002", "00004"]
    assert sorted(files(tmp_path)) == [
        "res4_given/one.json", *[f"res4_vis/one/{n}.jpg" for n in names], *[f"res4_vos/one/{n}.png" for n in names]
    ]  # fmt: skip
    np.testing.assert_array_equal(read_ids(masks / "one/00000.png"), Moving("one").given()[0])
    last = read_ids(masks / "one/00004.png")
    assert set(np.unique(last)) == {0, 7}
    truth = np.zeros(SIZE, bool)
    truth[16:32, 16:32] = True
    assert (truth & (last == 7)).sum() / (truth | (last == 7)).sum() > 0.5
    with Image.open(masks / "one/00004.png") as image:
        assert image.mode == "P"


def test_an_interrupted_sequence_leaves_nothing_and_is_done_again(tmp_path, whole):
    sequences, out = [Moving("one"), Moving("two")], tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        runner.run(sequences, tracker(Counting(10, KeyboardInterrupt())), out)
    assert files(out) == {path: content for path, content in whole.items() if "/one" in path}
    again = Counting()
    runner.run(sequences, tracker(again), out)
    assert again.frames == 6 and files(out) == whole


def test_finished_sequences_are_left_out_and_damaged_ones_done_again(tmp_path, finished, whole, capsys):
    sequences, out = [Moving("one"), Moving("two")], shutil.copytree(finished, tmp_path / "whole")
    idle = Counting()
    runner.run(sequences, tracker(idle), out)
    assert idle.frames == 0 and "[2/2] two: finished before" in capsys.readouterr().out
    damaged = out / "x_vos/two/00003.png"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    (out / "x_vos/.two.part").mkdir()
    (out / "x_vos/.two.part/00000.png").write_text("left by a killed program")
    mended = Counting()
    runner.run(sequences, tracker(mended), out)
    assert mended.frames == 6 and files(out) == whole
    all_again = Counting()
    runner.run(sequences, tracker(all_again), out, overwrite=True, visuals=False)
    assert all_again.frames == 12
    assert files(out) == {path: content for path, content in whole.items() if "vis" not in path}


@pytest.mark.parametrize(
    "other, reason",
    [
        ({"width": 14}, "masks changed"),
        ({"every": 2}, "written frames changed"),
        ({"length": 3}, "frames changed"),
    ],
)
def test_a_sequence_is_done_again_where_something_else_is_given(tmp_path, capsys, other, reason):
    runner.run([Moving("one", length=2)], tracker(colours), tmp_path)
    changed = Moving("one", **{"length": 2, **other})
    runner.run([changed], tracker(colours), tmp_path)
    assert f"; {reason}: done again" in capsys.readouterr().out
    runner.run([changed], tracker(colours), tmp_path / "fresh")
    fresh = files(tmp_path / "fresh")
    assert fresh == {path: content for path, content in files(tmp_path).items() if "fresh" not in path}
    runner.run([changed], tracker(Counting(1, AssertionError("done once more"))), tmp_path)


def test_results_without_a_record_are_done_again(tmp_path, capsys):
    record, sequences = tmp_path / "x_given/one.json", [Moving("one", length=1)]
    for content in (None, "", "[1]", "{}", '{"masks": 3'):
        runner.run(sequences, tracker(colours), tmp_path)
        before = files(tmp_path)
        record.unlink()
        if content is not None:
            record.write_text(content)
        capsys.readouterr()
        runner.run(sequences, tracker(colours), tmp_path)
        assert "no record of the masks given: done again" in capsys.readouterr().out and files(tmp_path) == before


def test_one_program_at_a_time_writes_a_folder(tmp_path):
    with runner.whole_folder(tmp_path / "one") as part:
        (part / "a").write_text("")
        with pytest.raises(UserError, match="one: another program writes here"), runner.whole_folder(tmp_path / "one"):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["one", "a"]


@pytest.mark.parametrize("renames", range(5))
def test_a_kill_while_results_are_replaced_leaves_no_record_that_claims_too_much(tmp_path, monkeypatch, renames):
    """Stop before each of the five renames: two for the overlays, two for the masks, one for the record."""
    done, changed = [], [Moving("one", length=2, width=14)]

    def counted(call):
        def wrapped(*args):
            if len(done) == renames:
                raise KeyboardInterrupt
            done.append(args)
            return call(*args)

        return wrapped

    def write(name, ids, frame, vos, vis):
        Image.fromarray(ids).save(vos / f"{name}.png")

    monkeypatch.setattr(runner, "write", write)
    runner.run([Moving("one", length=2)], tracker(colours), tmp_path / "out")
    runner.run(changed, tracker(colours), tmp_path / "fresh")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", counted(Path.rename))
        patch.setattr(os, "replace", counted(os.replace))
        runner.run(changed, tracker(colours), tmp_path / "out")
    assert len(done) == renames and not (tmp_path / "out/x_given/one.json").exists()
    runner.run(changed, tracker(colours), tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_a_sequence_says_what_it_follows(tmp_path, capsys):
    runner.run([Moving("one")], tracker(colours), tmp_path)
    assert "1 object: 7 (256 px)" in capsys.readouterr().out
    ids = np.repeat(np.arange(44, dtype=np.uint8), 10)
    told = runner.followed({0: ids, 3: np.full(5, 99, np.uint8)})
    assert told.startswith("44 objects: 1 (10 px), 2 (10 px)") and told.endswith("..., 99 (5 px)") and len(told) < 100


def test_killed_in_the_middle(tmp_path, whole):
    def slow(frames):
        time.sleep(0.1)
        return colours(frames)

    sequences, out = [Moving("one"), Moving("two")], tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=runner.run, args=(sequences, tracker(slow), out))
    process.start()
    waited = time.monotonic() + 60
    while not list(out.glob("x_vos/.two.part/*.png")):
        assert process.is_alive() and time.monotonic() < waited
        time.sleep(0.02)
    process.kill()
    process.join()
    assert not (out / "x_vos/two").exists()
    again = Counting()
    runner.run([Moving("one"), Moving("two")], tracker(again), out)
    assert again.frames == 6 and files(out) == whole


def test_a_bad_frame_keeps_the_sequences_before_it(tmp_path):
    with pytest.raises(UserError, match="00002.jpg"):
        runner.run([Moving("one"), Moving("two")], tracker(Counting(9, UserError("two/00002.jpg: damaged"))), tmp_path)
    assert {Path(p).parts[1] for p in files(tmp_path)} == {"one", "one.json"}


def test_what_fails_while_masks_are_written_ends_the_sequence(tmp_path, monkeypatch):
    def full(name, *_):
        if name == "00002":
            raise UserError(f"{name}.png: cannot be written (no space)")

    monkeypatch.setattr(runner, "write", full)
    seen, before = Counting(), threading.active_count()
    with pytest.raises(UserError, match="one: 00002.png: cannot be written"):
        runner.run([Moving("one", length=200), Moving("two")], tracker(seen), tmp_path)
    assert seen.frames < 30 and not list(tmp_path.iterdir())
    assert threading.active_count() == before


def test_processes_share_the_sequences(tmp_path, whole):
    """The longest sequence is assigned first; each sequence runs once."""
    sequences, counts = [Moving("one"), Moving("two"), Moving("long", length=9)], []
    for rank in (0, 1):
        counts.append(Counting())
        runner.run(sequences, tracker(counts[rank]), tmp_path / "out", rank=rank, world=2)
    assert [count.frames for count in counts] == [9 + 6, 6]
    assert {path: content for path, content in files(tmp_path / "out").items() if "long" not in path} == whole


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "x_vos").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="x_vos"):
        runner.run([Moving("one")], tracker(colours), tmp_path)


def test_features_see_frames_on_the_device_in_zero_to_one(tmp_path):
    seen = []

    def features(frames):
        seen.append((frames.device.type, frames.dtype, float(frames.min()) >= 0, 0.5 < float(frames.max()) <= 1))
        return colours(frames)

    runner.run([Moving("one", length=2)], tracker(features), tmp_path)
    assert set(seen) == {("cpu", torch.float32, True, True)}
