"""Masks as pictures: indexed PNGs with the DAVIS palette, and overlays to look at.

Legend: H W pixels.  ids: uint8 [H,W], 0 = background, any other number = an object.
"""

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from core.atomic import replacing
from core.errors import UserError


def palette():
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


def write_indexed(path, ids):
    """Write ids, uint8 [H,W], as an indexed PNG with the DAVIS palette; atomic."""
    assert ids.dtype == np.uint8 and ids.ndim == 2, (ids.dtype, ids.shape)
    image = Image.fromarray(ids)
    image.putpalette(PALETTE.tobytes())
    with replacing(path) as part:
        image.save(part, format="PNG")


def write_picture(path, picture):
    """Write uint8 RGB [H,W,3] as a JPEG; atomic."""
    with replacing(path) as part:
        Image.fromarray(picture).save(part, format="JPEG", quality=90)


def read_ids(path):
    """The ids of an indexed or grey picture -> uint8 [H,W].

    Raises UserError naming the file where it is missing, damaged, or holds colours instead of ids.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            if mode in ("P", "L", "1"):
                return np.array(image, dtype=np.uint8)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such mask") from None
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise UserError(f"{path}: cannot be read as a mask ({error}); restore the file") from error
    raise UserError(
        f"{path}: a picture of mode {mode}; a mask is an indexed (P) or grey 8-bit (L) PNG whose pixel "
        "values are the object ids; colours cannot be turned into ids without guessing"
    )


def ids_in(ids):
    """The numbers in a mask, uint8 [H,W], 0 among them, as a set."""
    return set(np.flatnonzero(cv2.calcHist([ids], [0], None, [256], [0, 256])).tolist())


def overlay(frame, ids, opacity=0.5):
    """The frame with every object tinted in its colour and outlined.

    frame uint8 RGB [H,W,3], ids uint8 [H,W] -> uint8 RGB [H,W,3].
    """
    # OpenCV's look-up and masked copy: an eighth of the time of numpy's.
    tinted = cv2.addWeighted(frame, 1 - opacity, cv2.applyColorMap(ids, PALETTE[:, None]), opacity, 0)
    picture = cv2.copyTo(tinted, ids, frame.copy())
    width = max(1, round(min(ids.shape) / 400))
    around = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    edge = cv2.dilate(ids, around) != ids
    picture[edge] = 255
    return picture
