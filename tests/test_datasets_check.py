import numpy as np
import pytest
import torch
from PIL import Image

import models
from core.errors import UserError
from core.schema import Clip
from datasets import check, clip, readers
from tests.film import opencv_film
from tests.small import write_videos
from tests.test_train import ROOT, SMALL

AUTO = SMALL.replace("reader: frames", "reader: auto").replace(
    " gap: 2, order", " gap: 2, fps: 10, clips_per_video: 3, order"
)


@pytest.fixture
def told(tmp_path, monkeypatch, called, narrow):
    """Runs the program on data in tmp_path -> (exit code, output, path of the sheet)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "small.yaml").write_text(AUTO)

    def run(*words, config="small.yaml", root="data", step="0.5"):
        settings = [f"data.root={tmp_path / root}", "--sheet", tmp_path / "out/sheet.png", "--device", "cpu"]
        settings += ["--step-seconds", step] if step else []
        code, said = called(check.main, "--config", tmp_path / config, *settings, *words)
        return code, said, tmp_path / "out/sheet.png"

    return run


def lines(text):
    return {line[:11].strip(): line[11:] for line in text.splitlines()}


def test_folders_of_frames_are_described(told, tmp_path):
    write_videos(tmp_path / "data", videos=4, frames=40, size=(40, 48))
    write_videos(tmp_path / "data/short", videos=1, frames=1, size=(72, 96))
    (tmp_path / "data/video1/00007.jpg").write_bytes(b"")
    code, text, sheet = told()
    found = lines(text)
    assert code == 0 and "5 in" in found["videos"] and "data.reader = frames), 161 frames" in found["videos"]
    assert found["lengths"] == "1 to 40 frames, median 40"
    assert "1 too short for a clip of 2 frames" in found["left out"] and "short/video0: 1 frames" in text
    assert found["sizes"] == "48x40 (4 videos), 96x72 (1 videos)"
    assert "looked at all; 1 cannot be read" in found["frames"] and "00007.jpg: the file is empty" in text
    assert "12 an epoch, 3 a video at most; 6 steps of 2" in found["clips"]
    assert "measured on 12 clips" in found["one worker"] and "0.50 s for 2 clips (as --step-seconds" in found["step"]
    assert "data.workers = 0: a step takes 0.5" in found["workers"] and "12 steps or 2.0 epochs" in found["training"]
    # 6 samples, each with a title and two views of two frames.
    assert Image.open(sheet).size == (2 * check.TILE_PX, 6 * (check.TITLE_PX + 2 * check.TILE_PX))


def test_video_files_are_described_and_the_step_is_measured(told, tmp_path):
    for number in range(3):
        film = opencv_film(tmp_path / f"data/{number}.mp4", frames=45, fps=30)
    (tmp_path / "data/cut.mp4").write_bytes(film.read_bytes()[:500])
    opencv_film(tmp_path / "data/short.mp4", frames=3, fps=30)
    code, text, sheet = told("data.workers=2", step=None)
    found = lines(text)
    assert code == 0 and "data.reader = videos), 138 frames" in found["videos"] and sheet.is_file()
    assert "0.1 to 1.5 seconds" in found["lengths"] and "cut.mp4: " in text and "short.mp4: 3 frames" in text
    assert "2 frames at 10 a second" in text and "96x64 (4 videos)" in found["sizes"]
    assert "measured on cpu: loss and gradient" in found["step"] and "data.workers = 2: " in found["workers"]


def test_more_workers_than_cores_do_not_help(capsys, monkeypatch):
    monkeypatch.setattr(check.os, "cpu_count", lambda: 2)
    config = models.read_config(ROOT / "configs/ytvos.yaml", ["data.workers=8", "schedule.epochs=9000"])
    loader = type("Loader", (), {"steps_per_epoch": 10})
    check.tell_speed(config, loader, check.Speed(clips=100, seconds=50.0, views_seconds=20.0), step=2.0)
    found = lines(capsys.readouterr().out)
    assert "2.0 clips/s: reading 300 ms a clip, views 200 ms (measured on 100 clips" in found["one worker"]
    assert found["workers"].startswith("4 are enough (this machine has 2 cores); data.workers = 8: a step takes 4.00")
    assert found["training"] == "90000 steps or 9000.0 epochs: 100.0 hours"


def test_a_look_that_ends_early_says_so(told, tmp_path):
    write_videos(tmp_path / "data", videos=3, frames=4, size=(40, 48))
    code, text, _ = told("--seconds", "1e-9")
    assert code == 0 and "looked at 1 of 12 in 1e-09 s" in text and "(measured on 1 clips" in text


def empty(root):
    root.mkdir()


def damaged(root):
    for path in write_videos(root, videos=3, frames=4).glob("*/*"):
        path.write_bytes(path.read_bytes()[:100])


def mixed(root):
    opencv_film(write_videos(root, videos=1, frames=4) / "a.mp4", frames=5)


@pytest.mark.parametrize(
    "make, words, text",
    [
        (empty, (), "no frames and no video files found"),
        (damaged, (), "could not be read; is data.root the right folder"),
        (mixed, (), "several kinds; .*data.reader=frames .4 files.* or data.reader=videos .1 files"),
        (lambda root: (root.mkdir(), (root / "a.mp4").touch()), (), "none of the 1 video files can be read"),
        (lambda root: None, (), "no such folder"),
        (write_videos, ("clip.frames=99",), "none of the 6 videos is long enough"),
        (write_videos, ("clip.frmes=2",), "did you mean 'frames'"),
        (write_videos, ("data.reader=film",), "must be auto, frames, videos"),
        (write_videos, ("--seconds", "0"), "--seconds 0: must be above 0"),
        (write_videos, ("--sheet", "/proc/sheet.png"), "sheet.png: cannot be written"),
    ],
)
def test_mistakes_are_told(told, tmp_path, make, words, text):
    make(tmp_path / "data")
    code, said, sheet = told(*words)
    assert code == 2 and not sheet.exists()
    with pytest.raises(UserError, match=text):
        raise UserError(said)


def test_what_would_stop_a_training_is_an_error_at_the_end(told, tmp_path):
    for path in write_videos(tmp_path / "data", videos=30, frames=4, size=(40, 48)).glob("video?/*"):
        path.write_bytes(b"")
    code, text, sheet = told()
    assert code == 2 and "more than data.bad_share = 0.05 allows" in text and sheet.exists()
    assert "40 cannot be read" in text and "... and 30 more" in text and "another video for" not in text
    assert "training   " in text
    assert "no such configuration" in told(config="smal.yaml")[1]


def test_an_interruption_leaves_nothing(told, tmp_path, monkeypatch):
    write_videos(tmp_path / "data", videos=2, frames=4)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "sheet", interrupted)
    code, text, sheet = told()
    assert code == 130 and "interrupted" in text and not list(sheet.parent.glob("*"))


def test_a_step_without_memory_is_told(told, tmp_path, monkeypatch):
    def too_large(*_):
        raise torch.OutOfMemoryError

    write_videos(tmp_path / "data", videos=2, frames=4)
    monkeypatch.setattr(check, "gradients", too_large)
    code, text, _ = told(step=None)
    assert code == 2 and "data.batch_size = 2: a step needs more memory than cpu has" in text


def test_the_sheet_shows_every_view():
    views = {
        "theta": torch.zeros(3, 2, 3),
        "whole": torch.full((3, 3, 40, 20), 200, dtype=torch.uint8),
        "parts": torch.arange(5, dtype=torch.uint8).view(1, 5, 1, 1, 1).expand(3, 5, 3, 8, 8) * 10,
    }
    picture = check.sheet([("näme", views)])
    assert picture.shape == (check.TITLE_PX + 2 * check.TILE_PX, 3 * check.TILE_PX, 3)
    whole, parts = np.split(picture[check.TITLE_PX :, : check.TILE_PX, 0], 2)
    assert (whole[:, :64] == 200).all() and (whole[:, 64:] == 0).all()  # the aspect ratio is kept
    assert [parts[5, 5], parts[5, 50], parts[5, 100], parts[50, 5], parts[50, 50]] == [0, 10, 20, 30, 40]


def test_a_list_decides_by_what_it_names_first(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mixed(tmp_path / "data")
    for entry, reader in (("a.mp4", "videos"), ("video0", "frames"), ("video0/00001.jpg", "frames")):
        (tmp_path / "list.txt").write_text(f"{entry}\n")
        assert readers.fitting(tmp_path / "data", tmp_path / "list.txt") == reader


@pytest.mark.parametrize(
    "settings, gap, fps",
    [
        (["data.reader=frames"], 2, None),
        (["data.reader=videos"], None, 10),
        (["data.reader=frames", "data.folder_fps=30"], None, 10),
        (["data.reader=videos", "clip.fps=null"], 2, None),
    ],
)
def test_clips_are_spaced_as_the_reader_can(tmp_path, settings, gap, fps):
    (tmp_path / "small.yaml").write_text(AUTO)
    settled = clip.settled(models.read_config(tmp_path / "small.yaml", settings))
    assert settled.clip == Clip(2, "random", gap, gap and "whole", fps, clips_per_video=3)
    assert clip.settled(settled) == settled
