"""Drawing creatures over a frame: the warped, lit and anti-aliased layer, its shadow, its motion blur."""

from dataclasses import dataclass

import cv2
import numpy as np

from datasets.scenes.parts import WARPS

#: direction of the light, towards it: from the upper left
LIGHT = np.array([-0.45, -0.55, 0.70], np.float32)
SUPERSAMPLE = 2
#: the longest streak of a motion blur, px
LONGEST_BLUR = 6.0


@dataclass(frozen=True)
class Pose:
    """Where a creature lies in the frame: centre (x, y) px, heading in rad (0 = +x), px a unit, clock in rad."""

    x: float
    y: float
    heading: float
    scale: float
    clock: float


@dataclass(frozen=True)
class Box:
    """Rows top..bottom-1 and columns left..right-1 of a frame."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def empty(self):
        return self.bottom <= self.top or self.right <= self.left

    def within(self, other):
        """The part of the box that lies in the other one."""
        rows = max(self.top, other.top), min(self.bottom, other.bottom)
        return Box(*rows, max(self.left, other.left), min(self.right, other.right))

    @property
    def slices(self):
        return slice(self.top, self.bottom), slice(self.left, self.right)


def _box(x, y, reach, height, width):
    return Box(
        max(0, int(y - reach)),
        min(height, int(y + reach) + 1),
        max(0, int(x - reach)),
        min(width, int(x + reach) + 1),
    )


def _draw_part(part, pose, gloss, box, supersample):
    """The part over the box: premultiplied RGBA [supersample * h, supersample * w, 4]."""
    cos, sin = np.cos(pose.heading), np.sin(pose.heading)
    x = (
        (np.arange((box.right - box.left) * supersample, dtype=np.float32) + 0.5) / supersample + box.left - pose.x
    ) / pose.scale
    y = (
        (np.arange((box.bottom - box.top) * supersample, dtype=np.float32) + 0.5) / supersample + box.top - pose.y
    ) / pose.scale
    turn = part.turn + part.swing * np.sin(pose.clock + part.phase)
    u = (cos * x[None] + sin * y[:, None]) - part.pivot[0]
    v = (cos * y[:, None] - sin * x[None]) - part.pivot[1]
    if turn:
        u, v = np.cos(turn) * u + np.sin(turn) * v, np.cos(turn) * v - np.sin(turn) * u
    if part.flap:
        v = v / (1 - part.flap * (0.5 + 0.5 * np.sin(pose.clock)))
    warp, amplitude = part.bend
    u, v = WARPS[warp](u, v, pose.clock + part.phase, np.float32(amplitude))
    rows, cols = part.rgba.shape[:2]
    to_x = ((u / part.half[0] + 1) * (cols / 2) - 0.5).astype(np.float32)
    to_y = ((v / part.half[1] + 1) * (rows / 2) - 0.5).astype(np.float32)
    return cv2.remap(
        _lit(part, pose.heading + turn, gloss), to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
    )


def _lit(part, angle, gloss):
    """The part's canvas under the scene's light, which stays where it is when the animal turns; premultiplied."""
    cos, sin = np.cos(angle), np.sin(angle)
    light = np.array([cos * LIGHT[0] + sin * LIGHT[1], cos * LIGHT[1] - sin * LIGHT[0], LIGHT[2]], np.float32)
    facing = part.relief @ light
    half_way = light + (0, 0, 1)
    shine = np.clip(part.relief @ (half_way / np.linalg.norm(half_way)).astype(np.float32), 0, 1) ** 2
    shine = (shine * shine) ** 2  # to the 8th power
    shine = shine * shine * shine
    alpha = part.rgba[..., 3:]
    colour = part.rgba[..., :3] * (0.42 + 0.85 * np.clip(facing, 0, None))[..., None] + gloss * shine[..., None]
    return np.concatenate([np.clip(colour, 0, 1) * alpha, alpha], -1)


def draw(creature, pose, shape, margin=0, supersample=SUPERSAMPLE):
    """A creature over a frame: (box, premultiplied RGBA [h,w,4] of the box), anti-aliased by supersampling.

    margin: px that the box is larger than the creature, for its shadow and blur.  An empty box has no layer.
    """
    reach = pose.scale * max(np.hypot(*part.pivot) + np.hypot(*part.half) * 1.05 for part in creature.parts)
    reach = min(reach, 1.7 * pose.scale)
    whole, wide = _box(pose.x, pose.y, reach, *shape), _box(pose.x, pose.y, reach + margin, *shape)
    if whole.empty:
        return whole, None
    layer = np.zeros(
        ((whole.bottom - whole.top) * supersample, (whole.right - whole.left) * supersample, 4), np.float32
    )
    cos, sin = np.cos(pose.heading), np.sin(pose.heading)
    for part in creature.parts:
        x = pose.x + pose.scale * (cos * part.pivot[0] - sin * part.pivot[1])
        y = pose.y + pose.scale * (sin * part.pivot[0] + cos * part.pivot[1])
        own = _box(x, y, pose.scale * np.hypot(*part.half), *shape)
        own = own.within(whole)
        if own.empty:
            continue
        top, left = (own.top - whole.top) * supersample, (own.left - whole.left) * supersample
        piece = _draw_part(part, pose, creature.gloss, own, supersample)
        under = layer[top : top + piece.shape[0], left : left + piece.shape[1]]
        under *= 1 - piece[..., 3:]
        under += piece
    size = (whole.right - whole.left, whole.bottom - whole.top)
    layer = cv2.resize(layer, size, interpolation=cv2.INTER_AREA)
    rim = (whole.top - wide.top, wide.bottom - whole.bottom, whole.left - wide.left, wide.right - whole.right)
    return wide, cv2.copyMakeBorder(layer, *rim, cv2.BORDER_CONSTANT)


def streak(dx, dy):
    """Kernel of a motion blur over (dx, dy) px, or None where it would not be seen."""
    length = float(np.hypot(dx, dy))
    if length < 1.0:
        return None
    dx, dy = dx * min(1, LONGEST_BLUR / length), dy * min(1, LONGEST_BLUR / length)
    length = min(length, LONGEST_BLUR)
    half = int(np.ceil(length / 2)) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    for t in np.linspace(-0.5, 0.5, 4 * half + 1):
        x, y = half + t * dx, half + t * dy
        left, top = int(x), int(y)
        for row, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
            for col, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
                kernel[row, col] += share_y * share_x
    return kernel / kernel.sum()


def cast_shadow(frame, box, alpha, lift, strength):
    """Darkens the frame under a thing that is `lift` px over it, away from the light, in place."""
    shift = np.float32([[1, 0, 0.8 * lift], [0, 1, 1.0 * lift]])
    cast = cv2.warpAffine(alpha, shift, alpha.shape[::-1], flags=cv2.INTER_LINEAR)
    soft = cv2.GaussianBlur(cast, (0, 0), 0.8 + 0.3 * lift)
    frame[box.slices] *= (1 - strength * soft)[..., None]


def lay(frame, box, layer):
    """Premultiplied RGBA over the frame, in place."""
    part = frame[box.slices]
    part *= 1 - layer[..., 3:]
    part += layer[..., :3]
