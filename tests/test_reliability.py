"""What docs/reliability.md promises: bad data, no network, and no file outside the folders that were named."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import evaluate
import infer_vos
from core.palette import write_indexed
from tests.small import write_videos
from tests.test_train import SMALL
from tests.test_train import run as train

ROOT = Path(__file__).resolve().parents[1]

#: events of Python that change files -> how many of their first arguments are paths
CHANGES = {
    "os.mkdir": 1,
    "os.rename": 2,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.link": 2,
    "os.symlink": 2,
    "shutil.rmtree": 1,
}
CONNECTIONS = ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto")
watched = None


def _note(event, arguments):
    """Keep the paths that are written and the addresses that are asked for while `noting` is active."""
    if watched is None:
        return
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            watched.append(os.path.abspath(arguments[0]))
    elif event in CHANGES and not (isinstance(arguments[-1], int) and arguments[-1] >= 0):  # below an open folder
        watched.extend(os.path.abspath(os.fsdecode(path)) for path in arguments[: CHANGES[event]])
    elif event in CONNECTIONS:
        watched.append(f"network: {arguments[-1]}")


sys.addaudithook(_note)


@contextmanager
def noting():
    """with noting() as seen: the list of what is written, and of addresses."""
    global watched
    watched = seen = []
    try:
        yield seen
    finally:
        watched = None


@pytest.fixture
def davis(tmp_path):
    """Two sequences of 4 frames in DAVIS layout."""
    root = write_videos(tmp_path / "davis/JPEGImages/480p", videos=2, frames=4, size=(40, 48))
    mask = np.zeros((40, 48), np.uint8)
    mask[10:30, 12:36] = 1
    for path in root.glob("*/*.jpg"):
        write_indexed(tmp_path / "davis/Annotations/480p" / path.parent.name / f"{path.stem}.png", mask)
    (tmp_path / "davis/ImageSets/2017").mkdir(parents=True)
    (tmp_path / "davis/ImageSets/2017/val.txt").write_text("video0\nvideo1\n")
    return tmp_path / "davis"


def test_programs_write_where_they_are_told_to_and_open_no_connection(davis, tmp_path, monkeypatch):
    here, home = tmp_path / "here", tmp_path / "home"
    here.mkdir()
    home.mkdir()
    (tmp_path / "small.yaml").write_text(SMALL.replace("ROOT", str(davis / "JPEGImages")))
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    named = {part: tmp_path / part for part in ("run", "masks", "scores")}
    truth = davis / "Annotations/480p"
    with noting() as seen:
        code, told, warned = train(tmp_path / "small.yaml", named["run"], "--set", f"validation.root={davis}")
        assert code == 0 and "validation at step" in told, warned
        words = ["--checkpoint", named["run"] / "best.pth", "--dataset", "davis", "--data", davis, "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", [str(word) for word in ("infer_vos.py", *words, "--out", named["masks"])])
        infer_vos.main()
        words = ["--annotations", truth, "--results", named["masks"] / "res4_vos", "--out", named["scores"]]
        monkeypatch.setattr(sys, "argv", [str(word) for word in ("evaluate.py", *words)])
        evaluate.main()
    places = (*named.values(), home / ".cache", os.devnull)
    elsewhere = [path for path in seen if not any(Path(path).is_relative_to(place) for place in places)]
    assert elsewhere == [] and len(seen) > 50
    assert os.listdir(here) == [] and os.listdir(home) == [".cache"]
    assert os.listdir(home / ".cache") == ["dense-video-learning"]
    for part, file in (("run", "last.pth"), ("masks", "res4_vos/video1/00003.png"), ("scores", "scores.json")):
        assert (named[part] / file).is_file()
    assert str(named["run"] / "last.pth") in seen


def test_the_watch_sees_files_and_addresses(tmp_path):
    import socket

    with noting() as seen, socket.socket() as connection:
        (tmp_path / "a").write_text("")
        (tmp_path / "a").rename(tmp_path / "b")
        with pytest.raises(OSError):
            connection.connect(("127.0.0.1", 9))
    assert str(tmp_path / "a") in seen and str(tmp_path / "b") in seen and "network: ('127.0.0.1', 9)" in seen
