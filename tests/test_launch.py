"""The training launcher explains itself, from any folder and before it sets anything up."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("words, told", [([], "Trains configs/NAME"), (["ytvoss"], "configs/ytvoss.yaml does not")])
def test_train_tells_its_use_before_any_set_up(words, told):
    environment = {**os.environ, "PYTHON": "/absent/python"}  # setting up would complain about this
    done = subprocess.run(
        ["bash", "train.sh", *words], cwd=ROOT / "launch", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and told in done.stderr
    assert "RUN_ID" in done.stderr and "GPUS" in done.stderr and " ytvos" in done.stderr
    assert "absent" not in done.stderr


def test_train_refuses_a_python_that_lacks_packages():
    environment = {**os.environ, "PYTHON": "/absent/python"}
    done = subprocess.run(
        ["bash", ROOT / "launch" / "train.sh", "sample"], cwd="/", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "PYTHON=/absent/python does not satisfy" in done.stderr
