"""The launchers print their usage and choose a suitable Python; optional packages may be missing."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from launch import check_requirements
from training.logbook import Logbook

ROOT = Path(__file__).resolve().parents[1]
LINES = (ROOT / "requirements.txt").read_text().splitlines()


@pytest.mark.parametrize("words, told", [([], "Trains configs/NAME"), (["ytvoss"], "configs/ytvoss.yaml does not")])
def test_train_tells_its_use_before_any_set_up(words, told):
    environment = {**os.environ, "PYTHON": "/absent/python"}  # the set-up would report this path
    done = subprocess.run(
        ["bash", "train.sh", *words], cwd=ROOT / "launch", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and told in done.stderr
    assert "RUN_ID" in done.stderr and "GPUS" in done.stderr and " ytvos" in done.stderr
    assert "absent" not in done.stderr


def test_train_counts_in_whole_numbers():
    environment = {**os.environ, "GPUS": "two"}
    done = subprocess.run(["bash", ROOT / "launch/train.sh", "sample"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: GPUS=two must be a whole number, 1 or more\n"


def test_train_refuses_a_python_that_lacks_packages():
    environment = {**os.environ, "PYTHON": "/absent/python"}
    done = subprocess.run(
        ["bash", ROOT / "launch" / "train.sh", "sample"], cwd="/", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "PYTHON=/absent/python does not satisfy" in done.stderr


def checked(monkeypatch, imports=True, **changes):
    """Check the packages as if these versions were installed -> (lacks, differences).  imports: torchvision imports."""
    pinned = {
        "torch": "2.11.0+cu130", "torchvision": "0.26.0", "numpy": "2.3.5", "tensorboardX": "2.6.5",
        "opencv-python": "4.12",
    }  # fmt: skip
    needed = {re.split("[<>=]", line)[0]: "99" for line in LINES if not line.startswith("#")}
    versions = needed | {"opencv-python-headless": None} | pinned | changes

    def version(name):
        if versions.get(name) is None:
            raise check_requirements.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(check_requirements, "version", version)
    if not imports:
        monkeypatch.setitem(sys.modules, "torchvision", None)
    lacks, differences = check_requirements.check(LINES)
    return " ".join(lacks), " ".join(differences)


def test_a_python_with_everything_has_no_differences(monkeypatch):
    assert checked(monkeypatch) == ("", "")


@pytest.mark.parametrize("name, version", [("torch", "2.8.0"), ("torch", "2.13.0.dev1+cpu"), ("numpy", "2.5.2")])
def test_another_recent_version_is_accepted(monkeypatch, name, version):
    lacks, differences = checked(monkeypatch, **{name: version})
    assert not lacks and differences.startswith(f"{name} {version}")


@pytest.mark.parametrize("name", ["av", "tensorboardX", "tensorboard", "pytest", "ruff"])
def test_an_optional_package_may_be_missing(monkeypatch, name):
    lacks, differences = checked(monkeypatch, **{name: None})
    assert not lacks and f"without {name} " in differences


@pytest.mark.parametrize("name, version", [("torch", "2.7.1"), ("torch", None), ("numpy", "1.26.4"), ("tqdm", None)])
def test_a_needed_package_must_be_installed(monkeypatch, name, version):
    lacks, _ = checked(monkeypatch, **{name: version})
    assert lacks.startswith(f"{name} ") and (version or "needed") in lacks


def test_a_torchvision_that_does_not_import_is_refused(monkeypatch):
    lacks, _ = checked(monkeypatch, imports=False, torch="2.10.0")
    assert "torchvision does not import" in lacks


@pytest.fixture
def clone(tmp_path):
    """Copies launchers; the returned make(folder=CODE) adds a Python, a script whose check exits with CODE."""
    (tmp_path / "launch").mkdir()
    for name in ("environment.sh", "test.sh", "infer_vos.sh", "app.sh"):
        (tmp_path / "launch" / name).write_text((ROOT / "launch" / name).read_text())

    def make(**fits):
        for folder, fit in fits.items():
            python = tmp_path / folder.replace("venv", ".venv/bin") / ("python" if folder == "venv" else "python3")
            python.parent.mkdir(parents=True)
            python.write_text(f"#!/bin/sh\ncase $1 in -c) exit 0;; -m) exit 1;; esac\necho differs\nexit {fit}\n")
            python.chmod(0o755)

    return make


def launched(folder, script, **variables):
    environment = {"PATH": f"{folder}/active:{os.environ['PATH']}", **variables}
    return subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)


def test_memory_is_kept_unless_the_user_says_otherwise(clone, tmp_path):
    clone(active=0)
    script = '. launch/environment.sh; echo "$GLIBC_TUNABLES"'
    assert "glibc.malloc.trim_threshold" in launched(tmp_path, script).stdout
    assert launched(tmp_path, script, GLIBC_TUNABLES="glibc.rtm=1").stdout == "glibc.rtm=1\n"


@pytest.mark.parametrize(
    "active, venv, chosen", [(0, 0, "active/python3"), (3, 0, ".venv/bin/python"), (3, 1, "active/python3"),
                             (3, None, "active/python3"), (1, 0, ".venv/bin/python")],
)  # fmt: skip
def test_the_python_that_has_everything_is_preferred(tmp_path, clone, active, venv, chosen):
    clone(active=active, **({} if venv is None else {"venv": venv}))
    done = launched(tmp_path, "set -eu; . launch/environment.sh; echo $PYTHON")
    assert done.stdout.strip() == str(tmp_path / chosen), done.stderr
    assert ("used as it is" in done.stderr) == (active == 3 and venv != 0)


@pytest.mark.parametrize("variables, said", [({}, "need ruff"), ({"RUFF": "no"}, "not checked")])
def test_a_run_without_style_checks_says_so(tmp_path, clone, variables, said):
    clone(active=3)
    done = launched(tmp_path, "bash launch/test.sh", **variables)
    assert done.returncode and said in done.stdout + done.stderr


def test_app_names_the_command_that_installs_gradio_and_runs_it_in_venv(tmp_path, clone):
    clone(venv=0)
    python = tmp_path / ".venv/bin/python"
    python.write_text('#!/bin/sh\ncase $1 in -c) exit 1;; -m) echo "$@";; esac\n')
    shutil.copytree(python.parent, tmp_path / "other")
    done = launched(tmp_path, "bash launch/app.sh --port 9", PYTHON=str(tmp_path / "other/python"))
    assert done.returncode == 2 and f"{tmp_path}/other/python -m pip install -r requirements-opt" in done.stderr
    done = launched(tmp_path, "bash launch/app.sh --port 9", PYTHON=str(python))
    assert "pip install" in done.stdout and done.stdout.endswith("launch.app --port 9\n")


@pytest.fixture
def segmented(tmp_path, clone):
    """Runs infer_vos.sh ytvos in a repository with these files and a Python that prints its arguments.

    -> (exit code, output, [value of --checkpoint, value of --out]).
    """
    clone()
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase $1 in infer_vos.py) echo "$@"; echo why >&2; exit 3;; esac\n')
    python.chmod(0o755)

    def run(files, **variables):
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()
        done = launched(
            tmp_path, "bash launch/infer_vos.sh ytvos --no-vis --sequences 'a b'", PYTHON=str(python), **variables
        )
        said = done.stdout + done.stderr
        return done.returncode, said, re.findall(r"--(?:checkpoint|out) (\S+)", said)

    return run


TRAINED, ALONG = "runs/ytvos/default/best.pth", "data/weights/dul_resnet18.safetensors"


@pytest.mark.parametrize(
    "files, variables, checkpoint, folder",
    [
        ([TRAINED, ALONG], {}, TRAINED, "ytvos_default_best"),
        ([TRAINED], {"VER": "again", "KEY": "key"}, TRAINED, "ytvos_default_best_again"),
        (["runs/a/b/best_key.pth"], {"EXP": "a", "RUN_ID": "b", "SNAPSHOT": "best_key"}, None, "a_b_best_key"),
        (["down/e060_score0.69.pth", TRAINED], {"SNAPSHOT": "down/e060_score0.69.pth"}, None, "e060_score0.69"),
        (["x.pth"], {"SNAPSHOT": "x.pth", "EXP": "mine", "VER": "2"}, None, "mine_x_2"),
        ([ALONG], {}, ALONG, "dul_resnet18"),
    ],
)
def test_infer_vos_names_checkpoint_and_folder_and_keeps_a_log(
    tmp_path, segmented, files, variables, checkpoint, folder
):
    code, said, chosen = segmented(files, **variables)
    assert code == 3 and chosen == [checkpoint or files[0], f"results/ytvos/{folder}"]
    assert ("weights in the box" in said) == (checkpoint == ALONG) and ("--key key" in said) == ("KEY" in variables)
    out = tmp_path / "results/ytvos" / folder
    assert "--no-vis" in (out / "infer.log").read_text() and "why" in (out / "infer.log").read_text()
    record = (out / "commands.txt").read_text()
    assert f"infer_vos.py --checkpoint {chosen[0]} " in record and r"a\ b" in record and "revision: " in record


@pytest.mark.parametrize(
    "variables, absent",
    [
        ({"EXP": "never"}, "runs/never/default/best.pth"),
        ({"SNAPSHOT": "last"}, "runs/ytvos/default/last.pth"),
        ({"SNAPSHOT": "down/x.pth"}, "down/x.pth"),
    ],
)
def test_infer_vos_takes_no_other_weights_than_those_named(tmp_path, segmented, variables, absent):
    code, said, chosen = segmented([ALONG], **variables)
    assert code == 2 and f"error: {absent} does not exist" in said and not chosen
    assert not (tmp_path / "results").exists()


def test_without_tensorboardx_a_run_goes_on_with_a_warning(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    book = Logbook(tmp_path)
    book.line("a step")
    book.scalars({"loss": 1}, 0)
    book.pictures({"a": None}, 0)
    book.close()
    (record,) = caplog.records
    assert "pip install tensorboardX" in record.getMessage() and "a step" in capsys.readouterr().out


def test_curves_that_cannot_be_written_are_given_up_with_a_warning(tmp_path, caplog):
    pytest.importorskip("tensorboardX")
    book, limits = Logbook(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # as on a full disk
    try:
        for step in range(300):
            book.scalars({"loss": step}, step)
            book.pictures({"a": np.zeros((3, 8, 8), np.uint8)}, step)
        book.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (record,) = caplog.records
    assert f"no more TensorBoard log: {tmp_path} cannot be written" in record.getMessage()


def stub(folder, name, script):
    """Write the program `name` into folder/active, the first folder of PATH."""
    (folder / "active").mkdir(exist_ok=True)
    path = folder / "active" / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def cluster(tmp_path):
    """A folder with the launchers of training, a Python that prints its arguments, and stubs of SLURM's commands."""
    for name in ("launch", "configs", "active"):
        (tmp_path / name).mkdir()
    for name in ("environment.sh", "train.sh", "slurm.sh"):
        (tmp_path / "launch" / name).write_text((ROOT / "launch" / name).read_text())
    (tmp_path / "configs/a.yaml").touch()
    # With LONG, the stub trains until SIGTERM and then saves; without, it exits with CODE.
    train = 'echo "$@"; [ -n "${LONG:-}" ] || exit ${CODE:-0}; trap "echo saved; exit 143" TERM; echo $$ > ready'
    stub(tmp_path, "python3", f"case $1 in train.py | -m) {train}; while :; do sleep 0.05; done;; esac")
    stub(tmp_path, "srun", 'while [[ $1 = --* ]]; do echo "srun $1"; shift; done; SLURM_NODEID=1 exec "$@"')
    states = 'show\\ hostnames*) echo node-a; echo node-b;; show\\ job*) echo JobState=$STATE;; *) echo "$@" > queue;;'
    stub(tmp_path, "scontrol", f'case "$*" in {states} esac')
    return tmp_path


def options(said):
    """{option: value} of the last command for torchrun in an output."""
    (*_, line) = [line for line in said.splitlines() if "train.py" in line]
    return dict(re.findall(r"--([\w-]+)[ =]([^- ]\S*)", line))


def test_several_machines_meet_at_the_first(cluster):
    where = {"PYTHON": str(cluster / "active/python3"), "NNODES": "4", "MASTER_ADDR": "node-a", "GPUS": "8"}
    for node, log in (("0", "train.log"), ("3", "train.node3.log")):
        done = launched(cluster, "bash launch/train.sh a", NODE_RANK=node, RUN_ID="x", **where)
        said = options((cluster / "runs/a/x" / log).read_text())
        assert done.returncode == 0 and f"is_host={int(node == '0')}" in said["rdzv-conf"], done.stderr
        assert (said["nnodes"], said["nproc-per-node"], said["max-restarts"]) == ("4", "8", "3")
        assert (said["rdzv-endpoint"], said["rdzv-id"]) == ("node-a:29500", "runs_a_x")  # it names a folder: no /
    assert (cluster / "runs/a/x/commands.txt").read_text().count("revision: ") == 2
    one = launched(cluster, "bash launch/train.sh a", **{**where, "NNODES": "1", "MAX_RESTARTS": "2"})
    assert "--standalone" in one.stdout and options(one.stdout)["max-restarts"] == "2"


@pytest.mark.parametrize("wrong", [{"NODE_RANK": "4"}, {"MASTER_ADDR": ""}, {"NODE_RANK": ""}, {"NODE_RANK": "x"}])
def test_machines_that_cannot_meet_are_told_before_any_set_up(cluster, wrong):
    right = {"PYTHON": "/absent/python", "NNODES": "4", "NODE_RANK": "1", "MASTER_ADDR": "node-a"}
    done = launched(cluster, "bash launch/train.sh a", **{**right, **wrong})
    assert done.returncode == 2 and "from 0 to 3" in done.stderr and "absent" not in done.stderr


def submitted(cluster, **variables):
    """Start a copy of launch/slurm.sh in another folder, as sbatch does."""
    script = cluster / "spool"
    script.write_text((cluster / "launch/slurm.sh").read_text())
    job = {"SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    job |= {"SLURM_SUBMIT_DIR": str(cluster), "SLURM_CPUS_PER_TASK": "16", "PYTHON": str(cluster / "active/python3")}
    environment = {"PATH": f"{cluster}/active:{os.environ['PATH']}", "STATE": "RUNNING", **job, **variables}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(["bash", script, "a", "seed=1"], cwd="/", env=environment, **pipe)


@pytest.mark.parametrize("code", [0, 3])
def test_a_job_of_slurm_trains_on_all_its_nodes(cluster, code):
    job = submitted(cluster, CODE=str(code))
    said, _ = job.communicate(timeout=60)
    assert job.returncode == code and "srun --cpus-per-task=16" in said and "seed=1" in said
    found = options(said)
    assert (found["nnodes"], found["nproc-per-node"], found["rdzv-endpoint"]) == ("2", "8", "node-a:20123")
    assert "is_host=0" in found["rdzv-conf"] and not (cluster / "queue").exists()


@pytest.mark.parametrize(
    "number, state, queued",
    [(signal.SIGUSR1, "RUNNING", True), (signal.SIGTERM, "PREEMPTED", True), (signal.SIGTERM, "CANCELLED", False)],
)
def test_a_job_whose_time_ends_saves_and_goes_back_to_the_queue(cluster, number, state, queued):
    job = submitted(cluster, LONG="1", STATE=state)
    until = time.monotonic() + 60
    while not (cluster / "ready").exists() and time.monotonic() < until:
        time.sleep(0.05)
    job.send_signal(number)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 143 and "saved" in said
    assert (cluster / "queue").exists() == queued == ("back to the queue" in said)
    if queued:
        assert (cluster / "queue").read_text() == "requeue 123\n"


def test_slurm_sh_is_for_jobs(cluster):
    job = submitted(cluster, SLURM_JOB_ID="")
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 2 and "sbatch launch/slurm.sh" in said


@pytest.mark.parametrize(
    "ending, code", [("sys.exit(2)", 2), ("os.kill(os.getpid(), 9)", 137), ("os.kill(os.getppid(), 2)", 130)]
)
def test_torchrun_ends_with_its_process_and_adds_no_traceback(tmp_path, ending, code):
    """A process ends by itself, is killed, or its torchrun is stopped by Ctrl-C."""
    program = tmp_path / "program.py"
    quiet = "import os, signal, sys, time\nsignal.signal(signal.SIGINT, signal.SIG_DFL)"
    program.write_text(f"{quiet}\n{ending}\ntime.sleep(60)")
    words = [sys.executable, "-m", "launch.torchrun", "--standalone", "--nproc-per-node", "1", str(program)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
