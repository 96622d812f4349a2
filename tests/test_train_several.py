"""Training in several processes: stopped, killed, and continued, also with another number of processes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import models
from core import checkpoint
from datasets.clip import BadClips
from models.methods import dul
from tests.programs import ROOT
from tests.test_train import assert_same_run, davis, project, run, settings, start  # noqa: F401
from training.evaluators import Validation
from training.logbook import Logbook
from training.run import Run
from training.stop import Stop

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def workers(process):
    """The ids of the processes that torchrun's agent started."""
    found = subprocess.check_output(["pgrep", "-P", str(process.pid), "python"], text=True)
    return [int(word) for word in found.split()]


def lose(process):
    """Kill torchrun's agent and its workers, as a power failure does."""
    for each in (*workers(process), process.pid):
        os.kill(each, signal.SIGKILL)
    process.wait()


def ended(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out, err


def test_two_processes_share_validation_go_on_bit_for_bit_and_become_one(project, davis):  # noqa: F811
    config, runs = project
    more = settings(validation__root=davis, validation__sequences="[video0]")

    def together(name, steps):
        code, out, err = start(config, runs / name, *more, *settings(schedule__steps=steps), processes=2).ended()
        assert code == 0, err
        return out

    whole = together("whole", 5)
    assert whole.count("a new run") == 1 and whole.count("J&F res4") == 2  # at steps 3 and 5, printed by one process
    together("parts", 4)
    out = together("parts", 5)
    assert "start 2" in out and "at step 4" in out and "instead of" not in out
    assert_same_run(runs / "whole", runs / "parts")
    # One process measures the same score as two.
    wanted = models.read_config(config, more[1::2])
    alone = Run(models.build(wanted), wanted, runs / "b", torch.device("cpu"))
    alone.restore(runs / "whole" / "last.pth")
    with Stop() as stop:
        Validation(alone.config, dul.Views(alone.config.method), "cpu").measure(alone, Logbook(None), stop)
    assert alone.score == checkpoint.load(runs / "whole" / "last.pth")["score"]
    code, out, err = run(config, runs / "parts", *more, *settings(schedule__steps=6))
    assert code == 0 and "1 processes instead of 2, with 2 clips each instead of 1" in out, err
    assert checkpoint.load(runs / "parts" / "last.pth")["processes"] == 1


SLOW = pytest.mark.skipif("SLOW" not in os.environ, reason="takes minutes: SLOW=1")


@pytest.mark.parametrize("to_all", [False, pytest.param(True, marks=SLOW)])
def test_a_signal_stops_both_processes_within_two_steps(project, to_all):  # noqa: F811
    """One process gets the signal; or, as SLURM sends it, torchrun and both do: then the processes get it twice."""
    config, runs = project
    rare = settings(log__scalar_steps=10_000, log__checkpoint_steps=10_000, schedule__epochs=20_000)
    process = start(config, runs / "a", *rare, processes=2)
    process.until("steps 0 to")
    time.sleep(0.5)
    first, second = workers(process)
    for receiver in (process.pid, first, second) if to_all else (second,):
        os.kill(receiver, signal.SIGTERM)
    code, out, err = process.ended()
    step = checkpoint.load(runs / "a" / "last.pth")["step"]
    assert code != 0 and f"at step {step}; the same command goes on" in out, err


def test_the_echo_of_a_signal_ends_nothing():
    with Stop(echo=60.0) as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert stop.signal == signal.SIGUSR1


def test_bad_files_of_all_starts_are_added_up(project, tmp_path):  # noqa: F811
    config = models.read_config(project[0])
    run = Run(models.build(config), config, tmp_path, torch.device("cpu"))
    run.unread, run.bad_before = BadClips(1.0), 3
    run.unread.add(2, [("a.jpg", "damaged"), ("a.jpg", "damaged")])
    run.save()
    again = Run(models.build(config), config, tmp_path, torch.device("cpu"))
    again.restore(run.last)
    assert (run.bad_clips, run.bad_files, again.bad_before, again.starts) == (5, 1, 5, 2)


@pytest.fixture
def clone(project, tmp_path):  # noqa: F811
    """A function that starts a run as one machine does, from copies of the launchers and the small configuration."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "configs").mkdir()
    for name in ("train.sh", "environment.sh", "check_requirements.py", "torchrun.py"):
        shutil.copy(ROOT / "launch" / name, tmp_path / "launch")
    shutil.copy(project[0], tmp_path / "configs" / "small.yaml")
    for name in ("train.py", "requirements.txt"):
        (tmp_path / name).symlink_to(ROOT / name)

    machines = []

    def machine(name, **variables):
        variables |= {"PYTHON": sys.executable, "RUN_ID": name, "DEVICE": "cpu"}
        words = ["bash", "launch/train.sh", "small", "schedule.epochs=20", "log.checkpoint_steps=4"]
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        machines.append(subprocess.Popen(words, cwd=tmp_path, env={**ENVIRONMENT, **variables}, **pipe))
        return machines[-1]

    yield machine
    for each in machines:
        if each.poll() is None:
            lose(each)


def until_step_ten(tmp_path, name, *machines):
    """Wait until the run has reached step 10 -> the path of its log."""
    log = tmp_path / "runs" / "small" / name / "train.log"
    while not re.search(r"step 1\d/60", log.read_text() if log.exists() else ""):
        assert all(machine.poll() is None for machine in machines)
        time.sleep(0.1)
    return log


@SLOW
def test_lost_processes_and_machines_come_back(clone, tmp_path):
    port = 20_000 + os.getpid() % 10_000
    one = {"GPUS": "2", "MAX_RESTARTS": "1"}
    two = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ended(clone("whole", **one))

    machine = clone("process", **one)
    log = until_step_ten(tmp_path, "process", machine)
    os.kill(workers(machine)[1], signal.SIGKILL)
    ended(machine)
    assert "start 2, going on from" in log.read_text()

    first, second = (clone("machine", NODE_RANK=node, **two) for node in "01")
    log = until_step_ten(tmp_path, "machine", first, second)
    lose(second)
    second = clone("machine", NODE_RANK="1", **two)
    for each in (first, second):
        ended(each)
    assert "start 2, going on from" in log.read_text()
    for name in ("process", "machine"):
        assert_same_run(*(tmp_path / "runs" / "small" / which for which in ("whole", name)))
