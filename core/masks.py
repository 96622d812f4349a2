"""Masks that people draw: ids from pictures, and masks from boxes.

Legend: H W pixels.  ids: uint8 [H,W], 0 = background, 1-254 = objects.
"""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from core.errors import UserError
from core.palette import MASKS, PALETTE, VOID, flat, ids_in

Colour = tuple[int, int, int]
#: formats of masks that people draw
FORMATS = (*MASKS, "WEBP", "PPM", "TGA")
#: colours that are nearer than this in RGB count as one: compression turns one colour into many
NEAR = 32
#: a picture with flat areas of more colours than this is no mask
COLOURS = 4096
#: by how much the values in a flat area of a compressed picture differ
SLACK = 8
#: the long side at which GrabCut works on a box and its surroundings; it then takes a second at most
GRABCUT_PX = 400
#: parts of a found object that are smaller than this share of the largest part are dropped
PART = 0.1


def read(path: str | Path, colours: dict[Colour, int] | None = None) -> np.ndarray:
    """The objects in a mask, a picture of one of FORMATS -> ids [H,W], without void (255).

    Palette indices and grey values are the ids, but a mask of black and white alone, with or without soft edges, is
    object 1.  In RGB pictures, and in palettes whose index 0 is neither black nor along the border, each colour is an
    object, and so is white beside greys on a transparent ground.  Black and transparent pixels are the background;
    where there are none, white is.  Colours of the DAVIS palette have their DAVIS ids; other colours are numbered from
    1 in the order of their first pixels, row by row.  Pixels of soft edges take the nearest colour.
    colours: {RGB: id} of the masks read before.  The colours of this mask are added, so that a colour stays one object.

    Raises UserError for a file that is missing or damaged, and for a picture that is no mask.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such mask") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as a mask ({error}); save it as PNG") from None
    known = {} if colours is None else colours
    numbers = _numbers(image, known)
    if numbers is not None:
        return _of_numbers(path, numbers, NEAR if image.format == "JPEG" else 0)
    return _of_colours(path, np.array(image.convert("RGBA")), known)


def _numbers(image, known):
    """The pixel values [H,W] where these are the ids, or None where the colours decide.  known: as in `_of_colours`."""
    pixels = np.array(image)
    if image.mode == "P":
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        black = (image.getpalette("RGB") or [0])[:3] == [0, 0, 0]
        return pixels if black or np.bincount(border).argmax() == 0 else None
    if image.mode in ("LA", "RGB", "RGBA"):
        pixels = np.array(image.convert("RGBA"))
        there = pixels[..., 3] >= 128
        if (pixels[..., :1] != pixels[..., :3])[there].any():
            return None
        values = np.unique(pixels[there, 0]).tolist()
        drawn = not there.all() and VOID in values and len(values) > 1  # white is an object among greys, not void
        if drawn or any((value,) * 3 in known for value in values):
            return None
        return np.where(there, pixels[..., 0], np.uint8(0))
    return pixels if pixels.ndim == 2 else None


def _of_numbers(path, numbers, near):
    """ids from pixel values.  Values that differ from black (0) or white (255) by `near` at most count as these."""
    top = numbers.max(initial=0)
    if top > VOID and set(np.unique(numbers)) <= {0, top}:
        return (numbers > 0).astype(np.uint8)
    if top > VOID or numbers.min(initial=0) < 0:
        raise UserError(f"{path}: holds values up to {top}; ids are 0 to 254, so save the mask with 8 bits")
    ids = numbers.astype(np.uint8)
    whole = ids_in(ids[flat(ids)][None]) if flat(ids).any() else ids_in(ids)
    if max(whole) >= VOID - near and all(value <= near or value >= VOID - near for value in whole):
        return (ids > 127).astype(np.uint8)
    return np.where(ids == VOID, np.uint8(0), ids)


def _of_colours(path, pixels, known):
    """ids from RGBA pixels [H,W,4].  known: {RGB: id} of earlier masks, see `read`."""
    clear = pixels[..., 3] < 128
    rgb = np.where(clear[..., None], np.uint8(0), pixels[..., :3])
    codes = rgb.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])
    there, index, count = np.unique(codes, return_inverse=True, return_counts=True)
    inner = np.bincount(index.ravel(), weights=flat(rgb, SLACK).ravel(), minlength=len(there))
    candidates = np.flatnonzero(inner) if inner.any() else np.arange(len(there))
    if len(candidates) > COLOURS:
        raise UserError(f"{path}: holds {len(there)} colours as a photograph does; a mask has one colour per object")
    colours = np.stack([there >> 16, there >> 8 & 255, there & 255], 1)
    main = []  # indices of the colours that are objects or background, the most frequent first
    for i in candidates[np.argsort(-count[candidates], kind="stable")]:
        if all(np.linalg.norm(colours[i] - colours[j]) >= NEAR for j in main):
            main.append(i)
    ground = next((g for g in (0, 255) for i in main if np.linalg.norm(colours[i] - g) < NEAR), None)
    if ground is None:
        raise UserError(f"{path}: has no background; paint it black, or leave it transparent")
    if len(main) > VOID:
        raise UserError(f"{path}: holds {len(main)} colours; a mask has one per object, 254 at most, and hard edges")
    nearest = np.array([np.linalg.norm(colours[main] - colour, axis=1).argmin() for colour in colours])
    drawn = nearest[index].reshape(clear.shape)  # the place of every pixel's colour in `main`
    places, first = np.unique(drawn, return_index=True)
    objects = [p for _, p in sorted(zip(first, places)) if np.linalg.norm(colours[main[p]] - ground) >= NEAR]
    numbered = np.zeros(len(main), np.uint8)
    wanted = [tuple(colours[main[place]].tolist()) for place in objects]
    for place, id in zip(objects, _numbered(path, wanted, known)):
        numbered[place] = id
    return numbered[drawn]


def _numbered(path, wanted: list[Colour], known: dict[Colour, int]) -> list[int]:
    """The ids of the wanted colours; new colours are added to `known`.  Void is background among the DAVIS colours."""
    davis = {tuple(colour): id for id, colour in enumerate(PALETTE.tolist())}
    davis[tuple(PALETTE[VOID].tolist())] = 0
    like = lambda one, other: np.linalg.norm(np.subtract(one, other)) < NEAR
    joins = lambda colour, id: all(like(old, colour) for old, there in known.items() if there == id)
    if all(c in davis and known.get(c, davis[c]) == davis[c] and joins(c, davis[c]) for c in wanted):
        known.update((colour, davis[colour]) for colour in wanted)
    for colour in wanted:
        same = [old for old in known if like(old, colour)]
        free = [] if same else [id for id in range(1, VOID) if id not in known.values()]
        if not (same or free):
            raise UserError(f"{path}: with the masks before it, holds more than 254 colours; each is an object")
        known[colour] = known[same[0]] if same else free[0]
    return [known[colour] for colour in wanted]


def grabcut(frame: np.ndarray, boxes: Mapping[int, tuple[int, int, int, int]]) -> np.ndarray:
    """A mask of the objects in boxes, by OpenCV's GrabCut.  Pixels in two boxes belong to the object of the smaller.

    frame: uint8 RGB [H,W,3].  boxes: {id: (x, y, width, height)} in pixels.  Returns ids [H,W].  Raises UserError for a
    box that is empty, outside the frame or the whole of it, and where no object is found.
    """
    ids = np.zeros(frame.shape[:2], np.uint8)
    for id, box in sorted(boxes.items(), key=lambda item: -item[1][2] * item[1][3]):
        window, found = _cut(frame, box, f"box {','.join(map(str, box))} of object {id}")
        ids[window][found] = id
    return ids


def _cut(frame, box, name):
    """(the window of the frame around a box, the bool mask of the object in this window)."""
    (H, W), (x, y, width, height) = frame.shape[:2], box
    if width < 1 or height < 1 or x < 0 or y < 0 or x + width > W or y + height > H:
        raise UserError(f"{name}: must lie in the frame of {W}x{H} pixels and be x,y,width,height from its upper left")
    if width == W and height == H:
        raise UserError(f"{name}: is the whole frame; GrabCut needs background around the object")
    margin = max(8, max(width, height) // 2)
    top, left = max(0, y - margin), max(0, x - margin)
    window = np.s_[top : min(H, y + height + margin), left : min(W, x + width + margin)]
    part = cv2.cvtColor(frame[window], cv2.COLOR_RGB2BGR)
    scale = min(1.0, GRABCUT_PX / max(part.shape[:2]))
    size = [max(2, round(side * scale)) for side in part.shape[1::-1]]
    small = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    marks = np.full(part.shape[:2], cv2.GC_BGD, np.uint8)
    inside = marks[y - top : y - top + height, x - left : x - left + width]
    inside[:] = cv2.GC_PR_FGD
    # The middle of a box counts as object: otherwise GrabCut misses many objects that look like their surroundings.
    inside[height * 2 // 5 : -(-height * 3 // 5), width * 2 // 5 : -(-width * 3 // 5)] = cv2.GC_FGD
    marks = cv2.resize(marks, size, interpolation=cv2.INTER_NEAREST)
    found = np.zeros_like(marks)
    if {cv2.GC_BGD, cv2.GC_PR_FGD} <= ids_in(marks):
        cv2.setRNGSeed(0)  # the same mask every time
        cv2.grabCut(small, marks, None, np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_MASK)
        found = np.isin(marks, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
        found = cv2.morphologyEx(found, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        _, parts, stats, _ = cv2.connectedComponentsWithStats(found)
        px = stats[1:, cv2.CC_STAT_AREA]
        found = np.isin(parts, 1 + np.flatnonzero(px >= PART * px.max(initial=0))).astype(np.uint8)
    if not found.any():
        raise UserError(f"{name}: GrabCut finds no object in it; draw the box closer, or draw a mask")
    return window, cv2.resize(found, part.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
