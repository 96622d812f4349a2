"""Painted parts that animals and plants are put together from, how they move, and how they are drawn over a frame.

A creature lies in its own plane, u forward and v to its right, its half length about 1.  A part's canvas has PX
pixels a unit and the part's pivot in its middle.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from datasets.scenes.texture import lit, mix, smoothstep

PX = 96


@dataclass(frozen=True)
class Part:
    """A painted piece: maps, premultiplied RGBA [h,w,4] and height [h,w] in its pixels, and its motion.

    half (u,v): of the canvas, in units.  pivot (u,v): in the animal's plane.  swing: amplitude of its turning, rad.
    wave: amplitude in units of the wave that runs to its tail.  phase: its lead over the animal's clock, rad.
    """

    maps: tuple[np.ndarray, np.ndarray]
    half: tuple[float, float]
    pivot: tuple[float, float] = (0.0, 0.0)
    swing: float = 0.0
    wave: float = 0.0
    phase: float = 0.0


@dataclass(frozen=True)
class Creature:
    """Parts from the lowest to the topmost.  size: px of a unit in a frame 256 px high.

    lift: height over the ground in px (its shadow's distance).  gloss: strength of the highlight.  beat: rad of
    its clock a frame.
    """

    parts: list[Part]
    size: float
    lift: int
    gloss: float = 0.15
    beat: float = 0.0


@dataclass(frozen=True)
class Pose:
    """Where a creature lies: centre (x, y) px, heading in rad (0 = +x), scale in px a unit, clock in rad."""

    x: float
    y: float
    heading: float
    scale: float
    clock: float


def plane(half_u, half_v):
    """Coordinates u, v [h,w] of a canvas, v downwards."""
    u, v = ((np.arange(round(2 * half * PX), dtype=np.float32) + 0.5) / PX - half for half in (half_u, half_v))
    return np.meshgrid(u, v)


def paint_part(inside, skin, roundness=1.0, **motion):
    """A part from its shape and its colours; where it is painted darker it lies a little deeper.

    inside [h,w]: about the distance to the outline in units, positive within.  motion: further fields of Part.
    """
    alpha = np.clip(inside * PX + 0.5, 0, 1).astype(np.float32)
    depth = cv2.distanceTransform((alpha > 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    depth = cv2.GaussianBlur(depth, (0, 0), 2.5)
    rise = np.sqrt(np.clip(1 - (1 - depth / depth.max()) ** 2, 0, 1)) * depth.max() * 0.6 * roundness
    height = np.float32(rise + 3 * cv2.GaussianBlur(skin.mean(-1), (0, 0), 1.0))
    skin = skin * (alpha * (0.72 + 0.28 * smoothstep(depth, 0.0, 5.0)))[..., None]
    half = tuple(n / 2 / PX for n in alpha.shape[::-1])
    return Part((np.dstack([skin, alpha]).astype(np.float32), height), half, **motion)


def ellipse(u, v, cu, ru, rv, power=2.0):
    """inside of an ellipse around (cu, 0); power > 2 makes it squarer."""
    reach = (np.abs((u - cu) / ru) ** power + np.abs(v / rv) ** power) ** (1 / power)
    return (1 - reach) * np.minimum(ru, rv)


def spindle(u, v, *stations):
    """inside of a long body whose half width at u is given by stations (u, width)."""
    width = np.interp(u[:1], *zip(*stations)).astype(np.float32)
    return cv2.GaussianBlur(width, (0, 0), 0.03 * PX) - np.abs(v)


def eyes(skin, u, v, forward, apart, radius):
    """The skin with two black eyes."""
    away = np.hypot(u - forward, np.abs(v) - apart)
    return mix(skin, (0.02, 0.02, 0.03), 1 - smoothstep(away, radius * 0.8, radius * 1.1))


def draw(creature, pose, shape):
    """A creature over a frame of this shape: (window, layer), the layer premultiplied RGBA [h,w,4], lit.

    window: the frame's rows and columns that the creature and its shadow can reach, at least one of each.
    """
    reach = max(np.hypot(*part.pivot) + np.hypot(*part.half) for part in creature.parts)
    reach = reach * pose.scale + 2 * creature.lift + 4
    first, stop = (np.int32([pose.y + side, pose.x + side]) for side in (-reach, reach))
    first = np.clip(first, 0, np.array(shape) - 1)  # never empty: OpenCV's functions refuse that
    stop = np.clip(stop, first + 1, shape)
    y, x = (np.arange(*ends, dtype=np.float32) for ends in zip(first, stop))
    x, y = (x[None] - pose.x) / pose.scale, (y[:, None] - pose.y) / pose.scale
    cos, sin = np.cos(pose.heading), np.sin(pose.heading)
    u, v = cos * x + sin * y, cos * y - sin * x
    layer, height = np.zeros((*u.shape, 4), np.float32), np.zeros(u.shape, np.float32)
    for part in creature.parts:
        rgba, rise = _draw_part(part, pose, u, v)
        alpha = rgba[..., 3]
        layer = layer * (1 - alpha[..., None]) + rgba
        height = height * (1 - alpha) + rise * alpha
    alpha = layer[..., 3:]
    colour = np.minimum(lit(layer[..., :3], height, creature.gloss * alpha[..., 0]), alpha)
    return tuple(map(slice, first, stop)), np.concatenate([colour, alpha], -1)


def _draw_part(part, pose, u, v):
    """The part where the plane's coordinates are u, v [h,w]: premultiplied RGBA [h,w,4] and height [h,w], px."""
    phase = pose.clock + part.phase
    turn = part.swing * np.sin(phase)
    u, v = u - part.pivot[0], v - part.pivot[1]
    u, v = np.cos(turn) * u + np.sin(turn) * v, np.cos(turn) * v - np.sin(turn) * u
    v = v - part.wave * np.clip(0.5 - 0.5 * u, 0, 1.2) ** 1.5 * np.sin(3.4 * u + phase)
    shrink = pose.scale / PX  # the canvas first, by its area, so that nothing flickers
    rgba, height = (cv2.resize(m, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA) for m in part.maps)
    rows, cols = height.shape
    to_x = np.float32((u / part.half[0] + 1) * (cols / 2) - 0.5)
    to_y = np.float32((v / part.half[1] + 1) * (rows / 2) - 0.5)
    rgba, height = (cv2.remap(m, to_x, to_y, cv2.INTER_LINEAR) for m in (rgba, height))
    return rgba, height * shrink


def lay(frame, window, layer, lift):
    """Lay a drawn layer over the frame [h,w,3], in place, with its shadow on the ground `lift` px below it."""
    alpha = layer[..., 3]
    away = np.float32([[1, 0, 0.8 * lift], [0, 1, lift]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, away, alpha.shape[::-1]), (0, 0), 0.8 + 0.3 * lift)
    under = frame[window] * (1 - 0.5 * shadow[..., None])
    frame[window] = under * (1 - layer[..., 3:]) + layer[..., :3]
