"""The benchmarks that need no long run: they agree with the project, and draw what they are given."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import plot, scaling
from core.palette import write_indexed

ROOT = Path(__file__).resolve().parents[1]


def test_metrics_equal_the_official_steps(tmp_path):
    for name, size in [("narrow", 60), ("wide", 90)]:
        for t in range(5):
            mask = np.zeros((120, 200), np.uint8)
            mask[20 + 5 * t : 20 + size, 7 * t : 7 * t + size] = 1
            mask[90:, 100 + t :] = 3
            write_indexed(tmp_path / name / f"{t:05d}.png", mask)
    command = [sys.executable, ROOT / "benchmarks" / "metrics.py", "--annotations", tmp_path, "--repeats", "1"]
    done = subprocess.run(
        [*command, "--frames", "5", "--heights", "120", "300"], capture_output=True, text=True, check=True
    )
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[4:]]
    kinds = [f"{height}p {kind}" for height in (120, 300) for kind in ("found", "layered")]
    assert [row[0] for row in rows] == [kind for kind in kinds for _ in ("measures", "program")]
    assert [row[-1] for row in rows] == ["0.0"] * 8 and rows[0][1:3] == ["2.0", "measures"]
    short = subprocess.run([*command, "--frames", "6"], capture_output=True, text=True)
    assert short.returncode == 2 and "no folder of 6 masks or more" in short.stderr


def test_a_made_video_goes_to_and_fro():
    assert [scaling.frame_of(t) for t in (0, 1, 23, 24, 45, 46, 47)] == [0, 1, 23, 22, 1, 0, 1]


def test_the_plot_shows_every_way(tmp_path):
    runs = [{"dense": {1: (8, 16), 60: (9, 18)}, "windowed": {1: (0.2, 0.4), 60: (s, 2)}} for s in (1, 7, 1.2)]
    length = scaling.medians(runs)
    assert length["windowed"] == {"x": [1, 60], "wall_s": [0.2, 1.2], "cpu_s": [0.4, 2]}
    numbers = {"length": length, "resolution": {way: {**row, "x": [240, 480]} for way, row in length.items()}}
    numbers |= {"cells": {"240": "30x53", "480": "60x107"}, "machine": "m", "threads": 2, "repeats": 3, "date": "d"}
    plot.draw(numbers, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        picture = np.array(image.convert("RGB"))
    assert picture.shape == (*plot.SIZE[::-1], 3)
    for way, colour in plot.COLOURS.items():
        drawn = (picture == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(2)
        for left, right in plot.PANELS:
            assert drawn[plot.TOP : plot.BOTTOM, left:right].any() == (way in length)
