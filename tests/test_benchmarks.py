"""The benchmarks that reach into the programs' parts still find them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from core.palette import write_indexed

ROOT = Path(__file__).resolve().parents[1]


def test_inference_is_timed_stage_by_stage(tmp_path):
    ids = np.zeros((48, 64), np.uint8)
    ids[10:30, 20:50] = 1
    write_indexed(tmp_path / "Annotations/480p/one/00000.png", ids)
    (tmp_path / "JPEGImages/480p/one").mkdir(parents=True)
    for t in range(5):
        frame = np.random.default_rng(t).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(frame).save(tmp_path / f"JPEGImages/480p/one/{t:05d}.jpg")
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("one\n")
    command = [sys.executable, ROOT / "benchmarks/inference.py", "--data", tmp_path, "--frames", "4", "--repeats", "1"]
    done = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line][2:]
    stages = {row[0]: row for row in rows}
    for name in ("decoding", "to the device", "network", "propagation", "up-sampling", "PNG", "overlay"):
        assert float(stages[name][2]) > 0 and float(stages[name][4]) > 0, rows
    parts = sum(float(row[2]) for row in rows[:8])
    assert abs(parts - float(stages["whole"][2])) < 0.1
    assert "frames/s in turn" in done.stdout
