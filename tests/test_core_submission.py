"""The YouTube-VOS zip: its content, and masks that are refused."""

from types import SimpleNamespace
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import pytest
from PIL import Image

from core import submission
from core.errors import UserError
from core.palette import write_indexed


def ids(*there, size=(12, 16)):
    array = np.zeros(size, np.uint8)
    array[0, : len(there)] = there
    return array


@pytest.fixture
def made(tmp_path):
    """(folder of masks, videos): four frames, the second not written; id 7 appears in the first, 9 in the third."""
    Image.new("RGB", (16, 12)).save(tmp_path / "0.jpg")
    names = ("0", "1", "2", "3")
    video = SimpleNamespace(
        name="v", images=(tmp_path / "0.jpg",) * 4, frame_names=names, written=(True, False, True, True),
        given=lambda: {0: ids(7), 2: ids(9)},
    )  # fmt: skip
    for name, there in (("0", [7]), ("2", [7, 9]), ("3", [])):
        write_indexed(tmp_path / f"res4_vos/v/{name}.png", ids(*there))
    return tmp_path / "res4_vos", [video]


def test_the_zip_holds_the_written_frames_as_they_are_and_always_the_same(made, tmp_path):
    masks, videos = made
    (masks / ".v.part").mkdir()
    (masks / "v/.DS_Store").touch()
    assert submission.write(tmp_path / "a.zip", masks, videos) == 3
    with ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [f"Annotations/v/{name}.png" for name in "023"]
        assert all(entry.compress_type == ZIP_STORED for entry in archive.infolist())
        assert archive.read("Annotations/v/2.png") == (masks / "v/2.png").read_bytes()
    for path in masks.glob("v/*.png"):
        path.write_bytes(path.read_bytes())  # gives it another date
    submission.write(tmp_path / "b.zip", masks, videos)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def grey(path):
    Image.fromarray(ids(7)).save(path)


def cut(path):
    write_indexed(path, np.random.default_rng(0).integers(0, 2, (12, 16), np.uint8) * 7)
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    "name, spoil, told",
    [
        ("3.png", lambda path: path.unlink(), "missing"),
        ("3.png", lambda path: write_indexed(path, ids(7, size=(12, 15))), "15x12 pixels, its frame has 16x12"),
        ("3.png", lambda path: write_indexed(path, ids(7, 8)), "holds id 8"),
        ("0.png", lambda path: write_indexed(path, ids(9)), "holds id 9"),  # before id 9 appears
        ("3.png", grey, "palette"),
        ("3.png", cut, "damaged"),
        ("1.png", lambda path: write_indexed(path, ids(7)), "no frame that is to be written"),
        ("notes.txt", lambda path: path.touch(), "no frame that is to be written"),
    ],
)
def test_what_is_wrong_is_named_and_no_zip_is_made(made, tmp_path, name, spoil, told):
    masks, videos = made
    spoil(masks / "v" / name)
    with pytest.raises(UserError, match=f"Annotations/v/{name}: .*{told}"):
        submission.write(tmp_path / "a.zip", masks, videos)
    assert not list(tmp_path.glob("*.zip*")) and not list(tmp_path.glob(".*"))
