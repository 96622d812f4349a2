"""Films to watch: an mp4 that browsers play, and a small GIF.  Both are written whole or not at all."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from core.atomic import replacing
from core.errors import UserError
from core.palette import fitted

TICKS = Fraction(1, 90_000)
BT709 = 1
PREVIEW_SIDE, PREVIEW_FRAMES, PREVIEW_BYTES = 320, 48, 3_000_000


@contextmanager
def mp4(path: str | Path, fps: float = 25) -> Iterator[Callable[[np.ndarray, float], None]]:
    """with mp4(path, fps) as add: add(picture, seconds) for every frame -> H.264 in yuv420p, its index at the start.

    picture: uint8 RGB [H,W,3], all of one size; of an odd side the last row or column is shown twice.  seconds: when
    the picture is shown, ascending; the first picture is shown at 0, and a variable rate is kept.  fps: the last
    picture is shown for 1 / fps seconds.  Raises UserError where the file cannot be written.
    """
    try:
        import av
    except ImportError:
        raise UserError(f"{path}: needs the package av: {sys.executable} -m pip install av") from None
    options = {"movflags": "+faststart"}
    with replacing(path) as part, av.open(str(part), "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", options={"crf": "20", "preset": "veryfast"})
        stream.pix_fmt, coder, first = "yuv420p", stream.codec_context, None
        coder.time_base = TICKS
        coder.colorspace = coder.color_primaries = coder.color_trc = BT709
        coder.framerate = Fraction(fps).limit_denominator(1001)

        def add(picture: np.ndarray, seconds: float) -> None:
            nonlocal first
            height, width = picture.shape[:2]
            if first is None:
                first, stream.width, stream.height = seconds, width + width % 2, height + height % 2
            even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(even, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.time_base, frame.pts = TICKS, round((seconds - first) / TICKS)
            container.mux(stream.encode(frame))

        yield add
        if first is not None:
            container.mux(stream.encode())


class Preview:
    """A GIF of 48 frames at most, spread over the whole film.  Memory does not depend on the film's length."""

    def __init__(self) -> None:
        self.shown: list[tuple[np.ndarray, float]] = []
        self.count, self.every = 0, 1

    def add(self, picture: np.ndarray, seconds: float) -> None:
        """The next frame, uint8 RGB [H,W,3], and when it is shown."""
        if self.count % self.every == 0:
            if len(self.shown) == PREVIEW_FRAMES:  # keep every other frame, and take half as many from here on
                self.shown, self.every = self.shown[::2], 2 * self.every
            if self.count % self.every == 0:
                self.shown.append((fitted(picture, PREVIEW_SIDE), seconds))
        self.count += 1

    def write(self, path: str | Path) -> None:
        """Write the GIF, 3 MB at most, as long as the film but 6 seconds at most.  Raises UserError."""
        times = np.array([seconds for _, seconds in self.shown])
        step_ms = 1000 * float(np.diff(times).mean()) if len(times) > 1 else 1000
        step_ms = round(min(max(step_ms, 40), 6000 / len(times)), -1)
        side, data = PREVIEW_SIDE, b""
        while not data or len(data) > PREVIEW_BYTES:
            data, side = _gif([fitted(picture, side) for picture, _ in self.shown], int(step_ms)), side * 3 // 4
        with replacing(path) as part:
            part.write_bytes(data)


def _gif(pictures, step_ms):
    images = [Image.fromarray(picture).quantize(128, Image.Quantize.FASTOCTREE) for picture in pictures]
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=step_ms, loop=0)
    return file.getvalue()
