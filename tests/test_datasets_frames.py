"""The reader of frame folders: decoding, damaged files, lists, the scan and its cache."""

import os
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from datasets import listing
from datasets.readers import UnreadableFrame
from datasets.readers.frames import Reader, read_frame


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def write(path, shade=100, size=(24, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shade).integers(0, 60, (*size, 3), dtype=np.uint8) + np.uint8(shade)
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture
def root(tmp_path):
    """Three videos at three depths, two files that are not frames, and an empty folder."""
    for i in range(3):
        write(tmp_path / f"data/zebra/{i:05d}.jpg", 50 + i)
        write(tmp_path / f"data/class/apple/{i:05d}.PNG", 80 + i)
    for i in (10, 9, 1):
        write(tmp_path / f"data/class/deep/er/frame{i}.jpeg", 100 + i)
    write(tmp_path / "data/zebra/._00000.jpg")
    (tmp_path / "data/notes.txt").write_text("not a frame")
    (tmp_path / "data/empty").mkdir()
    return tmp_path / "data"


def names(reader):
    return [reader.name(video) for video in range(len(reader))]


def test_every_folder_with_frames_is_a_video(root):
    reader = Reader(root)
    assert names(reader) == ["class/apple", "class/deep/er", "zebra"]
    assert [reader.length(video) for video in range(3)] == [3, 3, 3]


def test_frames_come_in_the_order_asked_for_as_rgb(root):
    reader = Reader(root)
    read = reader.read(0, [2, 0])
    for frame, name in zip(read, ("00002.PNG", "00000.PNG")):
        assert frame.dtype == np.uint8 and frame.shape == (24, 32, 3)
        np.testing.assert_array_equal(frame, np.asarray(Image.open(root / "class/apple" / name)))


def test_numbers_in_names_are_ordered_as_numbers(root):
    expected = [read_frame(root / f"class/deep/er/frame{i}.jpeg") for i in (1, 9, 10)]
    np.testing.assert_array_equal(Reader(root).read(1, [0, 1, 2]), expected)


def test_the_root_itself_can_be_a_video(root):
    reader = Reader(root / "zebra")
    assert len(reader) == 1 and reader.length(0) == 3 and reader.read(0, [1])[0].shape == (24, 32, 3)


def test_jpeg_pixels_are_those_of_pillow(shared):
    path = sorted(shared("clips").glob("*/*.jpg"))[0]
    np.testing.assert_array_equal(read_frame(path), np.asarray(Image.open(path)))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16"])
def test_other_pixel_formats_become_rgb(tmp_path, mode):
    grey = Image.fromarray(np.arange(0, 240, dtype=np.uint8).reshape(12, 20))
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    image.save(tmp_path / "frame.png")
    frame = read_frame(tmp_path / "frame.png")
    assert frame.shape == (12, 20, 3)
    if mode != "1":
        np.testing.assert_array_equal(frame, np.repeat(np.asarray(grey)[..., None], 3, axis=2))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated_files_are_unreadable(tmp_path, suffix, share):
    path = write(tmp_path / f"frame{suffix}", size=(200, 200))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UnreadableFrame) as caught:
        read_frame(path)
    assert caught.value.path == str(path) and caught.value.reason
    assert str(path) in str(caught.value)


def test_a_download_that_left_zeros_is_unreadable(tmp_path):
    path = write(tmp_path / "frame.jpg", size=(200, 200))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    with pytest.raises(UnreadableFrame):
        read_frame(path)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(tmp_path):
    path = write(tmp_path / "frame.jpg")
    whole = read_frame(path)
    path.write_bytes(path.read_bytes() + b"\0\0 added by a camera")
    np.testing.assert_array_equal(read_frame(path), whole)


def test_the_end_of_a_preview_is_not_the_end_of_the_jpeg(tmp_path):
    data = write(tmp_path / "frame.jpg", size=(200, 200)).read_bytes()
    preview = b"\xff\xe1" + (2 + len(data)).to_bytes(2, "big") + data  # an APP1 segment that holds a whole JPEG
    path = tmp_path / "with_preview.jpg"
    path.write_bytes(data[:2] + preview + data[2:])
    np.testing.assert_array_equal(read_frame(path), read_frame(tmp_path / "frame.jpg"))
    path.write_bytes(data[:2] + preview + data[2 : len(data) // 2] + bytes(1000))
    with pytest.raises(UnreadableFrame, match="breaks off"):
        read_frame(path)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_files_that_are_no_images_are_unreadable(tmp_path, content):
    path = tmp_path / "frame.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableFrame):
        read_frame(path)


def test_a_frame_that_vanished_is_unreadable(root):
    reader = Reader(root)
    (root / "zebra/00001.jpg").unlink()
    with pytest.raises(UnreadableFrame, match="00001.jpg.*No such file"):
        reader.read(2, [1])


def test_no_folder_and_no_frames(tmp_path):
    with pytest.raises(UserError, match="nowhere.*no such folder"):
        Reader(tmp_path / "nowhere")
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(UserError, match=r"clip.mp4: is a file; .* the folder"):
        Reader(tmp_path / "clip.mp4")
    (tmp_path / "empty/deep").mkdir(parents=True)
    with pytest.raises(UserError, match=r"empty: no frames found.*\.jpg, \.jpeg, \.png"):
        Reader(tmp_path / "empty")


def listed(root, text):
    path = root.parent / "list.txt"
    path.write_text(text)
    return Reader(root, str(path))


def test_list_of_frames(root):
    reader = listed(root, "/zebra/00002.jpg 0 1\nzebra/00000.jpg\n\n# a remark\n/class/apple/00001.PNG\n")
    assert names(reader) == ["zebra", "class/apple"]
    assert [reader.length(video) for video in range(2)] == [2, 1]
    np.testing.assert_array_equal(reader.read(0, [0])[0], read_frame(root / "zebra/00002.jpg"))


def test_list_of_folders(root):
    reader = listed(root, "/zebra/ label\nclass/deep/er\nzebra\n")
    assert names(reader) == ["zebra", "class/deep/er"]
    np.testing.assert_array_equal(reader.read(1, [2])[0], read_frame(root / "class/deep/er/frame10.jpeg"))


def test_lists_of_the_authors_are_read_from_where_their_paths_start(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    path = root.parent / "list.csv"
    path.write_text("\ufeff./set/zebra/00002.jpg,7\n./set/class/apple/00001.PNG, 8\n")
    (root.parent / "set").symlink_to(root)
    assert names(Reader(".", str(path))) == ["set/zebra", "set/class/apple"]
    with pytest.raises(UserError, match=r"set/set/zebra/00002.jpg is not there.*they fit data.root=\.;"):
        Reader("set", str(path))


def test_names_with_spaces_and_commas_stand_in_quotes(root):
    (root / "zebra").rename(root / "a zebra, running")
    for text in ('"a zebra, running"\n', "'/a zebra, running/00002.jpg', 7\n"):
        assert names(listed(root, text)) == ["a zebra, running"]
    with pytest.raises(UserError, match="a is not there.*in quotes"):
        listed(root, "a zebra, running\n")


@pytest.mark.parametrize(
    "line", ['"a cat/00000.jpg" 0 1', "'a cat/00000.jpg'", "a cat/00000.jpg\t1", "/a cat/00000.jpg\t"]
)
def test_lists_of_names_with_spaces_and_other_letters(root, line):
    write(root / "a cat/00000.jpg")
    write(root / "日本/ü 1.png")
    reader = listed(root, f"\ufeff{line}\n'日本'\n")  # a byte order mark, which some editors write
    assert names(reader) == ["a cat", "日本"]
    assert [len(reader.read(video, [0])) for video in range(2)] == [1, 1]


def test_names_that_cannot_be_opened_are_told_or_replaced(root):
    (root / "loop").symlink_to("loop")
    for entry in ("x" * 300, "loop", "zebra\n" + "x" * 300, "zebra\n\0", "x/" * 3000):
        with pytest.raises(UserError, match="list.txt"):
            listed(root, entry)
    reader = listed(root, f"zebra\nzebra/\0.jpg\nzebra/{'x' * 300}.jpg\n")
    for frame in (-2, -1):
        with pytest.raises(UnreadableFrame):
            reader.read(0, [frame])


def test_a_link_to_itself_harms_no_neighbour(root):
    (root / "zebra/loop").symlink_to("loop")
    (root / "zebra/00009.jpg").symlink_to("00009.jpg")
    reader = Reader(root)
    assert "zebra" in names(reader)
    with pytest.raises(UnreadableFrame, match="symbolic links"):
        reader.read(names(reader).index("zebra"), [-1])


def test_a_picture_that_says_it_is_huge_is_unreadable(tmp_path):
    path = write(tmp_path / "0.png")
    header = b"IHDR" + struct.pack(">2I5B", 65536, 65536, 8, 2, 0, 0, 0)
    content = path.read_bytes()
    path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    with pytest.raises(UnreadableFrame, match="cannot be decoded"):
        read_frame(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "names no frame"),
        ("zebra/00009.jpg\n", "zebra/00009.jpg is not there"),
        ("zebra\nnowhere\n", "nowhere is no folder"),
        ("zebra\nempty\n", "empty holds no"),
    ],
)
def test_lists_that_cannot_be_used(root, text, message):
    with pytest.raises(UserError, match=message) as caught:
        listed(root, text)
    assert "list.txt" in str(caught.value)


def test_list_that_is_not_there(root):
    with pytest.raises(UserError, match="missing.txt"):
        Reader(root, str(root / "missing.txt"))


def grow_old(root):
    """Set the times of all folders to an hour ago: the scan lists recently changed folders again."""
    hour_ago = time.time() - 3600
    for folder, _, _ in os.walk(root):
        os.utime(folder, (hour_ago, hour_ago))


@pytest.fixture
def looked_into(monkeypatch):
    """The names of the folders that were listed."""
    folders, list_folder = [], listing.list_folder

    def noting(folder, suffixes):
        folders.append(os.path.basename(os.path.normpath(folder)))
        return list_folder(folder, suffixes)

    monkeypatch.setattr(listing, "list_folder", noting)
    return folders


def test_the_second_scan_lists_only_folders_that_changed(root, looked_into):
    grow_old(root)
    first = names(Reader(root))
    assert len(looked_into) == 7
    looked_into.clear()
    assert names(Reader(root)) == first and not looked_into

    write(root / "zebra/00003.jpg")
    write(root / "class/new/00000.jpg")
    reader = Reader(root)
    assert sorted(looked_into) == ["class", "new", "zebra"]
    assert names(reader) == ["class/apple", "class/deep/er", "class/new", "zebra"] and reader.length(3) == 4

    (root / "class/new/00000.jpg").unlink()
    (root / "class/new").rmdir()
    assert names(Reader(root)) == first


def test_a_change_right_after_the_scan_is_seen(root):
    """Two changes in one tick of the clock give the folder the same time."""
    Reader(root)
    changed = (root / "zebra").stat().st_mtime_ns
    write(root / "zebra/00003.jpg")
    os.utime(root / "zebra", ns=(changed, changed))
    assert Reader(root).length(2) == 4


def test_a_damaged_cache_is_made_anew(root, cache_folder):
    first = names(Reader(root))
    (stored,) = cache_folder.glob("*/*.json")
    for content in ("{", "[]", '{"a.jpg//": 5}'):
        stored.write_text(content)
        assert names(Reader(root)) == first
        assert stored.read_text() != content


def test_a_cache_of_another_format_is_made_anew(root, cache_folder, monkeypatch, looked_into):
    grow_old(root)
    Reader(root)
    monkeypatch.setattr(listing, "CACHE_FORMAT", listing.CACHE_FORMAT + 1)
    looked_into.clear()
    Reader(root)
    assert len(looked_into) == 7


def test_no_cache_where_none_can_be_kept(root, cache_folder, capsys):
    cache_folder.write_text("a file where the folder should be")
    assert len(Reader(root)) == 3
    assert "is not kept" in capsys.readouterr().err


def test_links_are_followed_but_not_in_circles(root, tmp_path):
    write(tmp_path / "elsewhere/00000.jpg")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "class/circle").symlink_to(root)
    assert names(Reader(root)) == ["class/apple", "class/deep/er", "linked", "zebra"]


def test_a_folder_that_cannot_be_read_is_left_out_and_named(root, monkeypatch, caplog):
    def denied(folder, suffixes, list_folder=listing.list_folder):
        if str(folder).endswith("apple"):
            raise PermissionError(13, "Permission denied", folder)
        return list_folder(folder, suffixes)

    monkeypatch.setattr(listing, "list_folder", denied)
    assert names(Reader(root)) == ["class/deep/er", "zebra"]
    assert "class/apple: Permission denied" in caplog.text
