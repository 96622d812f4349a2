"""Overlays as mp4 files and GIF previews."""

import resource

import numpy as np
import pytest
from PIL import Image

from core import movies
from core.errors import UserError
from tests.film import number_of, numbered

av = pytest.importorskip("av", reason="films need the package av")


def written(path, times, size=(96, 64), fps=30.0):
    with movies.mp4(path, fps) as add:
        for number, seconds in enumerate(times):
            add(numbered(number, size), seconds)
    return path


def frames(path):
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


@pytest.mark.parametrize("size", [(96, 64), (97, 65)])
def test_browsers_play_it(tmp_path, size):
    path = written(tmp_path / "a.mp4", [t / 30 for t in range(40)], size)
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert (stream.codec.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (96 + size[0] % 2 * 2, 64 + size[1] % 2 * 2)
        assert stream.average_rate == 30
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # browsers play it before the download ends
    shown = frames(path)
    assert [number_of(picture) for _, picture in shown] == list(range(40))
    colour = shown[0][1][:12, :90].reshape(-1, 3).mean(0)
    assert np.abs(colour - (200, 30, 30)).max() < 6, colour


def test_times_stay_as_they_are(tmp_path):
    times = [5.0, 5.04, 5.08, 5.5, 5.52, 7.0]
    shown = [seconds for seconds, _ in frames(written(tmp_path / "a.mp4", times))]
    np.testing.assert_allclose(shown, np.array(times) - 5, atol=1e-4)


def test_nothing_half_written_stays(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), movies.mp4(path) as add:
        add(numbered(1), 0)
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).integers(0, 255, (20, 240, 320, 3), np.uint8)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(UserError, match="a.mp4: cannot be written"), movies.mp4(tmp_path / "a.mp4") as add:
            for t, picture in enumerate(noise):
                add(picture, t / 25)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 30, 500])
def test_a_preview_shows_the_whole_film(tmp_path, count):
    preview = movies.Preview()
    for t in range(count):
        preview.add(np.full((480, 854, 3), t % 256, np.uint8), t / 25)
        assert len(preview.shown) <= movies.PREVIEW_FRAMES
    preview.write(tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as image:
        assert image.size == (320, 180) and image.n_frames == {1: 1, 30: 30, 500: 32}[count]
        assert image.info.get("duration", 0) * image.n_frames <= 6400


def test_a_preview_of_noise_is_small(tmp_path, monkeypatch):
    monkeypatch.setattr(movies, "PREVIEW_BYTES", 200_000)
    preview, rng = movies.Preview(), np.random.default_rng(0)
    for t in range(10):
        preview.add(rng.integers(0, 255, (200, 300, 3), np.uint8), t / 25)
    preview.write(tmp_path / "a.gif")
    assert 50_000 < (tmp_path / "a.gif").stat().st_size <= 200_000
