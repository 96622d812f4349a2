"""train.py, from frames to checkpoints: resuming, stopping, errors."""

import io
import logging
import os
import signal
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing import event_accumulator
from tensorboardX.event_file_writer import _EventLoggerThread

import models
import train
from core import checkpoint, distributed
from core.errors import UserError
from datasets.readers.frames import read_frame
from models.backbones.resnet import ResNet
from models.methods import dul
from tests.programs import ROOT, Program
from tests.small import write_davis, write_videos
from training.evaluators import Validation
from training.run import Run, claim

SMALL = """
method: {name: dul, embedding: 16, temperature: 0.05, anchor_grid: 4, cross_grid: 2,
  cross_weight: 0.1, crop_px: 32, resize_px: [32, 40], random_crop: true, flip: 0.5, zoom: [0.5, 1.0]}
data: {reader: frames, root: ROOT, batch_size: 2, workers: 0}
clip: {frames: 2, gap: 2, order: random, step: whole}
optim: {name: adam, lr: 1.0e-3, betas: [0.5, 0.999], weight_decay: 5.0e-4, bias_lr_factor: 2,
  decay_norm_weights: true}
schedule: {kind: step, epochs: 2, factor: 0.5, every_epochs: 1}
validation: {every_epochs: 1, root: null, clips_gap: 2, layers: [res4]}
protocol: DUL
propagation: {radius: 3, top_k: 5, context: 2}
log: {scalar_steps: 1, picture_steps: 2, checkpoint_steps: 100}
"""


@pytest.fixture
def project(tmp_path, narrow):
    """(path of a small configuration, folder for runs).  6 videos, batches of 2: 3 steps an epoch, 6 in all."""
    write_videos(tmp_path / "videos", videos=6, frames=6, size=(40, 48))
    config = tmp_path / "small.yaml"
    config.write_text(SMALL.replace("ROOT", str(tmp_path / "videos")))
    return config, tmp_path / "runs"


def start(config, run_dir, *arguments, processes=1):
    """Start train.py in another process, or in several."""
    words = ["--config", config, "--run-dir", run_dir, "--device", "cpu", *arguments]
    return Program(run_dir.with_suffix(".printed"), "train", *words, processes=processes)


def run(config, run_dir, *arguments):
    """Run train.main in this process -> (exit code, stdout, stderr with the log)."""
    words = ["train.py", "--config", config, "--run-dir", run_dir, "--device", "cpu", *arguments]
    out, err = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(err)
    logging.getLogger().addHandler(handler)
    try:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", [str(word) for word in words])
            train.main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    finally:
        logging.getLogger().removeHandler(handler)
    return code, out.getvalue(), err.getvalue()


def assert_same_run(a, b):
    """Two last.pth hold the same numbers, bit for bit."""
    a, b = (checkpoint.load(Path(folder) / "last.pth") for folder in (a, b))
    assert a["step"] == b["step"]
    for name, value in a["method"].items():
        assert torch.equal(value, b["method"][name]), name
    moments = lambda content: [v for s in content["optimiser"]["state"].values() for v in s.values()]
    assert len(moments(a)) == len(moments(b)) > 0
    assert all(torch.equal(x, y) for x, y in zip(moments(a), moments(b)))


def test_going_on_equals_the_uninterrupted_run(project):
    config, runs = project
    code, out, err = run(config, runs / "whole")
    assert code == 0, err
    assert "step 6/6" in out
    # Stops at steps 2 and 4: in the middle of the first epoch and of the second.
    for steps in (2, 4):
        assert run(config, runs / "parts", "--set", f"schedule.steps={steps}")[0] == 0
    code, out, err = run(config, runs / "parts")
    assert code == 0 and "at step 4" in out, err
    assert_same_run(runs / "whole", runs / "parts")


def test_kill_minus_9_loses_nothing(project):
    config, runs = project
    assert run(config, runs / "whole", "--set", "log.checkpoint_steps=2")[0] == 0
    process = start(config, runs / "killed", "--set", "log.checkpoint_steps=2")
    process.until("step 3/")
    code, _, err = run(config, runs / "killed", "--set", "log.checkpoint_steps=2")
    assert code == 2 and "killed: another training writes here" in err
    process.signal(signal.SIGKILL)
    assert process.ended()[0] == -signal.SIGKILL
    code, out, err = run(config, runs / "killed")
    assert code == 0 and "going on" in out, err
    assert_same_run(runs / "whole", runs / "killed")


def test_ctrl_c_saves_before_stopping(project):
    config, runs = project
    process = start(config, runs / "a", "--set", "log.checkpoint_steps=1000", "--set", "schedule.epochs=200")
    process.until("step 2/")
    process.signal(signal.SIGINT)
    code, out, err = process.ended()
    assert code == 128 + signal.SIGINT, err
    assert "the same command goes on" in out and "saving" in err and "Traceback" not in err
    assert checkpoint.load(runs / "a" / "last.pth")["step"] >= 2


def test_mistakes_have_code_2_and_no_traceback(project):
    config, runs = project
    assert run(config, runs / "used", "--set", "schedule.steps=1")[0] == 0
    cases = {
        ("--set", "data.root=/absent/videos"): "/absent/videos",
        ("--set", "optim.lrr=1"): "did you mean 'lr'",
        ("--set", "data.accumulate=3"): "data.batch_size = 2: must be a multiple of data.accumulate = 3",
        ("--set", "validation.root=/absent/davis"): "/absent/davis",
        ("--resume", "/absent/last.pth"): "/absent/last.pth",
    }
    for arguments, words in cases.items():
        code, _, err = run(config, runs / "new", *arguments)
        assert code == 2 and words in err and "Traceback" not in err, err
    code, _, err = run(config, runs / "used", "--resume", "none")
    assert code == 2 and "in use" in err
    code, _, err = run(config, runs / "used", "--set", "optim.lr=0.5")
    assert code == 2 and "optim.lr: 0.001 there, 0.5 here" in err and "schedule.steps" in err
    # The message's advice works.  The new run then refuses other weights to start from.
    assert f"--init {runs / 'used' / 'last.pth'}" in err
    init = ["--set", "optim.lr=0.5", "--set", "schedule.steps=1", "--init", runs / "used" / "last.pth"]
    code, out, err = run(config, runs / "second", *init)
    assert code == 0 and "from the weights of" in out, err
    code, _, err = run(config, runs / "second", *init[:-1], runs / "second" / "last.pth")
    assert code == 2 and "did not start from" in err


def test_a_loss_that_is_not_finite_stops_with_names(project):
    config, runs = project
    assert run(config, runs / "a", "--set", "schedule.steps=2")[0] == 0
    broken = checkpoint.load(runs / "a" / "last.pth")
    broken["method"]["extractor.head.conv2.bias"][:] = float("nan")
    checkpoint.save(runs / "a" / "last.pth", broken)
    code, _, err = run(config, runs / "a")
    assert code == 2
    assert "step 3" in err and "temp," in err and str(runs / "a" / "last.pth") in err


def test_weights_that_are_not_finite_replace_no_checkpoint(project, tmp_path):
    config = models.read_config(project[0])
    run = Run(models.build(config), config, tmp_path, torch.device("cpu"))
    run.save()
    run.step = 7
    run.method.extractor.head.conv2.bias.data[3] = float("inf")
    with pytest.raises(UserError, match=f"step 7: extractor.head.conv2.bias is NaN or infinite.*{tmp_path}/last.pth"):
        run.save()
    assert checkpoint.load(run.last)["step"] == 0


def test_a_checkpoint_older_than_a_key_goes_on_with_its_default(project, tmp_path):
    config = models.read_config(project[0])
    run = Run(models.build(config), config, tmp_path, torch.device("cpu"))
    run.save()
    content = checkpoint.load(run.last)
    del content["config"]["clip"]["clips_per_video"]
    checkpoint.save(run.last, content)
    run.restore(run.last)
    other = models.read_config(project[0], ["clip.clips_per_video=2"])
    with pytest.raises(UserError, match="clip.clips_per_video: 1 there, 2 here"):
        Run(models.build(other), other, tmp_path, torch.device("cpu")).restore(run.last)


def test_another_runs_checkpoint_brings_no_best_score(project, tmp_path):
    config = models.read_config(project[0])
    first, second = (Run(models.build(config), config, tmp_path / name, torch.device("cpu")) for name in ("a", "b"))
    first.save_best("res4", 60.0)
    first.save()
    first.restore(first.last)
    assert first.best == {"res4": 60.0}
    second.restore(first.last)  # the second run has no best.pth yet
    assert second.best == {}


def test_the_best_network_is_of_one_way_to_measure(project, davis, tmp_path):
    config, runs = project

    def told(steps, *changes):
        code, out, err = run(config, runs / "a", *settings(schedule__steps=steps), *settings(**dict(changes)))
        assert code == 0, err
        return "the best network is chosen anew" in out, checkpoint.load(runs / "a" / "last.pth")["best"]

    on = lambda root, names="[]": (("validation__root", root), ("validation__sequences", names))
    assert told(1, *on(davis))[0] is False
    moved = davis.rename(tmp_path / "moved")
    assert told(2, *on(moved))[0] is False
    _, best = told(3, ("validation__root", "null"))
    assert best["res4"] > 0
    assert told(4, *on(moved))[0] is False
    assert told(5, *on(moved, "[video0]"))[0] is True
    assert told(6, *on(moved, "[video0]"), ("validation__layers", "[key]"))[0] is True
    # Of a run that is finished nothing is measured, so its best network stays, and no J&F of another set is told.
    best, known = checkpoint.load(runs / "a" / "best.pth"), checkpoint.load(runs / "a" / "last.pth")["best"]
    code, out, err = run(config, runs / "a", *settings(schedule__steps=6), *settings(**dict(on(moved))))
    assert code == 0 and "J&F not measured" in out, err
    assert checkpoint.load(runs / "a" / "best.pth")["score"] == best["score"]
    assert checkpoint.load(runs / "a" / "last.pth")["best"] == known


def test_a_step_without_memory_is_told(project, monkeypatch):
    def too_large(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(train, "step", too_large)
    code, _, err = run(project[0], project[1] / "a")
    assert code == 2 and "data.batch_size = 2: a step needs more memory than cpu has" in err


def test_a_validation_without_memory_is_told(project, davis, monkeypatch):
    def too_large(*_, **__):
        torch.empty(1 << 60, dtype=torch.uint8)

    config, runs = project
    monkeypatch.setattr("training.evaluators.Tracker.segment", too_large)
    code, _, err = run(config, runs / "a", *settings(validation__root=davis))
    assert code == 2 and f"validation.root = {davis}: the validation needs more memory than cpu has" in err
    assert checkpoint.load(runs / "a" / "last.pth")["step"] > 0  # the steps are not lost


def test_a_validation_that_is_left_out_ends_the_run_at_its_step(project, davis, monkeypatch):
    """With several processes, which learn of a signal one step later."""

    class Later(distributed.Agreement):
        def any(self, flag):
            before, self._said = bool(self._said), flag
            return before

        def last(self):
            return bool(self._said)

    def ended(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    monkeypatch.setattr(distributed, "Agreement", Later)
    monkeypatch.setattr(Validation, "measure", ended)
    config, runs = project
    assert run(config, runs / "a", *settings(validation__root=davis))[0] == 128 + signal.SIGTERM
    kept = checkpoint.load(runs / "a" / "last.pth")
    assert (kept["step"], kept["measured"]) == (3, 0)


def test_a_damaged_training_state_is_named(project, tmp_path):
    config, cpu = models.read_config(project[0]), torch.device("cpu")
    run = Run(torch.nn.Linear(2, 2), config, tmp_path / "kept", cpu)
    run.save()
    whole = checkpoint.load(run.last)
    state = {"step": torch.zeros(()), "exp_avg": torch.zeros(2, 2)}
    moments = {"state": {0: state}, "param_groups": whole["optimiser"]["param_groups"]}
    for damage in (
        {"step": "three"}, {"step": -1}, {"best": 3}, {"best": {"res4": "high"}}, {"starts": "two"}, {"processes": 0},
        {"config": []}, {"method": [[]]}, {"optimiser": 3}, {"optimiser": moments},
    ):  # fmt: skip
        checkpoint.save(run.last, whole | damage)
        with pytest.raises(UserError, match="last.pth: holds a damaged training state"):
            run.restore(run.last)


def test_bad_files_are_replaced_counted_and_too_many_stop(project):
    config, runs = project
    video = config.parent / "videos" / "video0"
    for frame in video.iterdir():
        frame.write_bytes(frame.read_bytes()[:200])
    code, out, err = run(config, runs / "a")
    assert code == 0 and "video0" in err, err
    assert checkpoint.load(runs / "a" / "last.pth")["bad_clips"] > 0
    code, out, err = run(config, runs / "b", "--set", "data.bad_share=0")
    assert code == 2 and "data.bad_share" in err and "video0" in err


@pytest.fixture
def davis(project):
    """A folder in DAVIS layout: two sequences of 6 frames, and a third that is not in the list."""
    return write_davis(project[0].parent / "davis", videos=3, seed=1)


def test_validation_measures_keeps_the_best_and_leaves_no_trace(project, davis):
    config, runs = project
    assert run(config, runs / "plain", "--set", "schedule.steps=4")[0] == 0
    root = ["--set", f"validation.root={davis}"]
    layers = settings(validation__layers="[res4, key]", log__keep_every_epochs=1)
    code, out, err = run(config, runs / "measured", "--set", "schedule.steps=4", *root, *layers)
    assert code == 0, err
    scores = [float(line.split("res4 ")[1].split()[0]) for line in out.splitlines() if "validation at step" in line]
    assert len(scores) == 2 and all(0 < score <= 100 for score in scores)  # after the first epoch, and at the end
    assert_same_run(runs / "plain", runs / "measured")
    best = checkpoint.load(runs / "measured" / "best.pth")
    assert best["score"] == checkpoint.load(runs / "measured" / "last.pth")["best"]["res4"]
    assert best["score"] == pytest.approx(max(scores), abs=0.06)
    assert checkpoint.load(runs / "measured" / "best_key.pth")["score"] > 0
    assert checkpoint.load(runs / "measured" / "epoch0001.pth")["step"] == 3
    # J&F of a layer that was not measured is not told.
    layer = settings(validation__layers="[res3]")
    code, out, err = run(config, runs / "measured", "--set", "schedule.steps=4", *root, *layer)
    assert code == 0 and "J&F not measured" in out, err
    # A missing mask is reported at the start, not after the first epoch, and so is a sequence that is too short.
    (davis / "Annotations/480p/video1/00003.png").unlink()
    code, _, err = run(config, runs / "new", *root)
    assert code == 2 and "not every frame is written and annotated" in err and "video1" in err
    for frame in (davis / "JPEGImages/480p/video1").glob("0000[2-5].jpg"):
        frame.unlink()
    code, _, err = run(config, runs / "new", *root)
    assert code == 2 and "fewer than 3 frames" in err


def test_validation_clips_are_of_its_sequences(project, davis):
    config = models.read_config(project[0], [f"validation.root={davis}"])
    reader = Validation(config, dul.Views(config.method), "cpu").loader.dataset.reader
    assert [reader.name(video) for video in range(len(reader))] == ["video0", "video1"]
    frames = reader.read(1, [4, 2])
    wanted = [read_frame(davis / "JPEGImages/480p/video1" / f"0000{t}.jpg") for t in (4, 2)]
    assert reader.length(1) == 6 and all(np.array_equal(*pair) for pair in zip(frames, wanted))


class Harmed(dul.Views):
    """Views that end their worker at the third clip."""

    clips = 0

    def __call__(self, frames, rng):
        Harmed.clips += 1
        if Harmed.clips == 3:
            os._exit(3)
        return super().__call__(frames, rng)


def settings(**values):
    return [word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


def test_a_worker_that_ends_ends_the_program_with_code_2(project, monkeypatch):
    config, runs = project
    monkeypatch.setattr(dul, "Views", Harmed)
    code, _, err = run(config, runs / "a", *settings(data__workers=1))
    assert code == 2 and "a worker that reads data died" in err


def test_a_signal_while_data_are_waited_for_saves_and_ends_at_once(project, monkeypatch, capfd):
    """The program ends although the data never arrive; it does not say that it saves after this step."""
    config, runs = project

    class Hanging(dul.Views):
        def __call__(self, frames, rng):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
            time.sleep(60)  # in this process, as data.workers is 0

    monkeypatch.setattr(dul, "Views", Hanging)
    started = time.monotonic()
    code, out, _ = run(config, runs / "a")
    err = capfd.readouterr().err
    assert code == 128 + signal.SIGTERM
    assert time.monotonic() - started < 10 and "saving; once more" in err and "at step 0" in out
    assert checkpoint.load(runs / "a" / "last.pth")["step"] == 0
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # our handler is removed


def at_call(number, function):
    """Wrap a function: this process gets SIGTERM before call `number` of it."""
    calls = []

    def called(*arguments, **more):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **more)

    return called


def test_a_validation_ends_at_its_next_frame_and_comes_first_when_the_run_goes_on(project, davis, monkeypatch, capfd):
    config, runs = project
    more = settings(validation__root=davis, validation__sequences="[video0]", schedule__steps=2)
    code, whole, err = run(config, runs / "whole", *more)
    assert code == 0, err
    frames, forward = [], ResNet.forward

    def counted(self, images, layer):
        frames.append(1)
        return forward(self, images, layer)

    with monkeypatch.context() as patch:
        patch.setattr(ResNet, "forward", at_call(3, counted))
        code, out, _ = run(config, runs / "parts", *more)
    err = capfd.readouterr().err
    assert code == 128 + signal.SIGTERM
    assert len(frames) <= 5 and "validation at" not in out and "validation is left out" in out
    assert "leaving the validation" in err and "at step 2, the last, without its validation" in out
    code, parts, _ = run(config, runs / "parts", *more)
    assert code == 0
    measured = [line.split("] ")[1] for text in (whole, parts) for line in text.splitlines() if "validation at" in line]
    assert len(measured) == 2 and measured[0] == measured[1]
    assert checkpoint.load(runs / "whole" / "last.pth")["best"] == checkpoint.load(runs / "parts" / "last.pth")["best"]


def test_the_last_lines_name_the_next_command(project, davis, monkeypatch, capfd):
    config, runs = project
    code, out, _ = run(config, runs / "a", *settings(schedule__steps=1, validation__layers="[key]"))
    assert code == 0 and "--key key" in out  # not the default layer of infer_vos.py
    assert f"{runs}/a/last.pth" in out and "not measured" in out and "best.pth" not in out
    assert f"infer_vos.py --checkpoint {runs}/a/last.pth" in out
    code, out, _ = run(config, runs / "b", *settings(schedule__steps=1, validation__root=davis))
    assert code == 0
    best = checkpoint.load(runs / "b" / "best.pth")["score"]
    assert f"infer_vos.py --checkpoint {runs}/b/best.pth" in out and f"{best:.1f} at the end" in out
    assert "--key" not in out
    # After a signal in the last step, no step remains to run.
    with monkeypatch.context() as patch:
        patch.setattr(train, "step", at_call(1, train.step))
        code, out, _ = run(config, runs / "c", *settings(schedule__steps=1))
    err = capfd.readouterr().err
    assert code == 128 + signal.SIGTERM
    assert "finished at step 1" in out and "goes on" not in out and "saving after this step" in err


def test_tensorboard_keeps_every_step_of_a_run_that_goes_on(project, monkeypatch):
    config, runs = project
    # What goes through the writer's own thread comes late.
    run_thread = _EventLoggerThread.run
    monkeypatch.setattr(_EventLoggerThread, "run", lambda thread: (time.sleep(0.3), run_thread(thread)))
    for steps in (2, 4, 5):
        more = settings(schedule__steps=steps, log__picture_steps=2)
        assert run(config, runs / "a", *more)[0] == 0
    found = event_accumulator.EventAccumulator(str(runs / "a" / "tensorboard")).Reload()
    assert [event.step for event in found.Scalars("loss/total")] == [1, 2, 3, 4, 5]
    pictures = [event.step for event in found.Images(found.Tags()["images"][0])]
    assert pictures == [1, 3, 5]  # the first step and every second one after it


def test_an_absent_validation_set(project, monkeypatch, tmp_path):
    """It is an error if the user names it, and a warning if only a configuration of this project does."""
    config, runs = project
    named = tmp_path / "configs" / "named.yaml"
    named.parent.mkdir()
    named.write_text(config.read_text().replace("root: null", f"root: {tmp_path / 'absent'}"))
    code, _, err = run(named, runs / "a", *settings(schedule__steps=1))
    assert code == 2 and "absent" in err
    monkeypatch.setattr(models, "ROOT", tmp_path)  # as if the file were part of this project
    assert run(named, runs / "b", *settings(schedule__steps=1))[0] == 0
    assert (runs / "b/last.pth").exists()
    assert run(named, runs / "c", *settings(schedule__steps=1, validation__root=tmp_path / "absent"))[0] == 2


def test_absent_sample_data_name_the_command_that_makes_them(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("sample", "ino_sample"):
        code, _, err = run(ROOT / "configs" / f"{name}.yaml", tmp_path / "run")
        assert code == 2 and "python -m datasets.sample" in err


def test_init_starts_a_new_run_from_weights(project, monkeypatch):
    config, runs = project
    assert run(config, runs / "a", *settings(schedule__steps=1))[0] == 0
    last = runs / "a" / "last.pth"
    wanted, began = checkpoint.load(last), []
    monkeypatch.setattr(train, "train", lambda run, *_: began.append((run.step, run.method.state_dict())))
    monkeypatch.setattr(train, "farewell", lambda *_: "")
    assert run(config, runs / "b", "--init", last, *settings(optim__lr=0.5))[0] == 0
    ((step, state),) = began
    assert step == 0 and all(torch.equal(state[name], value) for name, value in wanted["method"].items())
    code, _, err = run(config, runs / "c", "--init", last, *settings(method__embedding=8))
    assert code == 2 and "of another shape: extractor.head.conv2.weight" in err
    code, _, err = run(config, runs / "c", "--init", "/absent.pth")
    assert code == 2 and "/absent.pth" in err
    assert run(config, runs / "c", "--init", last, "--resume", last)[0] == 2 and not (runs / "c").exists()


def test_a_start_removes_half_written_checkpoints(tmp_path):
    (tmp_path / ".last.pth.123").write_bytes(b"half")
    (tmp_path / "last.pth").write_bytes(b"whole")
    claim(tmp_path).close()
    assert sorted(os.listdir(tmp_path)) == [".lock", "last.pth"]


def test_the_configuration_that_ran_is_kept(project):
    config, runs = project
    assert run(config, runs / "a", "--set", "schedule.steps=1", "--set", "seed=5")[0] == 0
    assert models.read_config(runs / "a" / "config.yaml").seed == 5
