"""OwnVideo: a user's video file or folder of frames."""

import os
import wave
import weakref

import numpy as np
import pytest
from PIL import Image

from core import movies
from core.errors import UserError
from datasets.own_video import OwnVideo, Task
from tests.film import film, number_of, numbered, opencv_film, turn

av = pytest.importorskip("av", reason="video files need the package av")
UNEVEN = np.cumsum(np.r_[0, np.tile([0.03, 0.05, 0.11], 20)[:59]])


@pytest.fixture
def folder(tmp_path):
    """Twelve frames; 2.png comes before 10.png."""
    (tmp_path / "frames").mkdir()
    for number in range(12):
        Image.fromarray(numbered(number)).save(tmp_path / f"frames/{number}.png")
    return tmp_path / "frames"


def numbers(video, *selection):
    return [(frame.number, number_of(frame.pixels)) for frame in video.frames(*selection)]


def test_a_frame_at_a_place_among_those_that_are_followed(folder):
    task = Task(OwnVideo(folder), {}, start=3, end=11, every=3)
    assert [number_of(task.frame(place)) for place in range(task.length)] == [3, 6, 9]


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv", "a.ts", "a.h264", "uneven.mkv"])
def test_files(tmp_path, name):
    path, times = tmp_path / name, UNEVEN if "uneven" in name else np.arange(60) / 30
    _ = film(path, times) if name != "a.avi" else opencv_film(path, len(times))
    video = OwnVideo(path)
    if name == "a.h264":  # the stream has no times: its frames are 1/25 s apart
        times = times * video.fps / 30
    assert (video.size, video.count, video.remark) == ((64, 96), 60, "")
    assert name == "a.h264" or video.fps == pytest.approx(59 / times[-1], rel=0.01)
    assert numbers(video) == [(n, n) for n in range(60)]
    assert numbers(video, 7, 30, 5) == [(n, n) for n in (7, 12, 17, 22, 27)]
    for number in (41, 3, 59, 0):
        frame = video.frame(number)
        assert (frame.number, frame.name, number_of(frame.pixels)) == (number, f"{number:05d}", number)
        assert name == "a.h264" or frame.seconds == pytest.approx(times[number], abs=0.002)


def test_a_variable_rate_and_a_turned_picture(tmp_path):
    times = [0.0, 0.1, 0.5, 0.55, 2.0, 2.1]
    video = OwnVideo(turn(film(tmp_path / "a.mp4", times)))
    assert video.size == (96, 64)
    np.testing.assert_allclose([frame.seconds for frame in video.frames()], times, atol=1e-3)
    first = video.frame(0).pixels
    assert first.shape == (96, 64, 3) and first.flags.c_contiguous


def test_folders(folder):
    video = OwnVideo(folder)
    assert (video.size, video.fps, video.count) == ((64, 96), 25.0, 12)
    assert numbers(video) == [(n, n) for n in range(12)]
    assert [frame.name for frame in video.frames(9)] == ["9", "10", "11"]


def test_frames_are_not_kept(tmp_path):
    video = OwnVideo(film(tmp_path / "a.mp4", np.arange(200) / 30))
    alive, most = [], 0
    for frame in video.frames():
        alive.append(weakref.ref(frame.pixels))
        most = max(most, sum(pixels() is not None for pixels in alive))
    assert len(alive) == 200 and most <= 2


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def broken(tmp_path):
    """Write files that cannot be read -> {name: key words of the message}."""
    whole = film(tmp_path / "whole.mp4", np.arange(60) / 30).read_bytes()
    (tmp_path / "growing.mp4").write_bytes(whole[: len(whole) // 2])  # the index is at the end of the file
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    with wave.open(str(tmp_path / "song.wav"), "wb") as sound:
        sound.setnchannels(1), sound.setsampwidth(2), sound.setframerate(8000), sound.writeframes(bytes(16000))
    (tmp_path / "nothing").mkdir()
    (tmp_path / "folders/inside").mkdir(parents=True)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/0.jpg").write_bytes(b"\xff\xd8 no more")
    (tmp_path / "twice").mkdir()
    (tmp_path / "astray").mkdir()
    (tmp_path / "astray/0.png").symlink_to("nowhere.png")
    for name in ("a.png", "a.jpg"):
        Image.fromarray(numbered(0)).save(tmp_path / "twice" / name)
    return {
        "none.mp4": "no such video",
        "growing.mp4": "cannot be read",
        "empty.mp4": "cannot be read",
        "text.mp4": "cannot be read",
        "song.wav": "no video",
        "nothing": "no JPEG or PNG",
        "folders": "inside",
        "damaged": "0.jpg.*breaks off",
        "astray": "cannot be read.*0.png",
        "twice": "two pictures are named 'a'",
    }


def test_what_cannot_be_read_is_told(tmp_path):
    for name, message in broken(tmp_path).items():
        with pytest.raises(UserError, match=f"{name}.*{message}"):
            OwnVideo(tmp_path / name)


def test_of_a_file_that_breaks_off_the_start_can_be_used(tmp_path):
    with movies.mp4(tmp_path / "a.mp4") as add:
        for number in range(200):
            add(numbered(number), number / 25)
    video = OwnVideo(half(tmp_path / "a.mp4"))
    assert 20 < video.count < 180 and f"after {video.count} frames" in video.remark
    assert numbers(video) == [(n, n) for n in range(video.count)]


def test_a_file_that_may_break_off(tmp_path):
    video = OwnVideo(half(film(tmp_path / "a.mkv", np.arange(200) / 30, key_every=10)))
    assert 20 < len(list(video.frames())) == video.count < 180 and "break" in video.remark


def test_a_name_with_a_colon_is_no_protocol(tmp_path, monkeypatch):
    film(tmp_path / "12:30.mp4", np.arange(4) / 25)
    monkeypatch.chdir(tmp_path)
    assert len([*OwnVideo("12:30.mp4").frames()]) == 4


def test_a_path_through_a_link_is_followed(tmp_path, monkeypatch):
    film(tmp_path / "there" / "clip.mp4", np.arange(4) / 25)
    (tmp_path / "there" / "inner").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "inner")
    monkeypatch.chdir(tmp_path)
    assert len([*OwnVideo("link/../clip.mp4").frames()]) == 4


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    video = OwnVideo(film(tmp_path / "a.mkv", np.arange(60) / 25))
    half(video.path)
    with pytest.raises(UserError, match="a.mkv.*frame"):
        list(video.frames())


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = film(tmp_path / "a.mp4", np.arange(10) / 30)
    with pytest.raises(UserError, match="changed while"):
        for _ in OwnVideo(path).frames():
            with open(path, "ab") as file:
                file.write(bytes(8))
            os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match="a.mp4: cannot be read"):
        for _ in OwnVideo(path).frames():
            path.unlink(missing_ok=True)


def test_frames_of_another_size(folder):
    Image.fromarray(numbered(5, (90, 64))).save(folder / "5.png")
    with pytest.raises(UserError, match="frame 5 is 90x64, the first is 96x64"):
        list(OwnVideo(folder).frames())


@pytest.mark.parametrize("selection", [(12,), (3, 3), (5, 2)])
def test_no_frame_in_the_range(folder, selection):
    with pytest.raises(UserError, match=f"none from {selection[0]}"):
        list(OwnVideo(folder).frames(*selection))
