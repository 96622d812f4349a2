"""The statements of docs/reliability.md on bad data, network connections and the folders of files."""

import io
import os
import struct
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import evaluate
import infer_vos
from core import checkpoint
from core.palette import read_ids
from datasets.readers import UnreadableFrame
from datasets.readers.frames import Reader, read_frame
from models.methods import METHODS
from tests import small
from tests.small import write_davis, write_videos
from tests.test_train import SMALL
from tests.test_train import run as train

ROOT = Path(__file__).resolve().parents[1]

#: Python's audit events that change files -> how many of their first arguments are paths
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
    """Audit hook: while `noting` is active, keep the paths of changed files and the addresses of connections."""
    if watched is None:
        return
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            watched.append(os.path.abspath(arguments[0]))
    elif event in CHANGES and not (isinstance(arguments[-1], int) and arguments[-1] >= 0):  # not relative to a folder
        watched.extend(os.path.abspath(os.fsdecode(path)) for path in arguments[: CHANGES[event]])
    elif event in CONNECTIONS:
        watched.append(f"network: {arguments[-1]}")


sys.addaudithook(_note)


@contextmanager
def noting():
    """with noting() as seen: the list of paths of changed files and addresses of connections."""
    global watched
    watched = seen = []
    try:
        yield seen
    finally:
        watched = None


@pytest.fixture
def davis(tmp_path, narrow):
    """Two sequences of 4 frames in DAVIS layout."""
    return write_davis(tmp_path / "davis", frames=4)


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


def rows(*titles):
    """{first cell: second cell} of the tables of docs/reliability.md whose head begins with one of the titles."""
    found, inside = {}, False
    for line in (ROOT / "docs/reliability.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if len(cells) != 2:
            inside = False
        elif not inside:
            inside = cells[0].startswith(titles) and cells[1] == "what happens"
        elif not cells[0].startswith("---"):
            found[cells[0]] = cells[1]
    return found


def saved(path, picture, kind, **options):
    picture.save(path, format=kind, **options)


def overwritten(path, content):
    path.write_bytes(content)


def relinked(path, target):
    path.unlink()
    path.symlink_to(target)


def rotated(path, picture):
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path, format="JPEG", exif=exif)


def renamed(path, name):
    path.rename(path.with_name(name))


def turned_into_folder(path):
    path.unlink()
    path.mkdir()


def claiming(content, side=65536):
    """The PNG `content` with side x side pixels in its header."""
    header = b"IHDR" + struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def png(picture):
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def deep(picture):
    """The bytes of a PNG with 16 bits for each channel."""
    return cv2.imencode(".png", np.array(picture)[..., ::-1].astype(np.uint16) * 256 + 77)[1].tobytes()


#: row of the table -> function of the path and the picture that spoils a frame; None: the test deletes the frame
SPOILED = {
    "JPEG that breaks off": lambda path, _: overwritten(path, path.read_bytes()[:-200]),
    "JPEG filled up with zeros": lambda path, _: overwritten(path, path.read_bytes()[:-200] + bytes(200)),
    "PNG that breaks off": lambda path, picture: overwritten(path, png(picture)[:-200]),
    "file of zero bytes": lambda path, _: overwritten(path, b""),
    "text called .jpg": lambda path, _: overwritten(path, b"no picture"),
    "link to itself called .jpg": lambda path, _: relinked(path, path.name),
    "picture that claims billions of pixels": lambda path, picture: overwritten(path, claiming(png(picture))),
    "frame that vanished after the scan": None,
    "PNG called .jpg": lambda path, picture: saved(path, picture, "PNG"),
    "JPEG called .png": lambda path, _: renamed(path, f"{path.stem}.png"),
    "BMP called .jpg": lambda path, picture: saved(path, picture, "BMP"),
    "CMYK JPEG": lambda path, picture: saved(path, picture.convert("CMYK"), "JPEG"),
    "16-bit PNG": lambda path, picture: overwritten(path, deep(picture)),
    "grey JPEG": lambda path, picture: saved(path, picture.convert("L"), "JPEG"),
    "PNG with alpha": lambda path, picture: saved(path, picture.convert("RGBA"), "PNG"),
    "JPEG with EXIF rotation": rotated,
    "frame of 1 pixel": lambda path, picture: saved(path, picture.crop((0, 0, 1, 1)), "JPEG"),
    "frame of another size": lambda path, picture: saved(path, picture.resize((13, 99)), "JPEG"),
    "spaces and other letters in names": lambda path, _: renamed(path, f"{path.stem} ü 猫.jpg"),
    "folder called .jpg": lambda path, _: turned_into_folder(path),
    "hidden file": lambda path, _: renamed(path, f".{path.name}"),
    "link to the folder itself": lambda path, _: relinked(path, path.parent),
    "link to itself in the place of a folder": lambda path, _: relinked(path.rename(path.with_suffix("")), path.stem),
}
FRAME_ROWS = rows("frame, or")


def spoil(path, kind):
    with Image.open(path) as picture:
        picture.load()
    SPOILED[kind](path, picture)


@pytest.fixture
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_tables_and_the_tests_name_the_same():
    assert {*FRAME_ROWS} == {*SPOILED, "folder that may not be read"}
    assert {*rows("video file")} == {*FILES} and {*rows("mask of")} == {*MASKS}


@pytest.mark.parametrize("kind", SPOILED)
def test_bad_frames(tmp_path, _cache, kind):
    folder = write_videos(tmp_path / "videos", videos=1, frames=4, size=(40, 48)) / "video0"
    good = len(list(folder.glob("*.jpg")))
    path = folder / "00001.jpg"
    whole = Image.fromarray(read_frame(path))
    if SPOILED[kind]:
        spoil(path, kind)
    reader = Reader(tmp_path / "videos")
    assert reader.names == ["video0"]
    if not SPOILED[kind]:
        path.unlink()
    outcome = FRAME_ROWS[kind].split(",")[0]
    assert reader.length(0) == good - (outcome == "left out")
    if outcome == "replaced":
        assert len(reader.read(0, [0, 2, 3])) == 3
        with pytest.raises(UnreadableFrame, match="00001.jpg: "):
            reader.read(0, [1])
    else:
        frames = reader.read(0, range(reader.length(0)))
        assert all(frame.dtype == np.uint8 and frame.shape[2] == 3 for frame in frames)
        if outcome == "read" and kind not in ("frame of 1 pixel", "frame of another size"):
            wanted = np.array(whole.convert("L").convert("RGB") if kind == "grey JPEG" else whole, int)
            assert frames[1].shape == wanted.shape and abs(frames[1] - wanted).mean() < 8
        assert outcome in ("read", "left out")


def test_a_folder_that_may_not_be_read(tmp_path, _cache, monkeypatch, caplog):
    write_videos(tmp_path / "videos", videos=2, frames=4)
    scandir = os.scandir

    def denied(folder):  # simulated: an administrator may read every folder
        if str(folder).endswith("video0"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", denied)
    assert Reader(tmp_path / "videos").names == ["video1"] and "video0: Permission denied" in caplog.text
    assert FRAME_ROWS["folder that may not be read"] == "left out, named"


@pytest.mark.parametrize("method", METHODS)
def test_views_of_frames_of_a_pixel_and_of_several_sizes(method):
    views = METHODS[method].Views(getattr(small, f"{method}_config")())
    for sizes in ([(1, 1)] * 4, [(40, 48), (1, 1), (99, 13), (1, 300)]):
        sample = views([np.full((*size, 3), 9, np.uint8) for size in sizes], np.random.default_rng(0))
        assert all(value.shape[0] == 4 for value in sample.values())


def test_a_fifth_of_bad_frames_is_trained_on_to_the_end(tmp_path, _cache, narrow):
    root = write_videos(tmp_path / "videos", videos=30, frames=4, size=(40, 48))
    text = SMALL.replace("ROOT", str(root)).replace("frames: 2, gap: 2", "frames: 3, gap: 2")  # every frame is read
    (tmp_path / "small.yaml").write_text(text)
    kinds = [kind for kind in SPOILED if SPOILED[kind]]
    made = {root / f"video{n}" / "00001.jpg": kinds[n % len(kinds)] for n in range(24)}
    for path, kind in made.items():
        spoil(path, kind)
    seldom = ("--set", "schedule.epochs=1", "--set", "log.picture_steps=100")
    code, told, warned = train(tmp_path / "small.yaml", tmp_path / "run", "--set", "data.bad_share=1", *seldom)
    assert code == 0 and "step 15/15" in told, warned
    replaced = [path for path, kind in made.items() if FRAME_ROWS[kind] == "replaced"]
    assert {path for path in made if f"{path}: " in warned} == {*replaced}
    assert checkpoint.load(tmp_path / "run/last.pth")["bad_clips"] >= len(replaced) > 5
    code, _, warned = train(tmp_path / "small.yaml", tmp_path / "strict", *seldom)
    assert code == 2 and "data.bad_share = 0.05" in warned and ".jpg: " in warned


#: row of the table -> function from the whole content of a video file to the spoiled one
FILES = {
    "mp4 that breaks off": lambda content: content[: len(content) * 2 // 3],
    "mp4 of zero bytes": lambda content: b"",
    "text called .mp4": lambda content: b"no video",
    "mp4 damaged after it was indexed": lambda content: content[:2000] + bytes(len(content) - 2000),
}


@pytest.mark.parametrize("kind", FILES)
def test_bad_video_files(tmp_path, _cache, kind, caplog):
    pytest.importorskip("av", reason="av, which is optional, is not installed")
    from datasets.readers import videos
    from tests.film import opencv_film

    path = opencv_film(tmp_path / "videos/a b ü.mp4")
    opencv_film(tmp_path / "videos/whole.mp4")
    content = FILES[kind](path.read_bytes())
    if rows("video file")[kind] == "left out, named":
        path.write_bytes(content)
        assert videos.Reader(tmp_path / "videos").names == ["whole.mp4"] and "a b ü.mp4: " in caplog.text
    else:
        reader = videos.Reader(tmp_path / "videos")
        path.write_bytes(content)
        with pytest.raises(UnreadableFrame, match="a b ü.mp4"):
            reader.read(0, [30])


#: row of the table -> function of the paths of a mask and a frame and of the mask's picture that spoils one of them
MASKS = {
    "grey or indexed PNG": lambda mask, frame, ids: saved(mask, ids.convert("L"), "PNG"),
    "one bit a pixel": lambda mask, frame, ids: saved(mask, ids.point(lambda id: 255 * bool(id)).convert("1"), "PNG"),
    "RGB, RGBA, 16 bit or CMYK": lambda mask, frame, ids: saved(mask, ids.convert("RGBA"), "PNG"),
    "mask that breaks off": lambda mask, frame, ids: overwritten(mask, mask.read_bytes()[:-40]),
    "mask of zero bytes": lambda mask, frame, ids: overwritten(mask, b""),
    "mask more than 2 px larger or smaller than its frame": lambda mask, frame, ids: saved(
        mask, ids.resize((30, 20), 0), "PNG"
    ),
    "mask that marks nothing": lambda mask, frame, ids: saved(mask, ids.point(lambda id: 0), "PNG"),
    "frame that breaks off": lambda mask, frame, ids: overwritten(frame, frame.read_bytes()[:-200]),
    "frame of another size in a video": lambda mask, frame, ids: saved(
        frame, ids.resize((30, 20), 0).convert("L"), "JPEG"
    ),
}


def in_mode(mode, file_format):
    return lambda mask, frame, ids: saved(mask, ids.convert("L").convert(mode), file_format)


#: the other modes of the row of RGBA
MODES = [("RGB, RGBA, 16 bit or CMYK", in_mode(*mode)) for mode in (("RGB", "PNG"), ("I;16", "PNG"), ("CMYK", "TIFF"))]


@pytest.mark.parametrize("kind, spoil", [*MASKS.items(), *MODES])
def test_bad_masks_and_frames_in_inference(davis, tmp_path, _cache, monkeypatch, capsys, kind, spoil):
    mask, frame = davis / "Annotations/480p/video1/00000.png", davis / "JPEGImages/480p/video1/00002.jpg"
    with Image.open(mask) as ids:
        ids = Image.fromarray(np.array(ids))
    spoil(mask, frame, ids)
    words = ["--checkpoint", "untrained", "--dataset", "davis", "--data", davis, "--out", tmp_path / "out", "--no-vis"]
    monkeypatch.setattr(
        sys, "argv", [str(word) for word in ("infer_vos.py", *words, "--key", "res3", "--device", "cpu")]
    )
    if rows("mask of")[kind].startswith("read"):
        infer_vos.main()
        written = sorted((tmp_path / "out/res3_vos/video1").glob("*.png"))
        assert len(written) == 4
        assert kind != "one bit a pixel" or set(np.unique(read_ids(written[0]))) == {0, 1}
        return
    with pytest.raises(SystemExit) as ended:
        infer_vos.main()
    told = capsys.readouterr().err
    assert ended.value.code == 2 and "error: " in told and "video1" in told and "Traceback" not in told
    assert not (tmp_path / "out/res3_vos/video1").exists() and not list(tmp_path.glob("out/**/.*"))
