"""The zip that the YouTube-VOS server takes: Annotations/<video>/<frame>.png for every frame to be written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from zipfile import ZipFile, ZipInfo

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
    written: tuple[bool, ...]  # [T], whether the mask of a frame belongs into the zip

    def given(self):
        """The masks in which objects appear first: {frame index: ids uint8 [H,W]}."""


def write(path: Path, masks: Path, videos: Sequence[Video]) -> int:
    """Check the PNGs in masks/<video>, and pack them into a zip.  Returns their number.

    The same PNGs give the same bytes.  Raises UserError, and writes no zip, for a PNG that is missing, wrong, or not of
    a frame of the videos.
    """
    found = sorted(f"{p.parent.name}/{p.name}" for p in masks.glob("[!.]*/[!.]*"))
    wanted = {name: wrong for video in videos for name, wrong in _checked(masks, video)}
    strange = {name: "is the mask of no frame that is to be written" for name in found if name not in wanted}
    for name, wrong in (wanted | strange).items():
        if wrong:
            cure = f"remove the folder of that video from {masks}, and the same command makes its masks anew"
            raise UserError(f"{path}: not made. {TOP}/{name}: {wrong}; {cure}")
    with replacing(path) as part, ZipFile(part, "w") as archive:
        for name in found:
            entry = ZipInfo(f"{TOP}/{name}")  # its date is always 1980
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # a Unix file that everyone may read
            archive.writestr(entry, (masks / name).read_bytes())
    return len(found)


def _checked(masks, video):
    """(name, why its PNG is wrong or None) of every frame of a video that is to be written."""
    with Image.open(video.images[0]) as image:
        size = image.size
    given, allowed = video.given(), {0}  # allowed: ids that are given up to a frame
    for t, (frame, written) in enumerate(zip(video.frame_names, video.written, strict=True)):
        if t in given:
            allowed |= ids_in(given[t])
        if written:
            name = f"{video.name}/{frame}.png"
            yield name, _wrong(masks / name, size, allowed)


def _wrong(path, size, allowed):
    """Why a PNG is wrong, or None.  size: (W, H) of its frame; allowed: ids that it may hold."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            ids = np.array(image)
            palette = image.getpalette() if image.mode == "P" else None
    except FileNotFoundError:
        return "missing"
    except (OSError, SyntaxError):
        return "damaged, or no PNG"
    if palette != PALETTE.ravel().tolist():
        return "not indexed with the DAVIS palette"
    if ids.shape != size[::-1]:
        return f"{ids.shape[1]}x{ids.shape[0]} pixels, its frame has {size[0]}x{size[1]}"
    strange = sorted(ids_in(ids) - allowed)
    return f"holds id {strange[0]}, which is not given up to this frame" if strange else None
