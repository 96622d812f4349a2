"""Video files for tests: every frame shows its number."""

import struct
from fractions import Fraction

import av
import cv2
import numpy as np

BITS = 8
TICKS = Fraction(1, 90_000)


def numbered(number, size=(96, 64)):
    """RGB frame [H,W,3]: a red band at the top, below it one column for each bit, white = 1.  size: (width, height)."""
    width, height = size
    frame = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        frame[:, bit * width // BITS : (bit + 1) * width // BITS] = 255 * (number >> bit & 1)
    frame[: height // 4] = (200, 30, 30)
    return frame


def number_of(frame):
    """The number that `numbered` drew, also after compression."""
    height, width = frame.shape[:2]
    row = frame[height * 3 // 4].astype(int).sum(axis=1)
    return sum(1 << bit for bit in range(BITS) if row[(2 * bit + 1) * width // (2 * BITS)] > 380)


def opencv_film(path, frames=40, fps=30.0, size=(96, 64)):
    """Write an mp4 or avi file of a constant frame rate with cv2.VideoWriter; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code = cv2.VideoWriter_fourcc(*("mp4v" if path.suffix == ".mp4" else "XVID"))
    writer = cv2.VideoWriter(str(path), code, fps, size)
    assert writer.isOpened()
    for number in range(frames):
        writer.write(cv2.cvtColor(numbered(number, size), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def film(path, times, codec="libx264", size=(96, 64), key_every=25):
    """Write a file with frame i at times[i] seconds, with key frames and B frames; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"g": str(key_every), "bf": "2"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        coarse = codec == "mpeg4" or path.suffix == ".avi"  # allow a constant rate only
        stream.codec_context.time_base = Fraction(1, 30) if coarse else TICKS
        for number, seconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(number, size), format="rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = round(seconds / frame.time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn(path):
    """Set the rotation of an mp4 to 90 degrees, as in videos from a phone held upright."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    struct.pack_into(">9i", data, matrix, 0, 65536, 0, -65536, 0, 0, 64 << 16, 0, 1 << 30)
    path.write_bytes(data)
    return path


def trim(path, start, frames, fps=30):
    """Set the edit list of an mp4: show only `frames` frames, from frame `start` on."""
    data = bytearray(path.read_bytes())
    clock = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]
    seconds = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)[0]
    edit = data.index(b"elst") + 12
    (first,) = struct.unpack_from(">i", data, edit + 4)
    struct.pack_into(">Ii", data, edit, frames * seconds // fps, first + start * clock // fps)
    path.write_bytes(data)
    return path


def opencv_frames(path):
    """All frames of a video as RGB, decoded by OpenCV."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    capture.release()  # it has threads: a forked process must not free it
    return frames
