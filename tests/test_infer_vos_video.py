"""infer_vos.py --video: the files that it writes, and errors for mistakes of the user."""

import errno
import json
import re
import shutil
import wave

import numpy as np
import pytest
from PIL import Image

from core.palette import read_ids, write_indexed
from datasets import own_video
from labelprop import follow
from tests.film import film

av = pytest.importorskip("av", reason="video files need the package av")
FRAMES, SIZE = 9, (96, 64)


def painted(t):
    """Frame t, RGB [H,W,3], and its mask: a bright square that moves over dark noise."""
    rng = np.random.default_rng(0)
    frame, ids = rng.integers(20, 60, (64, 96, 3), np.uint8), np.zeros((64, 96), np.uint8)
    ids[15:45, 20 + 2 * t : 50 + 2 * t] = 1
    frame[ids == 1] = (230, 180, 60)
    return frame, ids


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with frames/, a.mp4 and masks.  Tests must not change it."""
    made = tmp_path_factory.mktemp("made")
    (made / "frames").mkdir()
    for t in range(FRAMES):
        frame, ids = painted(t)
        Image.fromarray(frame).save(made / f"frames/{t}.png")
        write_indexed(made / f"{t}.png", ids)
    film(made / "a.mp4", np.arange(FRAMES) / 30)
    return made


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A copy of `made`; the test runs there."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


BASE = ("--device", "cpu", "--out", "out")
FEW = ("--video", "frames", "--mask", "0.png")


def content(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_masks_films_and_a_table(folder, program):
    code, told = program(*FEW, *BASE)
    assert code == 0 and "9 frames" in told and "see out/given/0.jpg" in told, told
    assert sorted(path.stem for path in (folder / "out/masks").iterdir()) == [str(t) for t in range(FRAMES)]
    for t in range(FRAMES):
        ids, truth = read_ids(f"out/masks/{t}.png"), painted(t)[1]
        assert (ids & truth).sum() / (ids | truth).sum() > 0.65, t  # a square of 4 cells a side; by DUL 0.69
    with av.open("out/overlay.mp4") as container:
        assert len(list(container.decode(video=0))) == FRAMES and container.streams.video[0].average_rate == 25
    assert len(json.loads((folder / "out/objects.json").read_text())["frames"]) == FRAMES
    origin = json.loads((folder / "out/origin.json").read_text())
    assert (origin["protocol"], origin["propagation"]["norm_frames"]) == ("best", 8)
    before = content(folder / "out")
    code, told = program(*FEW, *BASE)
    assert code == 0 and "finished before" in told and content(folder / "out") == before


def test_a_part_of_the_frames_and_boxes(folder, program):
    code, told = program(
        "--video", "frames", "--box", "1:15,10,40,40", "--box", "6@2:28,10,42,40", "--start", "2", "--end", "8",
        "--every", "2", *BASE,
    )  # fmt: skip
    assert code == 0 and "frame 2: 1 object: 1" in told and "frame 6: 1 object: 2" in told, told
    assert sorted(path.stem for path in (folder / "out/masks").iterdir()) == ["2", "4", "6"]
    given, truth = read_ids("out/given/2.png"), painted(2)[1]
    assert (given == truth).mean() > 0.95
    entries = json.loads((folder / "out/objects.json").read_text())["frames"]
    assert [(entry["frame"], entry["seconds"]) for entry in entries] == [(2, 0.08), (4, 0.16), (6, 0.24)]
    assert entries[0]["objects"]["2"]["area"] == 0 < entries[2]["objects"]["2"]["area"]


def test_a_later_mask_corrects_and_its_colours_are_the_same_objects(folder, program):
    for t, colour in ((0, (255, 0, 0)), (4, (255, 0, 0))):
        Image.fromarray(np.array([(0, 0, 0), colour], np.uint8)[painted(t)[1]]).save(f"red{t}.png")
    assert program("--video", "frames", "--mask", "red0.png", "--mask", "4:red4.png", *BASE)[0] == 0
    np.testing.assert_array_equal(read_ids("out/masks/4.png"), painted(4)[1])


def test_results_may_lie_among_the_frames_and_new_frames_are_seen(folder, program):
    inside = ("--video", "frames", "--mask", "0.png", "--device", "cpu", "--out", "frames/out")
    assert program(*inside)[0] == 0
    code, told = program(*inside)
    assert code == 0 and "finished before" in told
    Image.fromarray(painted(8)[0]).save("frames/9.png")
    code, told = program(*inside)
    assert code == 2 and "differs: mark" in told


def test_other_settings_are_not_mixed(folder, program):
    assert program(*FEW, *BASE, "--end", "2")[0] == 0
    before = content(folder / "out")
    for other in ((), ("--end", "3"), ("--end", "2", "--key", "res3"), ("--end", "2", "--protocol", "INO")):
        code, told = program(*FEW, *BASE, *other)
        assert code == 2 and "another origin (differs: " in told and "--overwrite" in told, told
    assert content(folder / "out") == before
    assert program(*FEW, *BASE, "--end", "3", "--overwrite")[0] == 0
    assert len(list((folder / "out/masks").iterdir())) == 3


def test_ctrl_c(folder, program, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(follow, "measures", interrupted)
        code, told = program(*FEW, *BASE, "--end", "4")
    assert code == 130 and "the same command" in told
    assert not (folder / "out").exists()
    assert program(*FEW, *BASE, "--end", "4")[0] == 0 and (folder / "out/overlay.mp4").exists()


def test_no_space(folder, program, monkeypatch):
    save, masks = Image.Image.save, []

    def full(image, path, **options):
        masks.append(path)
        if len(masks) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    code, told = program(*FEW, *BASE)
    assert code == 2 and ".png: cannot be written" in told and "No space left" in told
    assert not (folder / "out").exists()


def test_a_file_that_grows(folder, program, monkeypatch):
    sizes = iter(range(10))
    monkeypatch.setattr(own_video, "mark", lambda _: [next(sizes), 0])
    ids = np.zeros((64, 96), np.uint8)
    ids[10:50, 10:50] = 1
    write_indexed("ids.png", ids)
    code, told = program("--video", "a.mp4", "--mask", "ids.png", *BASE)
    assert code == 2 and "a.mp4: changed while it was read" in told
    assert not (folder / "out").exists()


@pytest.fixture(scope="module")
def unusable(made, tmp_path_factory):
    """A copy of `made` with unusable files, and the content of all its files.  Tests must not change it."""
    folder = shutil.copytree(made, tmp_path_factory.mktemp("unusable"), dirs_exist_ok=True)
    (folder / "text.mp4").write_text("no video")
    (folder / "empty.mp4").touch()
    with wave.open(str(folder / "song.wav"), "wb") as sound:
        sound.setnchannels(1), sound.setsampwidth(2), sound.setframerate(8000), sound.writeframes(bytes(16000))
    (folder / "half.mp4").write_bytes((folder / "a.mp4").read_bytes()[:-400])  # the index is at the end of the file
    (folder / "nothing").mkdir()
    for name, spoilt in (("damaged", b"no picture"), ("sizes", None)):
        (folder / name).mkdir()
        for t in range(3):
            Image.fromarray(painted(t)[0][: 64 if t < 2 else 60]).save(folder / f"{name}/{t}.png")
        if spoilt:
            (folder / name / "2.png").write_bytes(spoilt)
    ids = painted(0)[1]
    write_indexed(folder / "small.png", ids[:40])
    write_indexed(folder / "blank.png", 0 * ids)
    Image.fromarray(ids.astype(np.uint16) * np.uint16(300) + np.uint16(ids[::-1])).save(folder / "deep.png")
    Image.fromarray(np.array([(255, 0, 0), (0, 0, 255)], np.uint8)[ids]).save(folder / "full.png")
    (folder / "text.png").write_text("no picture")
    (folder / "mine/masks").mkdir(parents=True)
    (folder / "mine/masks/a.png").touch()
    return folder, content(folder)


WRONG = [
    ("--video none.mp4 --mask 0.png", "none.mp4: there is no such video"),
    ("--video text.mp4 --mask 0.png", "text.mp4: cannot be read"),
    ("--video empty.mp4 --mask 0.png", "empty.mp4: cannot be read"),
    ("--video song.wav --mask 0.png", "song.wav: .*no video"),
    ("--video half.mp4 --mask 0.png", "half.mp4: cannot be read"),
    ("--video nothing --mask 0.png", "nothing: holds no JPEG or PNG"),
    ("--video . --mask 0.png --end 0", "--end"),
    ("--video mine --mask 0.png", "mine: .*folders .masks"),
    ("--video damaged --mask 0.png", "damaged/2.png"),
    ("--video sizes --mask 0.png", "frame 2 is 96x60, the first is 96x64"),
    ("--video frames", "needs --mask"),
    ("--video frames --mask none.png", "none.png: there is no such mask"),
    ("--video frames --mask text.png", "text.png: cannot be read as a mask"),
    ("--video frames --mask small.png", "small.png: is 96x40, the video 96x64"),
    ("--video frames --mask blank.png", "blank.png: holds no object"),
    ("--video frames --mask deep.png", "deep.png: .*8 bits"),
    ("--video frames --mask full.png", "full.png: has no background"),
    ("--video frames --mask 9:0.png", "the video has 9 frames"),
    ("--video frames --mask 0.png --mask 3:3.png --every 2", "frame 3 is left out"),
    ("--video frames --mask 0:0.png --start 2", "frame 0 is left out"),
    ("--video frames --mask 4:4.png --end 4", "frame 4 is left out"),
    ("--video frames --mask 0.png --mask 0:1.png", "0.png is given for frame 0, too"),
    ("--video frames --box 10,10,20,20", "ID:x,y,width,height"),
    ("--video frames --box 0:10,10,20,20", "must be 1 to 254"),
    ("--video frames --box 1:80,10,30,30", "object 1: must lie in the frame of 96x64"),
    ("--video frames --box 1:10,10,0,30", "object 1: must lie in the frame"),
    ("--video frames --box 1:0,0,96,64", "whole frame"),
    ("--video frames --box 1:70,2,2,2", "no object"),
    ("--video frames --box 1:5,5,60,50 --box 1:5,5,60,50", "object 1 has a box at frame 0 already"),
    ("--video frames --box 1:5,5,60,50 --mask 0.png", "object 1: 0.png holds this object"),
    ("--video frames --box 20@1:5,5,60,50", "the video has 9 frames"),
    ("--video frames --mask 9:0.png --start 9", "has 9 frames"),
    ("--video frames --mask 0.png --every 0", "--every"),
    ("--video frames --mask 0.png --start x", "--start"),
    ("--video frames --mask 0.png --data .", "--data does not serve --video"),
    ("--video frames --mask 0.png --sequences a", "--sequences does not serve --video"),
    ("--dataset davis --data . --mask 0.png", "--mask serves --video alone"),
    ("--dataset davis", "--data ROOT is needed"),
    ("--video frames --dataset davis --data .", "not allowed with"),
    ("--video frames --mask 0.png --key res9", "--key: .*res9"),
    ("--video frames --mask 0.png --checkpoint none.pth", "none.pth"),
    ("--video frames --mask 0.png --out 0.png", "0.png"),
    ("--video frames --mask 0.png --out mine", "mine: holds masks of another origin"),
    ("--video frames --mask 0.png --max-side 3", "--max-side"),
]


@pytest.mark.parametrize("line, message", WRONG, ids=[line for line, _ in WRONG])
def test_mistakes(unusable, program, tmp_path, monkeypatch, line, message):
    folder, before = unusable
    monkeypatch.chdir(folder)
    arguments = line.split()
    out = () if "--out" in arguments else ("--out", tmp_path / "out")
    code, told = program(*arguments, "--device", "cpu", *out)
    assert code == 2 and "Traceback" not in told
    (last,) = [text for text in told.splitlines() if "error: " in text]
    assert re.search(message, last), last
    assert content(folder) == before and {*content(tmp_path)} <= {"out/given/0.jpg", "out/given/0.png"}


def test_several_processes(folder, program, monkeypatch):
    monkeypatch.setattr("core.distributed.world_size", lambda: 2)
    code, told = program(*FEW, *BASE)
    assert code == 2 and "without torchrun" in told
