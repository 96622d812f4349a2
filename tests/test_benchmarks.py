"""The benchmarks run, and the implementations that they compare give equal results."""

import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import inference, metrics, pack, scaling, soak, timing, training, workload
from tests.reference import inside_window
from tests.small import write_davis, write_videos

NAMES = sorted(path.stem for path in Path(metrics.__file__).parent.glob("*.py"))


@pytest.fixture
def davis(tmp_path):
    """A sequence of five annotated frames in DAVIS layout."""
    return write_davis(tmp_path / "davis", videos=1, frames=5, listed=1)


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_finds_what_it_uses(name):
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.__doc__ and (hasattr(module, "main") or name in ("timing", "workload"))


def test_works_take_turns_and_the_first_turns_do_not_count():
    order = []
    runs = timing.alternated({"a": "A", "b": "B"}, 2, lambda work: order.append(work) or len(order), warm=1)
    assert order == list("ABABAB") and runs == {"a": [3, 5], "b": [4, 6]}


def test_a_run_is_the_mean_of_its_calls():
    results = iter(range(10))
    run = timing.timed(lambda: next(results), calls=4)
    assert run.result == 3 and 0 < run.wall < 1 and next(results) == 4
    assert timing.median([run._replace(cpu=c) for c in (5, 1, 2)], "cpu") == 2


@pytest.mark.parametrize("name", workload.GEOMETRIES)
def test_the_dense_computation_equals_the_engine(name, monkeypatch):
    monkeypatch.setitem(workload.CHUNK, "cpu", 50)
    *_, cfg = workload.GEOMETRIES[name]
    cfg = type(cfg)(**{**vars(cfg), "radius": 4})
    frames, labels = workload.made_features(4, 9, 13, 24).double(), workload.made_labels(3, 9, 13).double()
    dense, engine = (workload.propagation(way, frames[:-1], cfg)(frames[-1], labels) for way in ("dense", "windowed"))
    torch.testing.assert_close(dense, engine, rtol=0, atol=1e-12)
    assert torch.equal(workload.outside_window(torch.arange(117), 9, 13, cfg), ~inside_window(9, 13, cfg))


def test_scaling_needs_matplotlib_before_it_measures(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="2"):
        scaling.main([])
    assert "pip install matplotlib" in capsys.readouterr().err


def test_scaling_measures_and_draws(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    for name, value in {"H": 8, "W": 9, "D": 16, "GRIDS": {240: (8, 9)}}.items():
        monkeypatch.setattr(scaling, name, value)
    scaling.main(["--length", "2", "--heights", "240", "--out", str(tmp_path)])
    numbers = json.loads((tmp_path / "scaling.json").read_text())
    assert numbers["length"]["windowed"]["x"] == [1, 2] and numbers["resolution"]["dense"]["wall_s"][0] > 0
    assert np.asarray(Image.open(tmp_path / "benchmarks.png").convert("L")).std() > 5


@pytest.fixture
def sample(tmp_path):
    """Four videos in the layout of the sample set."""
    videos = write_videos(tmp_path / "JPEGImages/480p", videos=4, frames=8)
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/train.txt").write_text("".join(f"{path.name}\n" for path in sorted(videos.iterdir())))
    return tmp_path


def test_ways_of_training_learn_the_same(sample, monkeypatch, capsys, narrow):
    monkeypatch.setattr(training, "CHUNK", 1)
    monkeypatch.setattr(training, "BATCHES", 1)
    small = ["method.crop_px=32", "method.resize_px=[32,40]", "method.anchor_grid=4", "data.batch_size=2"]
    arguments = ["--device", "cpu", "--data", str(sample), "--steps", "2", "--ways", "plain", "fp32", "checkpointing"]
    drawn = ["--out", str(sample)] if find_spec("matplotlib") else []
    training.main([*arguments, "--run", "ytvos", *small, *drawn])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    found = {cells[0].strip(): [float(cell) for cell in cells[1:]] for cells in rows}
    assert found["plain"][1] == 1 and all(cells[0] > 0 and cells[4] > 0 for cells in found.values())
    # The two ways differ in rounding only.
    assert abs(found["plain"][5] - found["fp32"][5]) < 1e-2 and found["plain"][6] == found["fp32"][6]
    if drawn:
        assert np.asarray(Image.open(sample / "training.png").convert("L")).std() > 5


def test_metrics_agree_to_the_last_bit(davis, capsys):
    arguments = ["--annotations", str(davis / "Annotations/480p"), "--frames", "5", "--heights", "48", "--repeats", "1"]
    with pytest.raises(SystemExit) as ended:
        metrics.main(arguments)
    assert ended.value.code == 0 and capsys.readouterr().out.count("| 0.0 |") == 2


def test_inference_is_timed_stage_by_stage(davis, capsys):
    inference.main(["--data", str(davis), "--frames", "2", "--repeats", "1", "--device", "cpu"])
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if "|" in line][2:]
    stages = {row[0]: row for row in rows}
    for name in ("decoding", "to the device", "network", "propagation", "up-sampling", "PNG", "overlay"):
        assert float(stages[name][2]) > 0 and float(stages[name][4]) > 0, rows
    parts = sum(float(row[2]) for row in rows[:8])
    assert abs(parts - float(stages["whole"][2])) < 0.1
    assert "frames/s in turn" in out


@pytest.fixture
def packed(davis, tmp_path):
    """(folder of the pack, a function that runs pack.main) for two clips of three frames of 480x300 px."""
    for clip in ("a", "b"):
        (tmp_path / "clips" / clip).mkdir(parents=True)
        for t in range(3):
            Image.new("RGB", (480, 300), (50 * t, 100, 0)).save(tmp_path / f"clips/{clip}/{t}.png")
    (tmp_path / "clips/SOURCES.tsv").write_text("a\tsomewhere\n")
    out = tmp_path / "pack"
    arguments = ["--clips", str(tmp_path / "clips"), "--davis", str(davis), "--out", str(out), "--frames", "2"]
    return out, lambda: pack.main(arguments)


def test_a_pack_holds_small_clips_and_whole_sequences(packed, davis):
    out, run = packed
    run()
    assert Image.open(out / "clips/b/1.jpg").size == (307, 192) and not (out / "clips/b/2.jpg").exists()
    assert (out / "clips/SOURCES.tsv").exists() and (out / "davis/ImageSets/2017/val.txt").read_text() == "video0\n"
    for kind in ("JPEGImages/480p/video0/00004.jpg", "Annotations/480p/video0/00004.png"):
        assert (out / "davis" / kind).read_bytes() == (davis / kind).read_bytes()


def test_a_pack_that_is_too_large_is_not_left_behind(packed, monkeypatch, capsys):
    out, run = packed
    monkeypatch.setattr(pack, "LIMIT_MIB", 0)
    with pytest.raises(SystemExit, match="2"):
        run()
    assert "fewer --frames" in capsys.readouterr().err and not [p for p in out.parent.iterdir() if "pack" in p.name]


def test_a_pack_replaces_nothing(packed, capsys):
    out, run = packed
    out.mkdir()
    with pytest.raises(SystemExit, match="2"):
        run()
    assert "is there already" in capsys.readouterr().err


def test_the_soak_sees_growth_and_what_is_left_behind(tmp_path, monkeypatch):
    steady = [(t, dict.fromkeys(soak.USED, 4)) for t in range(40)]
    grown = [(t, use | {"threads": 4 + t}) for t, use in steady]
    assert soak.growth(steady) == dict.fromkeys(soak.USED, 1) and soak.growth(grown)["threads"] > 1.5
    monkeypatch.setattr(soak.time, "sleep", lambda seconds: None)
    (tmp_path / "run").mkdir()
    assert soak.left_behind(tmp_path) == []
    (tmp_path / "run/.last.pth.7").write_bytes(b"half")
    with soak.started(["-c", "print(flush=True); import time; time.sleep(60)", tmp_path], tmp_path) as process:
        process.stdout.readline()
        assert soak.usage(process.pid)["threads"] >= 1
        found = soak.left_behind(tmp_path)
        process.kill()
    assert sorted(found) == [str(tmp_path / "run/.last.pth.7"), f"process {process.pid}"]


def test_the_soak_draws_what_it_saw(tmp_path):
    pytest.importorskip("matplotlib")
    soak.draw_plot([(60.0 * t, dict.fromkeys(soak.USED, t)) for t in range(9)], tmp_path / "soak.png")
    assert np.asarray(Image.open(tmp_path / "soak.png").convert("L")).std() > 5


def test_the_soak_disturbs_and_tells_the_answer(tmp_path):
    soak.make_data(tmp_path / "data", videos=1, frames=2)
    draw, waits = np.random.default_rng(0), ["-c", "import time; time.sleep(60)"]
    for kind in ("SIGKILL", "SIGTERM"):
        code, done, _ = soak.attempt(kind, waits, tmp_path / "data", tmp_path / "round1", 0.2, draw)
        assert done and code in soak.ANSWERS[kind]
    waits = "import os, sys, time\nwhile os.path.exists(sys.argv[1]): time.sleep(0.05)\nsys.exit(2)"
    assert soak.attempt(
        "data gone", ["-c", waits, tmp_path / "data"], tmp_path / "data", tmp_path / "round1", 0.2, draw
    )[:2] == (2, True)
    assert (tmp_path / "data/ImageSets").is_dir()
    full = [
        "-c",
        "import sys\nwith open(sys.argv[1], 'wb') as file: file.writelines([bytes(10**6)] * 400)",
        tmp_path / "file",
    ]
    code, done, told = soak.attempt("disk full", full, tmp_path / "data", tmp_path / "round1", 0.2, draw)
    assert done and code == 1 and "File too large" in told
