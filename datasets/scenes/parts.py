"""Painted pieces that animals and plants are put together from, and how each piece moves.

A creature lies in its own plane, u forward and v to its right, its half length about 1.  A part's canvas covers
|u| <= half_u, |v| <= half_v around the part's pivot at PX pixels a unit.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from datasets.scenes.texture import fractal, mix, normals, smoothstep

PX = 96


@dataclass(frozen=True)
class Part:
    """A painted piece: rgba [h,w,4] (colour not premultiplied), relief normals [h,w,3], and its motion.

    pivot (u,v) in the animal's plane.  turn: resting angle, rad.  swing: amplitude of its turning, rad.
    flap: share by which its v extent shrinks at most.  bend: (warp, amplitude), warp one of WARPS.
    phase: its lead over the animal's clock, rad.
    """

    rgba: np.ndarray
    relief: np.ndarray
    half: tuple[float, float]
    pivot: tuple[float, float] = (0.0, 0.0)
    turn: float = 0.0
    swing: float = 0.0
    flap: float = 0.0
    bend: tuple[str, float] = ("none", 0.0)
    phase: float = 0.0


@dataclass(frozen=True)
class Creature:
    """Parts from the lowest to the topmost.  size: px of a unit in a frame 256 px high.

    speed: about the share of the frame's width that it crosses in a clip.  beat: rad of its clock a frame.
    lift: height over the ground in px (its shadow's distance).  sideways: it moves along v.  gloss: strength of
    the highlight.
    """

    parts: list[Part] = field(repr=False)
    size: float
    speed: float
    beat: float
    lift: float
    sideways: bool = False
    gloss: float = 0.15


def _swim(u, v, phase, amplitude):
    return u, v - amplitude * np.clip(0.5 - 0.5 * u, 0, 1.2) ** 1.5 * np.sin(3.4 * u + phase)


def _slither(u, v, phase, amplitude):
    return u, v - amplitude * (0.75 - 0.35 * u) * np.sin(4.4 * u + phase)


def _wings(u, v, phase, amplitude):
    lift = np.sin(phase - 1.6 * np.abs(v))
    return u + amplitude * 0.6 * v * v * lift, v * (1 + amplitude * np.abs(v) * (1 + lift))


def _ripple(u, v, phase, amplitude):
    angle = np.arctan2(v, u)
    grow = 1 + amplitude * (
        np.sin(3 * angle + phase) + 0.6 * np.sin(2 * angle - 1.3 * phase) + 0.3 * np.sin(7 * angle + 2 * phase)
    )
    return u * grow, v * grow


def _curl(u, v, phase, amplitude):
    turn = amplitude * np.hypot(u, v) ** 2 * np.sin(phase + 2 * np.arctan2(v, u))
    return u - v * turn, v + u * turn


WARPS = {
    "none": lambda u, v, phase, amplitude: (u, v),
    "swim": _swim,
    "slither": _slither,
    "wings": _wings,
    "ripple": _ripple,
    "curl": _curl,
}


def plane(half_u, half_v):
    """Coordinates u, v [h,w] of a canvas, v downwards."""
    w, h = (2 * round(half * PX / 2) * 2 for half in (half_u, half_v))
    u = (np.arange(w, dtype=np.float32) + 0.5) / w * 2 - 1
    v = (np.arange(h, dtype=np.float32) + 0.5) / h * 2 - 1
    return np.meshgrid(u * half_u, v * half_v)


def paint_part(inside, skin, bump, half, roundness=1.0, **motion):
    """A part from its shape: inside [h,w] is about the distance to its outline in units, positive within."""
    alpha = np.clip(inside * PX + 0.5, 0, 1).astype(np.float32)
    solid = cv2.copyMakeBorder((alpha > 0.5).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    depth = cv2.distanceTransform(solid, cv2.DIST_L2, 5)[1:-1, 1:-1]
    depth = cv2.GaussianBlur(depth, (0, 0), 2.5)
    rise = np.sqrt(np.clip(1 - (1 - depth / (depth.max() + 1e-6)) ** 2, 0, 1)) * depth.max() * 0.6 * roundness
    rim = smoothstep(depth, 0.0, 5.0)
    skin = skin * (0.72 + 0.28 * rim)[..., None]
    rgba = np.dstack([skin, alpha]).astype(np.float32)
    return Part(rgba, normals((rise + 5 * bump).astype(np.float32), 1.0), half, **motion)


def dots(skin, u, v, places, radius, colour):
    """Paints round spots (eyes, mostly) with a small highlight."""
    for pu, pv in places:
        away = np.hypot(u - pu, v - pv)
        skin = mix(skin, colour, 1 - smoothstep(away, radius * 0.8, radius * 1.1))
        skin = mix(
            skin,
            (1, 1, 1),
            0.8 * (1 - smoothstep(np.hypot(u - pu - radius * 0.3, v - pv + radius * 0.3), 0, radius * 0.5)),
        )
    return skin


def ellipse(u, v, cu, cv_, ru, rv, power=2.0):
    reach = (np.abs((u - cu) / ru) ** power + np.abs((v - cv_) / rv) ** power) ** (1 / power)
    return (1 - reach) * np.minimum(ru, rv)


def profile(u, stations, widths):
    line = np.interp(u[0], stations, widths).astype(np.float32)
    return cv2.GaussianBlur(line[None], (0, 0), 0.03 * PX)[0][None]


def fin(u, v, length, width, sweep):
    """A rounded blade that begins at the origin and runs along +v, swept towards -u."""
    t = np.clip(v / length, 0, 1)
    return np.minimum(
        width * np.sqrt(np.clip(1.02 - t, 0, 1)) * (0.55 + 0.9 * t * (1 - t)) - np.abs(u + sweep * t * t), v + 0.06
    )


def mirrored(make):
    """The parts for the right (+1) and the left (-1) side."""
    return [make(side) for side in (1, -1)]


def legs(rng, colour, feet, thickness, half, **motion):
    """Jointed legs as one part: feet is a list of polylines [(u,v), ...] in units."""
    u, v = plane(*half)
    canvas = np.zeros(u.shape, np.uint8)
    for line in feet:
        points = (np.asarray(line) + half) * PX * 16
        cv2.polylines(canvas, [points.round().astype(np.int32)], False, 255, round(thickness * PX), cv2.LINE_AA, 4)
    skin = mix(colour, np.asarray(colour) * 0.5, smoothstep(fractal(u.shape, rng, 2, 16), -0.5, 1.0))
    return paint_part((canvas / 255.0 - 0.5) / PX, skin, 0 * u, half, **motion)
