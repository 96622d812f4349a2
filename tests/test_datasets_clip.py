"""Sampling of clips; batches are the same for any number of workers and processes, and after a restart."""

import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import threading
import time

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from core.errors import UserError
from core.schema import Clip
from datasets import worker
from datasets.clip import BadClips, ClipDataset, ClipLoader, places, sample_frames
from datasets.readers import UnreadableFrame
from datasets.readers.frames import Reader


@pytest.mark.parametrize("length", [5, 9, 10, 14, 40])
@pytest.mark.parametrize("gap", [1, 2, 10])
@pytest.mark.parametrize("step", ["whole", "fraction"])
def test_frames_are_evenly_spread_over_a_random_window(length, gap, step):
    clip, rng = Clip(frames=5, gap=gap, step=step, order="kept"), np.random.default_rng(0)
    window = min(length, gap * 5)
    share = window // 5 if step == "whole" else window / 5
    expected = [int(i * share) for i in range(5)]
    starts = set()
    last = length - window if step == "fraction" else length - 1 - 4 * share
    for _ in range(60 * (last + 1)):
        ids = sample_frames(length, clip, rng)
        starts.add(ids[0])
        assert [i - ids[0] for i in ids] == expected
        assert ids[-1] < length
    assert starts == set(range(last + 1)) and places(length, clip) == last + 1


@pytest.mark.parametrize("length, gap, starts", [(7, 2, 3), (27, 2, 19), (100, 10, 60)])
def test_the_last_frames_of_a_video_are_used(length, gap, starts):
    clip = Clip(frames=5, gap=gap, step="whole", order="kept")
    assert places(length, clip) == starts
    rng = np.random.default_rng(0)
    assert max(sample_frames(length, clip, rng)[-1] for _ in range(50 * starts)) == length - 1


def test_in_random_order_every_frame_can_be_the_reference():
    clip, rng = Clip(frames=5, gap=2, order="random", step="whole"), np.random.default_rng(0)
    drawn = [sample_frames(10, clip, rng) for _ in range(400)]
    assert all(list(np.diff(sorted(ids))) == [2, 2, 2, 2] for ids in drawn)
    assert {ids[0] for ids in drawn} == set(range(10))


@pytest.mark.parametrize("video_fps", [8, 12, 24, 25, 28, 29.97, 30, 60])
def test_frames_a_second_are_those_nearest_in_time(video_fps):
    clip, rng = Clip(frames=4, fps=8, order="kept"), np.random.default_rng(0)
    times, offsets = 1.5 + np.arange(60) / video_fps, [int(i * video_fps / 8 + 0.5) for i in range(4)]
    drawn = [sample_frames(60, clip, rng, times) for _ in range(1500)]
    assert all([i - ids[0] for i in ids] == offsets for ids in drawn)
    # The last start is the last frame from which the whole clip fits into the video.
    last = max(start for start in range(60) if start / video_fps + 3 / 8 <= 59 / video_fps + 1e-9)
    assert {ids[0] for ids in drawn} == set(range(last + 1)) and places(60, clip, times) == last + 1


@pytest.mark.parametrize("times", [np.arange(9) / 5, np.array([0, 0.01, 3, 3.01, 6]), np.array([0, 0.05, 0.1, 0.9])])
def test_no_frame_comes_twice_where_frames_are_rarer_than_wanted(times):
    clip, rng = Clip(frames=4, fps=8, order="kept"), np.random.default_rng(0)
    for _ in range(100):
        ids = sample_frames(len(times), clip, rng, times)
        assert all(np.diff(ids) >= 1) and ids[0] >= 0 and ids[-1] < len(times)


def test_frames_a_second_in_random_order():
    clip, rng = Clip(frames=4, fps=8, order="random"), np.random.default_rng(0)
    drawn = [sample_frames(10, clip, rng, np.arange(10) / 24) for _ in range(100)]
    assert all(sorted(ids) == [0, 3, 6, 9] for ids in drawn) and {ids[0] for ids in drawn} == {0, 3, 6, 9}


class Numbers:
    """A reader whose frames hold the numbers of their video and frame; `broken` videos cannot be read."""

    def __init__(self, lengths, broken=()):
        self.lengths, self.broken = lengths, set(broken)

    def __len__(self):
        return len(self.lengths)

    def name(self, video):
        return f"video{video}"

    def length(self, video):
        return self.lengths[video]

    def read(self, video, frame_ids):
        if video in self.broken:
            raise UnreadableFrame(f"video{video}/0.jpg", "broken")
        return [np.full((2, 2, 3), (video, i, 0), np.uint8) for i in frame_ids]


class Ids:
    """Views that return these numbers and one random number."""

    def __call__(self, frames, rng):
        return {
            "video": torch.tensor(int(frames[0][0, 0, 0])),
            "ids": torch.tensor([int(frame[0, 0, 1]) for frame in frames]),
            "draw": torch.tensor(rng.random()),
        }


def loader(lengths=(9,) * 23, broken=(), batch_size=4, workers=0, bad_share=0.05, seed=0, **shard):
    dataset = ClipDataset(Numbers(lengths, broken), Clip(frames=3, gap=2, order="random", step="whole"), Ids(), seed)
    return ClipLoader(dataset, batch_size, workers, bad_share, **shard)


def flat(batches):
    return [{name: value.tolist() for name, value in batch.items()} for batch in batches]


def test_an_epoch_takes_every_video_at_most_once_in_an_order_of_its_own():
    made = loader()
    assert made.steps_per_epoch == 5
    batches = flat(made.batches(0, 10))
    epochs = [[video for batch in batches[i : i + 5] for video in batch["video"]] for i in (0, 5)]
    assert all(len(set(epoch)) == 20 for epoch in epochs) and epochs[0] != epochs[1]
    assert all(len(batch["ids"]) == 4 and len(batch["ids"][0]) == 3 for batch in batches)
    assert len({draw for batch in batches for draw in batch["draw"]}) == 40


def test_the_seed_decides_everything():
    assert flat(loader(seed=1).batches(0, 7)) == flat(loader(seed=1).batches(0, 7))
    assert flat(loader(seed=1).batches(0, 7)) != flat(loader(seed=2).batches(0, 7))


def test_the_number_of_workers_changes_nothing():
    broken = (3, 11)
    alone, helped = loader(broken=broken, bad_share=1), loader(broken=broken, bad_share=1, workers=2)
    assert flat(alone.batches(0, 12)) == flat(helped.batches(0, 12))
    assert alone.bad_clips.bad == helped.bad_clips.bad > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restart_in_the_middle_of_an_epoch_goes_on_with_the_same_batches(workers):
    whole = flat(loader(workers=workers).batches(0, 12))
    assert flat(loader(workers=workers).batches(7, 12)) == whole[7:]


def test_several_processes_share_the_batches_of_one():
    whole = flat(loader().batches(0, 7))
    shares = [flat(loader(rank=rank, world=2).batches(0, 7)) for rank in range(2)]
    for batch, first, second in zip(whole, *shares):
        assert {name: first[name] + second[name] for name in first} == batch
    with pytest.raises(UserError, match="batch_size = 4.*multiple of the 3"):
        loader(rank=0, world=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_runs_own_random_numbers_are_left_alone(workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(loader(workers=workers).batches(0, 2))
    assert torch.equal(torch.get_rng_state(), before)


class Timed(Numbers):
    """Videos of 24 frames a second; if `known` is False, they have no times."""

    known = True

    def times(self, video):
        return np.arange(self.lengths[video]) / 24 if self.known else None


def timed(lengths, workers=0, batch_size=4, folder_fps=None, known=True, **changes):
    reader = Timed(lengths)
    reader.known = known
    clip = Clip(**{"frames": 3, "fps": 8, "order": "random", **changes})
    return ClipLoader(ClipDataset(reader, clip, Ids(), 0, folder_fps), batch_size, workers, 0.05)


def test_an_epoch_takes_several_clips_of_a_video():
    # A clip takes frames 0, 3, 6 at 24 frames a second: it has one possible start in 7 frames, three in 9.
    made = timed((30, 7, 9, 6, 40), clips_per_video=5)
    assert made.dataset.videos == [0, 1, 2, 4] and len(made.dataset) == 5 + 1 + 3 + 5
    assert made.steps_per_epoch == 3
    taken = [video for batch in flat(made.batches(0, 300)) for video in batch["video"]]
    for epoch in range(100):
        counts = np.bincount(taken[12 * epoch : 12 * epoch + 12], minlength=5)
        assert (counts <= [5, 1, 3, 0, 5]).all() and counts.sum() == 12
    clip = Clip(frames=3, gap=2, step="whole", order="random", clips_per_video=4)
    by_gap = ClipDataset(Numbers((8, 5, 30)), clip, Ids(), 0)
    assert by_gap.clips == [0] * 4 + [1] * 3 + [2] * 4


def test_clips_of_a_video_differ():
    (epoch,) = [batch for batch in flat(timed((200,), batch_size=20, clips_per_video=20).batches(0, 1))]
    assert len({tuple(sorted(ids)) for ids in epoch["ids"]}) > 10 and len(set(epoch["draw"])) == 20


@pytest.mark.parametrize("workers", [0, 2])
def test_several_clips_of_a_video_go_on_in_the_middle_of_an_epoch(workers):
    lengths = (30, 7, 9, 6, 40)
    whole = flat(timed(lengths, clips_per_video=5).batches(0, 9))
    assert flat(timed(lengths, workers=workers, clips_per_video=5).batches(4, 9)) == whole[4:]


def test_frame_folders_need_their_rate():
    with pytest.raises(UserError, match="clip.fps = 8.*video0.*data.folder_fps.*clip.gap"):
        timed((30,), known=False)
    told = timed((30, 20), known=False, folder_fps=24)
    assert flat(told.batches(0, 5)) == flat(timed((30, 20)).batches(0, 5))
    assert timed((30, 20), folder_fps=2).dataset.videos == [0, 1]  # the times of the videos count, not folder_fps


def test_videos_too_short_at_a_rate(caplog):
    assert timed((6, 7)).dataset.videos == [1]
    assert "1 of 2 videos left out: fewer than 3 frames or 0.25 seconds" in caplog.text
    with pytest.raises(UserError, match="clip.frames = 3 at clip.fps = 8.*none of the 2 videos is long enough"):
        timed((6, 5))
    with pytest.raises(UserError, match="clip.frames = 3.*longest: 2"):
        timed((1, 2))


def test_short_videos_are_left_out_and_counted(caplog):
    dataset = loader(lengths=(2, 3, 9, 1)).dataset
    assert dataset.videos == [1, 2] and dataset.left_out == 2
    assert "2 of 4 videos left out" in caplog.text
    with pytest.raises(UserError, match="clip.frames = 3.*longest: 2"):
        loader(lengths=(1, 2))


def test_fewer_videos_than_a_batch_fill_one(caplog):
    made = loader(lengths=(9, 9, 9), batch_size=8)
    assert made.steps_per_epoch == 1 and "videos are repeated" in caplog.text
    for batch in flat(made.batches(0, 3)):
        assert len(batch["video"]) == 8 and set(batch["video"]) == {0, 1, 2}
        assert len(set(batch["draw"])) == 8


def test_a_broken_video_is_replaced_and_named_once(caplog):
    made = loader(broken=(5,))
    videos = [video for batch in flat(made.batches(0, 10)) for video in batch["video"]]
    assert len(videos) == 40 and 5 not in videos
    assert made.bad_clips.bad >= 1 and made.bad_clips.clips == 40 + made.bad_clips.bad
    assert caplog.text.count("video5/0.jpg: broken") == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_broken_videos_stop_the_run_and_are_named(workers):
    with pytest.raises(UserError, match=r"data.bad_share = 0.05(.|\n)*video\d+/0.jpg: broken") as caught:
        list(loader(broken=range(10), workers=workers).batches(0, 100))
    assert "Traceback" not in str(caught.value)


def test_videos_that_are_all_broken_stop_the_run_whatever_is_borne():
    with pytest.raises(UserError, match="in a row"):
        list(loader(broken=range(23), bad_share=1.0).batches(0, 2))


def test_share_of_bad_clips():
    bad = BadClips(0.1)
    bad.add(16, [("a", "x")] * 16)  # half of the clips, but of fewer than warm_up
    bad.add(264, [])
    bad.add(0, [("b", "y")] * 15)  # 31 of 311: just below
    with pytest.raises(UserError, match="32 of 312 clips"):
        bad.add(0, [("b", "y")])
    with pytest.raises(UserError, match="1 of 17"):
        BadClips(0.0).add(16, [("a", "x")])


def test_a_truncated_jpeg_is_replaced_and_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    for video in range(3):
        (tmp_path / f"v{video}").mkdir()
        for i in range(3):
            cv2.imwrite(str(tmp_path / f"v{video}/{i}.jpg"), np.full((40, 40, 3), video, np.uint8))
    broken = tmp_path / "v1/0.jpg"
    broken.write_bytes(broken.read_bytes()[:-100])
    dataset = ClipDataset(Reader(tmp_path), Clip(frames=3, gap=1, order="random", step="whole"), Ids(), 0)
    made = ClipLoader(dataset, 3, 2, bad_share=1.0)
    videos = {video for batch in flat(made.batches(0, 4)) for video in batch["video"]}
    assert videos == {0, 2} and made.bad_clips.bad >= 4
    assert f"{broken}: the JPEG breaks off" in caplog.text


class Harmed:
    """Views that call harm() in the worker, for every clip."""

    def __init__(self, harm):
        self.harm = harm

    def __call__(self, frames, rng):
        self.harm()
        return {"video": torch.zeros(1)}


def harmed(harm):
    clip = Clip(frames=3, gap=2, order="random", step="whole")
    return ClipLoader(ClipDataset(Numbers((9,) * 4), clip, Harmed(harm), 0), 2, 2, 0.05)


def _killed():
    os.kill(os.getpid(), signal.SIGKILL)


def _left():
    os._exit(0)


def _wrong():
    return {}["no such key"]


def _out_of_memory():
    raise MemoryError


def _no_shared_memory():
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def _mistaken():
    raise UserError("clip.frames = 3: raise it\nor lower it")


HARM = {
    _killed: (UserError, "/dev/shm.*data.workers=0"),
    _left: (UserError, "died.*exited unexpectedly"),
    _out_of_memory: (UserError, "memory.*data.workers"),
    _no_shared_memory: (UserError, "hand a batch over.*/dev/shm"),
    _mistaken: (UserError, "^clip.frames = 3: raise it\nor lower it$"),
    _wrong: (KeyError, "no such key"),
}


@pytest.fixture
def impatient(monkeypatch):
    """Shorten two waits to 0.3 s: between torch's checks of its workers, and ours for the end of workers."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.3,))
    monkeypatch.setattr(worker, "PATIENCE", 0.3)


@pytest.mark.parametrize("harm", HARM)
def test_what_happens_in_a_worker_ends_the_program_soon_and_with_its_cause(harm, impatient):
    made = harmed(harm)
    started, (kind, words) = time.monotonic(), HARM[harm]
    with pytest.raises(kind, match=words) as caught:  # the traceback keeps the loader's variables alive
        list(made.batches(0, 20))
    assert not multiprocessing.active_children() and time.monotonic() - started < 4
    assert (kind is UserError) == ("Traceback" not in str(caught.value))


def test_the_death_of_a_worker_is_reported_by_the_next_batch_alone(impatient):
    """The death does not interrupt a step or a save."""
    made, handler = loader(workers=1), signal.getsignal(signal.SIGCHLD)
    with made.serve(0, 20) as batches:
        next(batches)
        (process,) = multiprocessing.active_children()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert signal.getsignal(signal.SIGCHLD) is handler
        with pytest.raises(RuntimeError, match="DataLoader worker"):
            list(batches)
    with pytest.raises(UserError, match="worker that reads data died"), made.serve(0, 20) as batches:
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        list(batches)


def test_an_error_of_a_connection_waits_for_the_end_of_the_worker():
    """The connections of a dying worker break before its process has ended."""
    with pytest.raises(UserError, match="worker that reads data died: EOFError"), loader(workers=1).serve(0, 20):
        (process,) = multiprocessing.active_children()
        threading.Timer(0.2, process.kill).start()
        raise EOFError


def test_an_error_of_a_step_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(worker, "DYING", 0.1)
    with pytest.raises(KeyError), loader(workers=1).serve(0, 20) as batches:
        next(batches)
        raise KeyError


def _hangs():
    if torch.utils.data.get_worker_info().id == 0:
        time.sleep(1000)


def test_a_worker_that_hangs_is_ended_in_seconds(impatient):
    with harmed(_hangs).serve(0, 20):
        time.sleep(0.3)  # until the workers have started
        started = time.monotonic()
    assert not multiprocessing.active_children() and time.monotonic() - started < 2


def _interrupted(report):
    """Read batches while the process group gets SIGINT and SIGTERM; report the last step and the signals."""
    os.setsid()
    signals = []
    for step, _ in enumerate(loader(workers=2).batches(0, 40)):
        if step == 3:  # with the default handler, which the workers inherit
            try:
                os.killpg(0, signal.SIGINT)
            except KeyboardInterrupt:
                signals.append("interrupted")
        if step == 12:
            signal.signal(signal.SIGTERM, lambda *_: signals.append("terminated"))
            subprocess.run(["kill", "-TERM", "--", f"-{os.getpgrp()}"])  # from another process
    report.put((step, signals))


def test_an_interrupt_of_all_processes_reaches_only_the_main_one(capfd):
    """Ctrl-C goes to the whole process group; the workers must let the main process finish its step."""
    fork = multiprocessing.get_context("fork")
    report = fork.SimpleQueue()
    process = fork.Process(target=_interrupted, args=(report,))
    process.start()
    process.join(30)
    assert process.exitcode == 0 and report.get() == (39, ["interrupted", "terminated"])
    assert capfd.readouterr() == ("", "")


def test_leaving_early_ends_the_workers():
    made = loader(workers=2).batches(0, 1000)
    next(made)
    assert len(multiprocessing.active_children()) == 2
    made.close()
    assert not multiprocessing.active_children()


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.WARNING)


def test_a_worker_keeps_silent_only_where_the_main_process_left(capsys):
    worker.report(BrokenPipeError, BrokenPipeError("left"), None)
    assert capsys.readouterr().err == ""
    worker.report(ValueError, ValueError("broken"), None)
    assert "ValueError: broken" in capsys.readouterr().err
