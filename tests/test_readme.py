"""The Python code of the README."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.palette import read_ids, write_indexed
from tests.small import write_videos

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def video(tmp_path):
    """A folder with frames/ and first.png."""
    write_videos(tmp_path, videos=1, frames=3, size=(48, 64))
    (tmp_path / "video0").rename(tmp_path / "frames")
    mask = np.zeros((48, 64), np.uint8)
    mask[10:30, 20:40] = 3
    write_indexed(tmp_path / "first.png", mask)
    return tmp_path


def test_the_python_of_the_readme_runs_from_any_folder(video):
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", snippet], cwd=video, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    masks = sorted((video / "out").glob("*.png"))
    assert len(masks) == len(list((video / "out").glob("*.jpg"))) == 3
    assert set(np.unique(read_ids(masks[2]))) == {0, 3}
