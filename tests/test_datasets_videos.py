"""The reader of video files: exact frames, damaged files, lists, the index and its cache."""

import gc
import logging
import os

import av
import numpy as np
import pytest

from core.errors import UserError
from core.schema import Clip
from datasets.clip import ClipDataset, ClipLoader
from datasets.readers import UnreadableFrame, videos
from datasets.readers.videos import Reader
from tests.film import film, number_of, opencv_film, opencv_frames, trim, turn

UNEVEN = np.cumsum([0, *np.random.default_rng(0).choice([1, 2, 3, 12], 79, p=[0.5, 0.2, 0.2, 0.1])]) / 30
EVEN = np.arange(80) / 30


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def root(tmp_path):
    """Three videos at three depths, and two files that are not videos."""
    opencv_film(tmp_path / "data/zebra.mp4", frames=30)
    opencv_film(tmp_path / "data/class/apple.AVI", frames=20)
    opencv_film(tmp_path / "data/class/deep/er/bear.mp4", frames=10)
    (tmp_path / "data/._zebra.mp4").write_bytes(b"left by another system")
    (tmp_path / "data/notes.txt").write_text("not a video")
    return tmp_path / "data"


def names(reader):
    return [reader.name(video) for video in range(len(reader))]


def numbers(reader, video, ids):
    return [number_of(frame) for frame in reader.read(video, ids)]


def test_every_video_file_is_a_video(root):
    reader = Reader(root)
    assert names(reader) == ["class/apple.AVI", "class/deep/er/bear.mp4", "zebra.mp4"]
    assert [reader.length(video) for video in range(3)] == [20, 10, 30]


def test_the_index_holds_rate_duration_and_size(tmp_path):
    opencv_film(tmp_path / "a.mp4", frames=40, fps=25, size=(96, 64))
    info = Reader(tmp_path).info(0)
    assert (info.frames, info.width, info.height, info.rotation) == (40, 96, 64, 0)
    assert info.fps == pytest.approx(25)


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_frames_come_in_the_order_asked_for_as_rgb(tmp_path, name):
    opencv_film(tmp_path / name)
    reader = Reader(tmp_path)
    frames = reader.read(0, [7, 3, 11, 7])
    assert [number_of(frame) for frame in frames] == [7, 3, 11, 7]
    for frame in frames:
        assert frame.dtype == np.uint8 and frame.shape == (64, 96, 3)
        assert np.abs(frame[4, 48].astype(int) - (200, 30, 30)).max() < 25


FILES = {
    "even.mp4": ("libx264", EVEN),
    "even.mkv": ("libx264", EVEN),
    "even.mov": ("mpeg4", EVEN),
    "even.avi": ("mpeg4", EVEN),
    "h264.avi": ("libx264", EVEN),
    "vp9.webm": ("libvpx-vp9", EVEN),
    "uneven.mp4": ("libx264", UNEVEN),
    "uneven.mkv": ("libx264", UNEVEN),
    "late.mp4": ("libx264", EVEN + 1.5),
}


@pytest.mark.parametrize("name", FILES)
def test_every_frame_is_found_wherever_key_frames_lie(tmp_path, name):
    codec, times = FILES[name]
    film(tmp_path / name, times, codec)
    reader, rng = Reader(tmp_path), np.random.default_rng(0)
    assert reader.length(0) == len(times)
    np.testing.assert_allclose(np.diff(reader.times(0)), np.diff(times), atol=0.002)
    for ids in [[i] for i in range(0, 80, 3)] + [rng.integers(0, 80, 4).tolist() for _ in range(6)]:
        assert numbers(reader, 0, ids) == ids


@pytest.mark.parametrize("name", ["even.mp4", "uneven.mp4"])
def test_clips_hold_as_many_frames_a_second_as_wanted(tmp_path, name):
    _, times = FILES[name]
    film(tmp_path / name, times)
    dataset = ClipDataset(Reader(tmp_path), Clip(frames=4, fps=8, order="kept"), Shown(), 0)
    starts = set()
    for place in range(40):
        ids = dataset[(0, place, 0)]["ids"].tolist()
        starts.add(ids[0])
        expected = []
        for i in range(4):
            away = [round(abs(time - times[ids[0]] - i / 8), 4) for time in times]
            nearest = max(k for k in range(80) if away[k] == min(away))
            expected.append(min(max([nearest, *(k + 1 for k in expected)]), 80 - 4 + i))
        assert ids == expected
    assert len(starts) > 20


def test_a_turned_video_is_shown_upright(tmp_path):
    plain = film(tmp_path / "a.mp4", EVEN[:10])
    (tmp_path / "turned").mkdir()
    turned = tmp_path / "turned/b.mp4"
    turned.write_bytes(plain.read_bytes())
    turn(turned)
    reader = Reader(tmp_path / "turned")
    (frame,) = reader.read(0, [5])
    assert frame.shape == (96, 64, 3) and (reader.info(0).width, reader.info(0).height) == (64, 96)
    np.testing.assert_allclose(frame.astype(int), opencv_frames(turned)[5], atol=2)
    assert frame[48, -5, 0] > 150 > frame[48, -5, 1]  # the band at the top is now on the right


def test_what_was_cut_away_is_not_there(tmp_path):
    trim(film(tmp_path / "a.mp4", EVEN), start=30, frames=40)
    reader = Reader(tmp_path)
    assert reader.length(0) == 40
    assert numbers(reader, 0, [0, 39, 12]) == [30, 69, 42]


def spoil(root):
    """Add files that cannot be read -> their names."""
    whole = (root / "zebra.mp4").read_bytes()
    (root / "cut.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    avi = (root / "class/apple.AVI").read_bytes()
    pictures = avi.index(b"movi")
    (root / "cut.avi").write_bytes(avi[: pictures + (avi.index(b"idx1") - pictures) * 6 // 10])
    (root / "empty.mkv").touch()
    (root / "page.webm").write_bytes(b"<html>404</html>" * 50)
    return ["cut.avi", "cut.mp4", "empty.mkv", "page.webm"]


def test_broken_files_are_left_out_named_and_counted(root, caplog):
    broken = spoil(root)
    reader = Reader(root)
    assert names(reader) == ["class/apple.AVI", "class/deep/er/bear.mp4", "zebra.mp4"]
    assert list(reader.broken) == broken
    assert "4 of 7 video files left out" in caplog.text
    for name in broken:
        assert caplog.text.count(str(root / name)) == 1
    assert "empty.mkv: the file is empty" in caplog.text and "cut.avi: breaks off" in caplog.text
    caplog.clear()
    Reader(root)
    assert "4 of 7 video files left out" in caplog.text and "empty.mkv" not in caplog.text


def test_sound_without_pictures_is_named(tmp_path):
    opencv_film(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 8000, 0
        container.mux([*stream.encode(sound), *stream.encode()])
    assert Reader(tmp_path).broken == {"sound.mp4": "holds no video"}


def test_a_kind_that_no_decoder_knows_is_named(tmp_path):
    path = opencv_film(tmp_path / "data/a.avi")
    path.write_bytes(path.read_bytes().replace(b"XVID", b"what"))
    with pytest.raises(UserError, match="a.avi: .*cannot be decoded"):
        Reader(tmp_path / "data")


def test_nothing_that_can_be_read(tmp_path):
    with pytest.raises(UserError, match="nowhere.*no such folder"):
        Reader(tmp_path / "nowhere")
    (tmp_path / "bad").mkdir()
    with pytest.raises(UserError, match=r"no video files found.*\.mp4.*data\.reader=frames"):
        Reader(tmp_path / "bad")
    (tmp_path / "bad/empty.mp4").touch()
    with pytest.raises(UserError, match=r"none of the 1 video files can be read.*:\s+empty.mp4: the file is empty"):
        Reader(tmp_path / "bad")


def test_damage_after_the_index_was_made_is_unreadable(tmp_path):
    path = film(tmp_path / "a.mp4", EVEN, key_every=10)
    reader = Reader(tmp_path)
    whole = path.read_bytes()
    begin = whole.index(b"mdat") + 4
    length = whole.index(b"moov") - begin
    for content in (
        whole[: begin + length // 2] + b"\xff" * (length // 4) + whole[begin + length // 2 + length // 4 :],
        whole[: len(whole) // 2],
        b"",
    ):
        path.write_bytes(content)
        with pytest.raises(UnreadableFrame) as caught:
            reader.read(0, [45, 50])
        assert caught.value.path == str(path) and caught.value.reason
    path.unlink()
    with pytest.raises(UnreadableFrame, match="No such file"):
        reader.read(0, [0])


def test_a_shorter_file_of_the_same_name_is_unreadable(tmp_path):
    opencv_film(tmp_path / "a.mp4", frames=40)
    reader = Reader(tmp_path)
    opencv_film(tmp_path / "a.mp4", frames=20)
    assert numbers(reader, 0, [3]) == [3]
    with pytest.raises(UnreadableFrame, match="frame 30 of 40 is missing"):
        reader.read(0, [3, 30])


def test_videos_too_short_for_a_clip_are_left_out(tmp_path, caplog):
    opencv_film(tmp_path / "few.mp4", frames=3, fps=2)
    opencv_film(tmp_path / "short.mp4", frames=11, fps=30)
    opencv_film(tmp_path / "long.mp4", frames=13, fps=30)
    dataset = ClipDataset(Reader(tmp_path), Clip(frames=4, fps=8, order="random"), lambda frames, rng: {}, 0)
    assert [dataset.reader.name(video) for video in dataset.videos] == ["long.mp4"]
    assert "2 of 3 videos left out: fewer than 4 frames or 0.375 seconds" in caplog.text


def test_no_threads_stay_for_workers_to_miss(root, monkeypatch):
    """A forked worker lacks the threads of a decoder: it would wait for them forever when it frees the decoder."""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("threads are counted in /proc")
    film(root / "vp9.webm", EVEN, "libvpx-vp9", size=(640, 480))
    reader, numbered, counts = Reader(root), videos._numbered, []
    reader.read(0, [3])

    def counting(*arguments):
        counts.append(len(os.listdir("/proc/self/task")))
        try:
            yield from numbered(*arguments)
        finally:
            counts.append(len(os.listdir("/proc/self/task")))

    monkeypatch.setattr(videos, "_numbered", counting)
    gc.collect()
    for video in range(len(reader)):
        reader.read(video, [3, 8])
    assert len(counts) == 8 and len(set(counts)) == 1


def test_workers_decode_the_same_clips(root):
    dataset = ClipDataset(Reader(root), Clip(frames=3, fps=8, clips_per_video=4, order="random"), Shown(), 0)
    batches = lambda workers: [b["ids"].tolist() for b in ClipLoader(dataset, 2, workers, 0.0).batches(0, 7)]
    assert batches(0) == batches(2)


class Shown:
    def __call__(self, frames, rng):
        return {"ids": np.array([number_of(frame) for frame in frames])}


def listed(root, text):
    path = root.parent / "list.txt"
    path.write_text(text)
    return Reader(root, str(path))


def test_a_list_names_files_and_folders(root):
    assert names(listed(root, "/zebra.mp4 0 1\n\n# a remark\nclass\nzebra.mp4\n")) == [
        "zebra.mp4",
        "class/apple.AVI",
        "class/deep/er/bear.mp4",
    ]
    assert names(listed(root, "class/deep/\n")) == ["class/deep/er/bear.mp4"]


def test_a_list_as_ino_has_it(root):
    assert names(listed(root, "./zebra.mp4,3\n./class/deep/er/bear.mp4\n")) == ["zebra.mp4", "class/deep/er/bear.mp4"]


def test_a_listed_file_that_is_missing_is_left_out(root):
    reader = listed(root, "zebra.mp4\ngone.mp4\n")
    assert names(reader) == ["zebra.mp4"] and list(reader.broken) == ["gone.mp4"]
    assert "No such file" in reader.broken["gone.mp4"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "names no frame and no video"),
        ("gone.mp4\n", "gone.mp4 is not there"),
        ("zebra.mp4\nzebra/00000.jpg\n", "zebra/00000.jpg is no video file.*data.reader=frames"),
        ("zebra.mp4\nhollow\n", "hollow is no video file"),
    ],
)
def test_lists_that_cannot_be_used(root, text, message):
    (root / "hollow").mkdir()
    with pytest.raises(UserError, match=message) as caught:
        listed(root, text)
    assert "list.txt" in str(caught.value)


@pytest.fixture
def examined(monkeypatch):
    """The names of the files that were read for the index."""
    files, examine = [], videos.examine

    def noting(path):
        files.append(os.path.basename(path))
        return examine(path)

    monkeypatch.setattr(videos, "examine", noting)
    return files


def test_the_second_start_reads_only_files_that_changed(root, examined):
    film(root / "uneven.mp4", UNEVEN)
    first = Reader(root)
    assert len(examined) == 4
    examined.clear()
    again = Reader(root)
    assert not examined and names(again) == names(first)
    for video in range(4):
        np.testing.assert_array_equal(again.times(video), first.times(video))
        assert again.info(video)[:6] == first.info(video)[:6]

    opencv_film(root / "zebra.mp4", frames=25)
    opencv_film(root / "new.mp4", frames=5)
    (root / "class/apple.AVI").unlink()
    reader = Reader(root)
    assert sorted(examined) == ["new.mp4", "zebra.mp4"]
    assert names(reader) == ["class/deep/er/bear.mp4", "new.mp4", "uneven.mp4", "zebra.mp4"] and reader.length(3) == 25


def test_a_change_of_time_or_size_alone_is_seen(root, examined):
    Reader(root)
    examined.clear()
    status = (root / "zebra.mp4").stat()
    os.utime(root / "zebra.mp4", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    Reader(root)
    with open(root / "class/apple.AVI", "ab") as file:
        file.write(b"\0")
    os.utime(root / "class/apple.AVI", ns=(1, 1))
    Reader(root)
    assert examined == ["zebra.mp4", "apple.AVI"]


def test_a_list_leaves_what_is_known_of_other_files(root, examined):
    Reader(root)
    listed(root, "zebra.mp4\n")
    Reader(root)
    assert len(examined) == 3


def test_what_an_interrupt_leaves_is_not_read_again(root, examined, monkeypatch):
    examine = videos.examine

    def interrupted(path):
        if path.endswith("zebra.mp4"):
            raise KeyboardInterrupt
        return examine(path)

    monkeypatch.setattr(videos, "examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Reader(root)
    monkeypatch.setattr(videos, "examine", examine)
    examined.clear()
    assert len(Reader(root)) == 3 and examined == ["zebra.mp4"]


def test_published_files_give_the_frames_of_decoding_from_the_start(shared):
    reader, rng = Reader(shared("video_files")), np.random.default_rng(0)
    assert len(reader) == 4
    for video in range(4):
        frames = opencv_frames(reader.root / reader.name(video))
        assert len(frames) == reader.length(video)
        ids = rng.choice(len(frames), 4, replace=False).tolist()
        for i, frame in zip(ids, reader.read(video, ids)):
            assert np.abs(frame.astype(int) - frames[i]).max() <= 2
