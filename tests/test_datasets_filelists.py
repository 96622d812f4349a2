"""Lists of the videos on disk: writing them, counting, and reading them for training and inference."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import models
from core.palette import write_indexed
from datasets import filelists, readers, vos_sequences
from tests.small import write_videos

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def made(called, name, root, out):
    """Run the program -> (exit code, output)."""
    return called(filelists.main, name, "--root", root, "--out", out)


def write_davis(root, names, split, frames=3):
    write_videos(root / "JPEGImages/480p", videos=len(names), frames=frames, size=(16, 24))
    for number, name in enumerate(names):
        (root / f"JPEGImages/480p/video{number}").rename(root / "JPEGImages/480p" / name)
        for t in range(frames):
            write_indexed(root / f"Annotations/480p/{name}/{t:05d}.png", np.full((16, 24), t % 2 + 1, np.uint8))
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / f"ImageSets/2017/{split}.txt").write_text("\n".join(names), encoding="utf-8-sig")  # with a byte-order mark


def test_a_list_of_frame_folders_is_read_by_training(tmp_path, called):
    root = write_videos(tmp_path / "jpegs", videos=3, frames=2, size=(16, 24))
    (root / "video1").rename(root / "#1, a 'video'")
    code, told = made(called, "track", root, tmp_path / "lists")
    path = tmp_path / "lists/track_train.txt"
    assert code == 0 and f"{path}: 3 of 30,132 videos, 30,129 are missing" in told
    assert f"bash launch/train.sh track data.list={path} data.root={root}" in told
    whole, listed = readers.opened("frames", str(root)), readers.opened("frames", str(root), str(path))
    assert listed.names == whole.names and [listed.length(video) for video in range(3)] == [2, 2, 2]


def test_a_list_of_video_files_is_read_by_training(tmp_path, called):
    film = pytest.importorskip("tests.film")
    film.opencv_film(tmp_path / "films/deep/a.mp4", frames=4)
    film.opencv_film(tmp_path / "films/b c.mp4", frames=4)
    code, told = made(called, "ino_kinetics", tmp_path / "films", tmp_path / "lists")
    assert code == 0 and "2 of about 240,000 videos\n" in told
    listed = readers.opened("videos", str(tmp_path / "films"), str(tmp_path / "lists/ino_kinetics_train.txt"))
    assert listed.names == ["b c.mp4", "deep/a.mp4"]


def test_davis_is_listed_with_all_masks_and_without_sequences_that_are_not_there(tmp_path, called):
    write_davis(tmp_path / "davis", ["cow", "dog", "gone"], "val")
    shutil.rmtree(tmp_path / "davis/JPEGImages/480p/gone")
    code, told = made(called, "davis", tmp_path / "davis", tmp_path)
    assert code == 0 and "davis_val.txt: 2 of 30 videos, 28 are missing" in told
    assert "no davis_train.txt (60 videos): " in told and "train.txt: missing" in told
    listed = vos_sequences.listed(tmp_path / "davis_val.txt", tmp_path / "davis")
    for ours, theirs in zip(listed, vos_sequences.davis(tmp_path / "davis", names=["cow", "dog"]), strict=True):
        assert (ours.name, ours.images, ours.written) == (theirs.name, theirs.images, theirs.written)
        assert ours.annotations == theirs.annotations is not None


def test_youtube_vos_is_listed_with_the_frames_in_between(tmp_path, called):
    write_videos(tmp_path / "valid_all_frames/JPEGImages", videos=2, frames=6, size=(16, 24))
    for video in ("video0", "video1"):
        (tmp_path / "valid/JPEGImages" / video).mkdir(parents=True)
        for t in (0, 5):
            frame = f"JPEGImages/{video}/{t:05d}.jpg"
            shutil.copy(tmp_path / "valid_all_frames" / frame, tmp_path / "valid" / frame)
        write_indexed(tmp_path / f"valid/Annotations/{video}/00000.png", np.ones((16, 24), np.uint8))
    code, told = made(called, "ytvos", tmp_path, tmp_path / "lists")
    assert code == 0 and "ytvos_valid.txt: 2 of 474 videos, 472 are missing" in told
    assert "no ytvos_train.txt (3,471 videos): " in told
    listed = vos_sequences.listed(tmp_path / "lists/ytvos_valid.txt", tmp_path)
    for ours, theirs in zip(listed, vos_sequences.ytvos(tmp_path), strict=True):
        assert (ours.images, ours.masks, ours.written) == (theirs.images, theirs.masks, theirs.written)
    assert listed[0].written == (True, False, False, False, False, True)
    code, told = made(called, "ytvos", tmp_path / "valid", tmp_path / "again")
    assert code == 0 and "2 of 474" in told
    assert vos_sequences.listed(tmp_path / "again/ytvos_valid.txt", tmp_path / "valid")[1].length == 6


def test_more_than_there_should_be_is_told():
    part = filelists.Part("train", filelists.frame_folders, ".", 2)
    assert part.told(2) == "2 of 2 videos" and part.told(3) == "3 of 2 videos, 1 too many"


def test_nothing_is_written_of_what_is_not_there(tmp_path, called):
    for name in filelists.SETS:
        code, told = made(called, name, tmp_path / "absent", tmp_path / "lists")
        assert code == 2 and "absent" in told and "Traceback" not in told
    (tmp_path / "empty").mkdir()
    for name in ("kinetics", "charades"):
        code, told = made(called, name, tmp_path / "empty", tmp_path / "lists")
        assert code == 2 and "found" in told
    for number, (name, shown) in enumerate({"emu\udcff": "udcff", 'it\'s "x"': "it", "a\nb": r"a\nb"}.items()):
        (tmp_path / f"{number}" / name).mkdir(parents=True)
        (tmp_path / f"{number}" / name / "0.jpg").write_bytes(b"")
        code, told = made(called, "kinetics", tmp_path / f"{number}", tmp_path / "lists")
        assert code == 2 and "cannot stand in a list" in told and shown in told
    assert not (tmp_path / "lists").exists()


@pytest.mark.parametrize("name", ["ytvos", "oxuva", "track", "kinetics", "charades", "ino_kinetics"])
def test_training_lists_start_where_the_configurations_look(name):
    home, (part, *_) = filelists.SETS[name]
    data = models.read_config(CONFIGS / f"{name}.yaml").data
    assert Path(home) / part.folder == Path(data.root)
    assert part.found is {"frames": filelists.frame_folders, "videos": filelists.video_files}[data.reader]
