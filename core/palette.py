"""Masks as pictures: indexed PNGs with the DAVIS palette, and overlays to look at.

Legend: H W pixels.  ids: uint8 [H,W], 0 = background, 1-254 = objects, 255 = void: no object, not scored.
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from core.atomic import replacing
from core.errors import UserError


def palette() -> np.ndarray:
    """The colours of ids 0..255, uint8 RGB [256,3], as DAVIS and PASCAL VOC have them.

    The rule: the bits of an id, lowest first, go in turn to red, green and blue, filling each from its
    highest bit down.
    """
    ids = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= ((ids >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return colours


PALETTE = palette()
VOID = 255
#: formats of masks; Pillow opens no other format, since some start programs
MASKS = ("PNG", "JPEG", "BMP", "GIF", "TIFF")
#: objects smaller than this are specks
SPECK_PX = 16
#: an object that covers more than this share of the picture's border is probably the background
BACKGROUND_SHARE = 0.9

# Colours far in CIELAB from each other and from skin, plants, sky, water, earth, roads and snow, the first the most.
_DISTINCT = (
    "0000ff00ff00ff33ccff0000ffff0000ffccff99000066ffcc3366cc99ff"
    "990000ccff99cc00ff66339900990033ccccff99cc99cc00cc66ff996699"
    "ffcc6699660099cc993366cc6600cc66ff66ffcc00999900ff6666009966"
    "ff660099ff00ff996666cc6699006699333300ff99990099ff3399ff0066"
)
#: the colours of ids 0..255 in overlays, uint8 RGB [256,3]; those of ids 1..40 come again
OVERLAY_PALETTE = np.zeros((256, 3), np.uint8)
OVERLAY_PALETTE[1:] = np.resize(np.frombuffer(bytes.fromhex(_DISTINCT), np.uint8).reshape(-1, 3), (255, 3))


def write_indexed(path: str | Path, ids: np.ndarray) -> None:
    """Write ids, uint8 [H,W], as an indexed PNG with the DAVIS palette; atomic."""
    assert ids.dtype == np.uint8 and ids.ndim == 2, (ids.dtype, ids.shape)
    image = Image.fromarray(ids)
    image.putpalette(PALETTE.tobytes())
    with replacing(path) as part:
        image.save(part, format="PNG")


def write_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write uint8 RGB [H,W,3] as a JPEG; atomic."""
    with replacing(path) as part:
        Image.fromarray(picture).save(part, format="JPEG", quality=90)


def read_ids(path: str | Path) -> np.ndarray:
    """The ids of an indexed or grey picture -> uint8 [H,W].

    Raises UserError naming the file where it is missing, damaged, or holds colours instead of ids.
    """
    try:
        with Image.open(path, formats=MASKS) as image:
            mode = image.mode
            if mode in ("P", "L", "1"):
                return np.array(image, dtype=np.uint8)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such mask; restore the file") from None
    except Exception as error:  # on damaged files Pillow raises errors of any kind
        raise UserError(f"{path}: cannot be read as a mask ({error}); restore the file") from error
    raise UserError(
        f"{path}: a picture of mode {mode}; a mask is an indexed (P) or grey 8-bit (L) PNG whose pixel values are the "
        "object ids; colours and deeper greys cannot be turned into ids without guessing"
    )


def ids_in(ids: np.ndarray) -> set[int]:
    """The ids that occur in a mask, uint8 [H,W], 0 and 255 included."""
    return set(np.flatnonzero(cv2.calcHist([ids], [0], None, [256], [0, 256])).tolist())


def flat(picture: np.ndarray, slack: int = 0) -> np.ndarray:
    """Whether pixels differ from their eight neighbours by `slack` at most: bool [H,W].  Smoothed edges never do.

    picture: uint8 [H,W] or [H,W,3].
    """
    around = np.ones((3, 3), np.uint8)
    same = cv2.dilate(picture, around) - cv2.erode(picture, around) <= slack
    return same if picture.ndim == 2 else np.logical_and.reduce(same, axis=2)


def doubts(path: Path, ids: np.ndarray) -> list[str]:
    """Sentences that say why a mask looks wrong; none for a sound mask.

    path: the mask's file, of which only the format is read.  ids: uint8 [H,W], without void.
    """
    found = []
    with Image.open(path) as image:
        if image.format == "JPEG":
            found.append("a JPEG, whose compression changes ids; save masks as PNG")
    objects = sorted(ids_in(ids) - {0})
    inner = np.where(flat(ids), ids, 0)
    px, inner_px = (np.bincount(values.ravel(), minlength=256) for values in (ids, inner))
    slivers = [id for id in objects if px[id] < SPECK_PX or not inner_px[id]]
    if len(slivers) >= max(3, len(objects) / 2):
        found.append(
            "most of its objects are specks or thinner than 3 pixels, as anti-aliased, resized or compressed edges "
            "leave them; draw with hard edges, resize with nearest neighbour, or make one object of a soft mask: "
            "values above 127 become 1, all others 0"
        )
    border = np.concatenate([ids[0], ids[-1], ids[:, 0], ids[:, -1]])
    share = np.bincount(border, minlength=256) / border.size
    found += [
        f"object {id} covers the picture's border as a background does; the background must have id 0 (a picture "
        "that was converted from RGB to indexed colours has ids by chance)"
        for id in objects
        if share[id] > BACKGROUND_SHARE
    ]
    return found


def overlay(frame: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The frame with every object tinted in its colour of OVERLAY_PALETTE and outlined.

    frame uint8 RGB [H,W,3], ids uint8 [H,W] -> uint8 RGB [H,W,3].
    """
    # OpenCV's look-up and masked copy take an eighth of numpy's time.
    tinted = cv2.addWeighted(frame, 0.5, cv2.applyColorMap(ids, OVERLAY_PALETTE[:, None]), 0.5, 0)
    picture = cv2.copyTo(tinted, ids, frame.copy())
    width = max(1, round(min(ids.shape) / 400))
    around = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    edge = cv2.dilate(ids, around) != ids
    picture[edge] = 255
    return picture


def fitted(picture: np.ndarray, side: int) -> np.ndarray:
    """The picture, made smaller where its longer side exceeds `side` pixels."""
    scale = min(1, side / max(picture.shape[:2]))
    size = [max(1, round(length * scale)) for length in picture.shape[1::-1]]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
