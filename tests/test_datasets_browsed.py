"""A video in any order: numbers, sizes and times of its frames, and what is told of damaged ones."""

import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from datasets.browsed import Browsed
from datasets.own_video import OwnVideo
from tests.film import film, number_of, opencv_film

EVEN = np.arange(60) / 25
UNEVEN = np.cumsum(np.r_[0, np.tile([0.03, 0.05, 0.11], 20)[:59]])


def write_folder(root, frames, size=(48, 64)):
    root.mkdir()
    for t in range(frames):
        Image.fromarray(np.full((*size, 3), 4 * t, np.uint8)).save(root / f"shot{t}.png")
    return root


@pytest.mark.parametrize("name, times", [("even.mp4", EVEN), ("uneven.mkv", UNEVEN), ("old.avi", EVEN)])
def test_frames_of_a_file_in_any_order(tmp_path, name, times):
    path = tmp_path / name
    film(path, times) if path.suffix != ".avi" else opencv_film(path, len(times), 25)
    video = Browsed(path)
    assert (video.count, video.size) == (60, (64, 96)) and video.fps == pytest.approx(59 / times[-1], rel=0.01)
    for t in (41, 3, 59, 0):
        frame = video.frame(t)
        assert (frame.number, frame.name, number_of(frame.pixels)) == (t, f"{t:05d}", t)
        assert frame.seconds == pytest.approx(times[t], abs=0.002)
    assert [number_of(frame.pixels) for frame in video.frames(7)] == [*range(7, 60)]
    assert [number_of(frame.pixels) for frame in video.frames(28, 31)] == [28, 29, 30]


def test_the_frames_are_those_that_are_read_from_the_start(tmp_path):
    path = film(tmp_path / "a.mp4", UNEVEN)
    for one, other in zip(Browsed(path).frames(), OwnVideo(path).frames(), strict=True):
        assert one.number == other.number and one.name == other.name and one.seconds == pytest.approx(other.seconds)
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_a_folder_of_frames(tmp_path):
    video = Browsed(write_folder(tmp_path / "frames", 12))
    assert (video.count, video.size, video.frame(10).name) == (12, (48, 64), "shot10")
    assert [frame.pixels[0, 0, 0] for frame in video.frames(9)] == [36, 40, 44]


def test_videos_that_cannot_be_read(tmp_path):
    cut = film(tmp_path / "cut.mkv", EVEN)
    cut.write_bytes(cut.read_bytes()[:-3000])
    words = tmp_path / "words.mp4"
    words.write_text("no video")
    for path in (tmp_path / "none.mp4", words, cut):
        with pytest.raises(UserError, match=path.name):
            Browsed(path)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    path = film(tmp_path / "a.mkv", EVEN)
    video = Browsed(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="a.mkv"):
        list(video.frames())
