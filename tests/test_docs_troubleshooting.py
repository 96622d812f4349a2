"""Every message in docs/troubleshooting.md is raised by the code."""

import importlib
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import models
from core import checkpoint, strict
from core.atomic import replacing
from core.errors import UserError
from core.evaluation import davis, folders
from core.schema import Clip
from datasets import listing, readers, vos_sequences
from datasets.clip import BadClips, ClipDataset, ClipLoader
from datasets.readers import frames
from labelprop import Tracker
from models.methods import dul
from tests.small import dul_config, write_videos
from training.run import NotFinite

ROOT = Path(__file__).resolve().parents[1]
MESSAGES = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs/troubleshooting.md").read_text().replace("``", "`"), re.M)


class NeedsCode:
    """An object that cannot be loaded without running code."""


class Dies(torch.nn.Module):
    """Views that end the worker that computes them."""

    def __call__(self, *_):
        os._exit(1)


def picture(path, ids=None, size=(16, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(size[::-1], np.uint8) if ids is None else ids).save(path)
    return path


def cuda(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Tracker(models.load("untrained"), device="cuda")


def no_av(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "datasets.readers.videos", raising=False)
    importlib.import_module("datasets.readers.videos")


def no_timm(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    models.load("timm:resnet18")


def not_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with replacing(tmp_path / "file" / "below"):
        pass


def broken_off(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:900])
    models.load(tmp_path / "a.pth")


def needs_code(tmp_path, monkeypatch):
    torch.save({"a": NeedsCode()}, tmp_path / "a.pth")
    models.load(tmp_path / "a.pth")


def other_sum(tmp_path, monkeypatch):
    checkpoint.save_weights(tmp_path / "a.safetensors", {"a": torch.zeros(3)}, {})
    (tmp_path / "a.safetensors").write_bytes(b"other")
    models.load(tmp_path / "a.safetensors")


def tracked(frame=(12, 16), mask=(12, 16), network=None):
    tracker = Tracker(models.load("untrained"), device="cpu")
    if network:
        tracker.extractor.forward = network
    tracker.step(np.zeros((*frame, 3), np.uint8), np.ones(mask, np.uint8))


def overflown(images, layer):
    return torch.full((len(images), 8, 2, 2), torch.inf)


def nothing_marked(tmp_path, monkeypatch):
    picture(tmp_path / "v" / "0.png")
    (tmp_path / "list").write_text("1 v/0.png v/0.png")
    (sequence,) = vos_sequences.listed(tmp_path / "list", tmp_path, None)
    list(sequence.doubts())


def two_sizes(tmp_path, monkeypatch):
    paths = picture(tmp_path / "0.png"), picture(tmp_path / "1.png", size=(20, 20))
    list(vos_sequences.VosSequence("v", paths, (paths[0], None), (True, True)).frames())


def other_root(tmp_path, monkeypatch):
    (tmp_path / "list").write_text("elsewhere/video0\n")
    frames.Reader(write_videos(tmp_path / "videos", 1), tmp_path / "list")


def other_line(tmp_path, monkeypatch):
    (tmp_path / "list").write_text("frames/0.jpg")
    vos_sequences.listed(tmp_path / "list", tmp_path, None)


def not_yaml(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("optim: [")
    strict.read(tmp_path / "a.yaml")


def no_frames(tmp_path, monkeypatch):
    frames.Reader(tmp_path)


def two_kinds(tmp_path, monkeypatch):
    write_videos(tmp_path, 1)
    (tmp_path / "clip.mp4").write_bytes(b"")
    readers.fitting(tmp_path, None)


def dataset(tmp_path, length, views=None):
    reader = frames.Reader(write_videos(tmp_path, 2, 4))
    clip = Clip(frames=length, gap=1, step="whole", order="kept", clips_per_video=4)
    return ClipDataset(reader, clip, views or dul.Views(dul_config()), 0)


def worker_died(tmp_path, monkeypatch):
    with ClipLoader(dataset(tmp_path, 2, Dies()), 2, 1, 0.1, "cpu").serve(0, 1) as batches:
        next(batches)


def not_finite(tmp_path, monkeypatch):
    raise NotFinite(SimpleNamespace(last=tmp_path / "last.pth", step=3), ["temp"])


def two_folders(tmp_path, other=("video", (16, 12)), frames=3):
    for t in range(3):
        picture(tmp_path / "truth" / "video" / f"{t}.png", np.ones((12, 16), np.uint8))
    for t in range(frames):
        picture(tmp_path / "results" / other[0] / f"{t}.png", np.ones(other[1][::-1], np.uint8))
    found = folders.pairs(tmp_path / "truth", tmp_path / "results")
    davis.evaluate_folders(found)


def exchanged(tmp_path, monkeypatch):
    picture(tmp_path / "res4_vos" / "video" / "0.png")
    picture(tmp_path / "mine" / "video" / "0.png")
    folders.check(tmp_path / "res4_vos", tmp_path / "mine")


RAISED = {
    "no CUDA device was found": cuda,
    "need the package av": no_av,
    "it is optional: python -m pip install -r requirements-optional.txt": no_timm,
    "cannot be written": not_written,
    "no such checkpoint": lambda *_: models.load("absent.pth"),
    "is not a readable checkpoint": broken_off,
    "needs code to be run, which is refused": needs_code,
    "is not the file whose SHA-256 stands in": other_sum,
    "must be one of res4, key, res3": lambda *_: Tracker(models.load("untrained"), "res5"),
    "sizes may differ by 2 pixels at most": lambda *_: tracked(mask=(12, 19)),
    "nothing to follow, no object is marked": nothing_marked,
    "all frames of a video must have one size": two_sizes,
    "entries are relative to": other_root,
    "expected `flag image mask`": other_line,
    "must be in DAVIS layout": lambda path, _: vos_sequences.davis(path),
    "features are not finite": lambda *_: tracked(network=overflown),
    "unknown key": lambda *_: models.read_config("configs/sample.yaml", ["optim.rate=1"]),
    "no such configuration": lambda path, _: strict.read(path / "absent.yaml"),
    "is not valid YAML": not_yaml,
    "must be section.key=value": lambda *_: models.read_config("configs/sample.yaml", ["lr"]),
    "no such folder; set data.root": lambda path, _: listing.check_root(path / "absent"),
    "no frames found": no_frames,
    "holds files of several kinds": two_kinds,
    "videos is long enough": lambda path, _: dataset(path, 9),
    "more than data.bad_share": lambda *_: BadClips(0.0).add(8, [("0.jpg", "truncated")]),
    "worker that reads data died": worker_died,
    "is NaN or infinite": not_finite,
    "were annotations and results exchanged": exchanged,
    "no sequence in common": lambda path, _: two_folders(path, ("another", (16, 12))),
    "masks must have the size of the annotation": lambda path, _: two_folders(path, ("video", (8, 8))),
    "every frame is needed": lambda path, _: two_folders(path, frames=4),
}


def test_the_table_holds_what_is_raised_here():
    assert sorted(MESSAGES) == sorted(RAISED)


@pytest.mark.parametrize("message", RAISED)
def test_message(message, tmp_path, monkeypatch, narrow):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=re.escape(message)):
        RAISED[message](tmp_path, monkeypatch)
