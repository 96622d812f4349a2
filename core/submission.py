"""The zip that the YouTube-VOS server takes: Annotations/<video>/<frame>.png for every frame that is to be written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np
from PIL import Image

from core.atomic import replacing
from core.errors import UserError
from core.palette import PALETTE, ids_in

NAME, TOP = "Annotations.zip", "Annotations"


class Video(Protocol):
    """A video of T frames."""

    name: str
    images: tuple[Path, ...]  # [T]
    frame_names: tuple[str, ...]  # [T]
    written: tuple[bool, ...]  # [T]

    def given(self):
        """{frame index: ids uint8 [H,W]}, the masks at which objects are born."""


def write(path: Path, masks: Path, videos: Sequence[Video]) -> int:
    """Pack the PNGs in masks/<video> as a checked zip -> how many; the same PNGs give the same bytes.

    UserError, and no zip, for a PNG that is missing, wrong, or of no frame of the videos.
    """
    found = sorted(f"{p.parent.name}/{p.name}" for p in masks.glob("[!.]*/[!.]*"))
    with replacing(path) as part:
        with ZipFile(part, "w") as archive:
            for name in found:
                entry = ZipInfo(f"{TOP}/{name}")  # dated 1980
                entry.create_system, entry.external_attr = 3, 0o644 << 16  # on every system a file that all may read
                archive.writestr(entry, (masks / name).read_bytes())
        try:
            check(part, videos)
        except UserError as error:
            cure = f"remove the folder of that video from {masks}, and the same command makes its masks anew"
            raise UserError(f"{path}: not made. {error}; {cure}") from None
    return len(found)


def check(path: Path, videos: Sequence[Video]) -> None:
    """UserError names a PNG of the zip that is missing, wrong or one too many."""
    try:
        with ZipFile(path) as archive:
            left = set(archive.namelist())
            for video in videos:
                _check_video(archive, video, left)
    except BadZipFile as error:
        raise UserError(f"{path}: no sound zip ({error})") from error
    if left:
        raise UserError(f"{min(left)}: is the mask of no frame that is to be written")


def _check_video(archive, video, left):
    """Take the PNGs of one video out of the names that are left."""
    with Image.open(video.images[0]) as image:
        size = image.size
    given, allowed = video.given(), {0}
    for t, (frame, written) in enumerate(zip(video.frame_names, video.written, strict=True)):
        allowed |= ids_in(given[t]) if t in given else set()
        name = f"{TOP}/{video.name}/{frame}.png"
        if written:
            if name not in left:
                raise UserError(f"{name}: missing")
            left.remove(name)
            wrong = _wrong(archive, name, size, allowed)
            if wrong:
                raise UserError(f"{name}: {wrong}")


def _wrong(archive, name, size, allowed):
    """What is wrong with a PNG, if anything; size: (W, H)."""
    try:
        with archive.open(name) as file, Image.open(file, formats=["PNG"]) as image:
            ids = np.array(image)
            palette = image.getpalette() if image.mode == "P" else None
    except (OSError, SyntaxError):
        return "damaged, or no PNG"
    if palette != PALETTE.ravel().tolist():
        return "not indexed with the DAVIS palette"
    if ids.shape != size[::-1]:
        return f"{ids.shape[1]}x{ids.shape[0]} pixels, its frame has {size[0]}x{size[1]}"
    strange = sorted(ids_in(ids) - allowed)
    return f"holds id {strange[0]}, which is not given up to this frame" if strange else None
