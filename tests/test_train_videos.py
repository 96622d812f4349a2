"""train.py on video files and on folders of frames, with DUL and INO."""

import numpy as np
import pytest
import yaml

from tests.film import film, opencv_film
from tests.small import write_videos
from tests.test_train import ROOT, SMALL, run

INO = [
    "method.size=tiny",
    "method.image_px=16",
    "method.outputs=32",
    "method.head_hidden=24",
    "method.bottleneck=16",
    "method.global_px=32",
    "method.local_px=16",
    "method.local_crops=2",
    "data.workers=0",
    "data.batch_size=2",
    "optim.precision=fp32",
    "schedule.steps=3",
    "validation.root=null",
    "log.scalar_steps=1",
    "data.bad_share=0.2",
]


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path, monkeypatch, narrow):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def train_ino(run_dir, *overrides):
    settings = [part for setting in (*INO, *overrides) for part in ("--set", setting)]
    return run(ROOT / "configs/charades.yaml", run_dir, *settings)


def spoil(root, whole):
    """Add the first half of the file `whole`, and an empty file."""
    data = whole.read_bytes()
    (root / "cut.mp4").write_bytes(data[: len(data) // 2])
    (root / "empty.mp4").touch()


def test_dul_trains_from_video_files(tmp_path):
    root = tmp_path / "videos"
    for video in range(4):
        opencv_film(root / f"class{video}/a.mp4", frames=12)
    spoil(root, root / "class0/a.mp4")
    opencv_film(root / "short.mp4", frames=1)
    config = tmp_path / "small.yaml"
    config.write_text(SMALL.replace("ROOT", str(root)).replace("reader: frames", "reader: videos"))
    code, out, err = run(config, tmp_path / "run")
    assert code == 0 and "step 4/4" in out, err  # 4 videos, 2 a batch, 2 epochs
    assert "cut.mp4" in err and "empty.mp4: the file is empty" in err and "2 of 7 video files left out" in err
    assert "1 of 5 videos left out" in err and "Traceback" not in err


def test_auto_reads_what_lies_there_and_the_run_records_it(tmp_path):
    write_videos(tmp_path / "frames", videos=2, frames=6, size=(40, 48))
    for video in range(2):
        opencv_film(tmp_path / f"videos/{video}.mp4", frames=12)
    settings = SMALL.replace("reader: frames", "reader: auto").replace(" gap: 2, order", " gap: 2, fps: 10, order")
    for kind, told, spacing in (("frames", "clip.gap = 2", (2, None)), ("videos", "clip.fps = 10", (None, 10))):
        config, folder = tmp_path / f"{kind}.yaml", tmp_path / "runs" / kind
        config.write_text(settings.replace("ROOT", str(tmp_path / kind)))
        for steps in (1, 2):  # the second run resumes the first
            code, out, err = run(config, folder, "--set", f"schedule.steps={steps}")
            assert code == 0 and f"2 videos in {tmp_path / kind}, data.reader = {kind}, {told}" in out, err
        recorded = yaml.safe_load((folder / "config.yaml").read_text())
        assert recorded["data"]["reader"] == kind and (recorded["clip"]["gap"], recorded["clip"]["fps"]) == spacing


def test_ino_trains_from_video_files_of_any_rate(tmp_path):
    root = tmp_path / "videos"
    film(root / "even.mp4", np.arange(30) / 30)
    film(root / "uneven.mkv", np.cumsum([1, 2, 1, 1, 9, 1] * 5) / 30)
    spoil(root, root / "even.mp4")
    code, out, err = train_ino(tmp_path / "run", f"data.root={root}")
    assert code == 0 and "5 an epoch" in out and "step 3/" in out, err  # 5 clips of each of 2 videos, 2 a batch
    assert "cut.mp4" in err and "empty.mp4" in err and "2 of 4 video files left out" in err


def test_ino_trains_from_folders_of_frames(tmp_path):
    frames = write_videos(tmp_path / "frames", videos=3, frames=12, size=(40, 48))
    where = ("data.reader=frames", f"data.root={frames}", "clip.clips_per_video=1")
    for name, rate in (("gap", ("clip.fps=null", "clip.gap=2", "clip.step=whole")), ("rate", ("data.folder_fps=24",))):
        code, out, err = train_ino(tmp_path / name, *where, *rate)
        assert code == 0 and "step 3/" in out, err
    code, _, err = train_ino(tmp_path / "neither", *where)
    assert code == 2 and "data.folder_fps" in err and "Traceback" not in err


def test_ino_trains_from_published_files(tmp_path, shared):
    root = tmp_path / "videos"
    root.mkdir()
    for path in shared("video_files").iterdir():
        (root / path.name).symlink_to(path)
    spoil(root, shared("video_files") / "demo.mp4")
    code, out, err = train_ino(tmp_path / "run", f"data.root={root}")
    assert code == 0 and "10 an epoch" in out and "step 3/" in out, err
    assert "cut.mp4" in err and "empty.mp4" in err and "2 of 6 video files left out" in err
