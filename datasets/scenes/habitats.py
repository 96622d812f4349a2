"""The habitats of the scenes: grounds, what lies on them, and what hangs over the animals."""

from dataclasses import dataclass

import cv2
import numpy as np

from datasets.scenes.draw import LIGHT
from datasets.scenes.parts import Creature, ellipse, paint_part, plane
from datasets.scenes.texture import band, cells, fractal, mix, normals, ramp, shifted_hue, smoothstep, swirl, unit


@dataclass(frozen=True)
class Habitat:
    """paint: the ground's painter.  colours: dark to bright.  props: names in PROPS, with their numbers.

    over: props that hang over the animals.  water: moving caustics instead of the shadows of clouds and trees.
    animals: names in SPECIES.  coats: triples of base, marking, accent.
    """

    paint: str
    colours: tuple
    props: dict
    over: tuple
    water: bool
    animals: tuple
    coats: tuple


def lit(colour, height, strength):
    """A ground's colour [h,w,3] under the light, by its relief [h,w]."""
    shade = normals(height, strength) @ LIGHT
    return np.clip(colour * (0.45 + 0.8 * np.clip(shade, 0, None))[..., None], 0, 1)


def pebbles(shape, rng, colours):
    colour, height = np.zeros((*shape, 3), np.float32), np.zeros(shape, np.float32)
    for spacing, cover in ((15, 1.0), (38, 0.42), (70, 0.22)):
        rim, ident = cells(shape, rng, spacing)
        both = swirl(np.dstack([rim, ident]), rng, 1.5, 30)
        rim, ident = both[..., 0], both[..., 1]
        stone = smoothstep(rim, 0.03, 0.14) * (ident < cover)
        vein = unit(band(shape, rng, spacing / 3, 0.5) + fractal(shape, rng, 1.8, spacing))
        tone = ramp(np.clip(ident / cover * 0.75 + 0.3 * vein, 0, 1), colours)
        dome = np.sqrt(np.clip(rim, 0, 1)) * spacing * 0.45
        colour = mix(colour * (1 - 0.5 * smoothstep(rim, -0.1, 0.1) * (ident < cover))[..., None], tone, stone)
        height = np.where(stone > 0.5, dome, height)
    return lit(colour, height + 0.6 * fractal(shape, rng, 1.6, 30), 1.4)


def sand(shape, rng, colours):
    ripple = swirl(band(shape, rng, 26, 0.16, 3.5, rng.uniform(0, np.pi)), rng, 9, 160)
    broad, grain = fractal(shape, rng, 3, 300), fractal(shape, rng, 0.5, 6)
    tone = np.clip(0.5 + 0.16 * broad + 0.10 * ripple + 0.10 * grain, 0, 1)
    weed = smoothstep(fractal(shape, rng, 2.6, 200), 0.9, 1.7)
    colour = mix(ramp(tone, colours), np.asarray(colours[0]) * (0.55, 0.75, 0.6), 0.75 * weed)
    return lit(colour, 2.2 * ripple + 0.5 * grain + 2 * weed * fractal(shape, rng, 1.5, 12), 1.0)


def reef(shape, rng, colours):
    lump, ident = cells(shape, rng, 66)
    both = swirl(np.dstack([lump, ident]), rng, 8, 60)
    lump, ident = both[..., 0], both[..., 1]
    maze, polyps = band(shape, rng, 12, 0.2), band(shape, rng, 8, 0.25)
    fine = np.where(
        ident < 0.4,
        smoothstep(maze, -0.3, 0.3),
        np.where(ident < 0.75, smoothstep(polyps, 0.2, 1.2), 0.5 + 0.2 * maze),
    )
    tone = np.clip(ident * 0.65 + 0.25 * fine + 0.1 * fractal(shape, rng, 2, 60), 0, 1)
    colour = ramp(tone, colours) * (0.45 + 0.55 * smoothstep(lump, 0.0, 0.3))[..., None]
    height = 16 * np.sqrt(np.clip(lump, 0, 1)) + 2.5 * fine + 0.8 * fractal(shape, rng, 1.5, 20)
    return lit(colour, height, 1.1)


def moss(shape, rng, colours):
    mound, tuft = fractal(shape, rng, 3.2, 140), band(shape, rng, 6, 0.4)
    fibre = fractal(shape, rng, 1.0, 14)
    tone = np.clip(0.45 + 0.16 * mound + 0.14 * tuft + 0.09 * fibre, 0, 1)
    earth = smoothstep(fractal(shape, rng, 2.6, 180), 0.8, 1.2)
    soil = ramp(unit(fractal(shape, rng, 1.5, 40)), [(0.10, 0.07, 0.05), (0.30, 0.21, 0.13), (0.46, 0.36, 0.24)])
    return lit(mix(ramp(tone, colours), soil, earth), 5 * mound + 2.2 * tuft * (1 - 0.5 * earth) + fibre, 0.9)


def grass(shape, rng, colours):
    """Thousands of blades, the bright ones on top."""
    h, w = shape
    image = ramp(0.25 * unit(fractal(shape, rng, 2.4, 120)), colours)
    lean = fractal(shape, rng, 4, 260)
    count = h * w // 42
    for depth in np.linspace(0.05, 1, 6):
        y, x = rng.uniform(0, h, count // 6), rng.uniform(0, w, count // 6)
        angle = -np.pi / 2 + 0.7 * lean[y.astype(int), x.astype(int)] + rng.normal(0, 0.45, len(x))
        length = rng.uniform(9, 24, len(x))
        tone = ramp(np.clip(depth * 0.8 + rng.normal(0.05, 0.12, len(x)), 0, 1), colours)
        start = np.stack([x, y], -1)
        bow = rng.normal(0, 0.25, len(x))
        middle = start + 0.5 * length[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        tip = middle + 0.5 * length[:, None] * np.stack([np.cos(angle + bow), np.sin(angle + bow)], -1)
        lines = (np.stack([start, middle, tip], 1) * 16).astype(np.int32)
        for line, colour in zip(lines, tone.tolist()):
            cv2.polylines(image, [line + (16, 24)], False, (0.02, 0.04, 0.01), 1, cv2.LINE_8, 4)
            cv2.polylines(image, [line], False, colour, 2 if depth > 0.7 else 1, cv2.LINE_8, 4)
    return np.clip(cv2.GaussianBlur(image, (0, 0), 0.6) * (1 + 0.08 * fractal(shape, rng, 2.4, 160))[..., None], 0, 1)


def _still(part, size, lift):
    return Creature([part], size, 0.0, 0.12, lift, gloss=0.15)


def leaf(rng, colours):
    u, v = plane(1.05, 0.6)
    width = rng.uniform(0.3, 0.5) * np.clip(1 - u * u, 0, 1) ** 0.8 * (1 - 0.35 * u)
    width = width * (1 + 0.06 * np.sin(22 * u))
    veins = np.exp(-((v / 0.018) ** 2)) + 0.6 * smoothstep(np.cos(26 * (u + 0.8 * np.abs(v))), 0.9, 1.0)
    skin = mix(colours[0], colours[1], unit(fractal(u.shape, rng, 2.4, 60)))
    skin = mix(skin, np.asarray(colours[1]) * 1.15, 0.5 * np.clip(veins, 0, 1))
    return _still(paint_part(width - np.abs(v), skin, 0.4 * veins, (1.05, 0.6), 0.5), rng.uniform(13, 24), 3)


def blade(rng, colours):
    """A long ribbon with a wavy edge, as of kelp or broad grass."""
    u, v = plane(1.1, 0.42)
    bow = v - rng.uniform(-0.14, 0.14) * np.sin(2.2 * u)
    width = (
        rng.uniform(0.17, 0.24)
        * np.clip(1 - np.abs(u / 1.05) ** 3, 0, 1)
        * (1 + 0.12 * np.sin(15 * u + rng.uniform(0, 6)))
    )
    vein = np.exp(-((bow / 0.02) ** 2))
    skin = mix(colours[0], colours[1], np.clip(unit(fractal(u.shape, rng, 2.2, 40)) * 0.7 + 0.3 * vein, 0, 1))
    folds = np.sin(15 * u + 20 * np.abs(bow)) * 0.3
    return _still(
        paint_part(width - np.abs(bow), skin, folds + 0.4 * vein, (1.1, 0.42), 0.5), rng.uniform(48, 66), 14
    )


def lily(rng, colours):
    u, v = plane(1.0, 1.0)
    angle, away = np.arctan2(v, u), np.hypot(u, v)
    inside = np.minimum(0.95 + 0.02 * np.sin(9 * angle) - away, np.abs(v) + 0.08 - np.where(u > 0, 0.35 * u, 0) * 1.0)
    veins = smoothstep(np.cos(13 * angle), 0.93, 1.0) * smoothstep(away, 0.05, 0.2)
    skin = mix(
        mix(colours[0], colours[1], unit(fractal(u.shape, rng, 2.4, 90))), np.asarray(colours[1]) * 1.2, 0.5 * veins
    )
    skin = mix(skin, (0.45, 0.25, 0.12), 0.5 * smoothstep(away, 0.82, 0.95))
    return _still(paint_part(inside, skin, 0.5 * veins, (1.0, 1.0), 0.25), rng.uniform(28, 40), 10)


def flower(rng, colours):
    u, v = plane(1.0, 1.0)
    petals = rng.integers(5, 13)
    angle, away = np.arctan2(v, u), np.hypot(u, v)
    reach = 0.5 + 0.46 * np.abs(np.cos(petals * angle / 2)) ** 0.7
    skin = mix(np.asarray(colours[0]) * 0.75, colours[0], smoothstep(away, 0.2, 0.8))
    skin = mix(skin, colours[1], 1 - smoothstep(away, 0.24, 0.3))
    bump = 0.5 * np.abs(np.cos(petals * angle / 2)) + (away < 0.28)
    return _still(paint_part(reach - away, skin, bump, (1.0, 1.0), 0.3), rng.uniform(7, 13), 4)


def stone(rng, colours):
    u, v = plane(1.0, 1.0)
    angle = np.arctan2(v, u)
    reach = 0.75 + 0.08 * np.sin(2 * angle + rng.uniform(0, 6)) + 0.06 * np.sin(3 * angle + rng.uniform(0, 6))
    speckle = unit(fractal(u.shape, rng, 1.4, 40))
    skin = ramp(speckle, [np.asarray(colours[0]) * 0.7, colours[0], colours[1]])
    return _still(
        paint_part(reach - np.hypot(u, v * 1.25), skin, 0.4 * speckle, (1.0, 1.0), 1.2), rng.uniform(7, 20), 4
    )


def shell(rng, colours):
    u, v = plane(1.0, 1.0)
    angle = np.arctan2(v, u + 0.7)
    inside = np.minimum(ellipse(u, v, 0.1, 0, 0.75, 0.8), 1.15 - np.abs(angle)) * 0.9
    ribs = np.cos(24 * angle)
    skin = mix(
        mix(colours[0], colours[1], 0.5 + 0.5 * np.sin(14 * np.hypot(u + 0.7, v))), (1, 1, 1), 0.2 * (ribs > 0)
    )
    return _still(paint_part(inside, skin, 0.4 * ribs, (1.0, 1.0), 0.8), rng.uniform(7, 12), 3)


def frond(rng, colours):
    """A feathery stem of leaflets, as of fern or weed."""
    u, v = plane(1.1, 0.6)
    bow = v - rng.uniform(-0.14, 0.14) * np.sin(1.8 * u)
    inside, tone = np.minimum(0.03 - np.abs(bow), 1.0 - np.abs(u)), rng.random(26)
    shade = np.full(u.shape, 0.2, np.float32)
    for index, at in enumerate(np.linspace(-0.85, 0.92, 12)):
        for side in (1, -1):
            length = 0.27 * np.sqrt(1.04 - at) * (0.9 + 0.2 * tone[2 * index])
            along, across = 0.62 * (u - at) + 0.78 * side * bow, 0.78 * (u - at) - 0.62 * side * bow
            leaflet = ellipse(along, across, length, 0, length * 1.05, 0.056)
            shade = np.where(leaflet > inside, 0.25 + 0.6 * tone[2 * index + (side > 0)] + 2 * across, shade)
            inside = np.maximum(inside, leaflet)
    skin = mix(colours[0], colours[1], np.clip(shade + 0.1 * fractal(u.shape, rng, 2, 30), 0, 1))
    return _still(paint_part(inside, skin, 0 * u, (1.1, 0.6), 0.8), rng.uniform(26, 44), 4)


GROUNDS = {"pebbles": pebbles, "sand": sand, "reef": reef, "moss": moss, "grass": grass}
GREENS = ((0.16, 0.34, 0.08), (0.50, 0.66, 0.20))
PROPS = {
    "leaf": (
        leaf,
        ((0.50, 0.26, 0.08), (0.80, 0.55, 0.20)),
        ((0.42, 0.14, 0.07), (0.74, 0.36, 0.14)),
        ((0.44, 0.36, 0.14), (0.72, 0.66, 0.30)),
    ),
    "greenleaf": (leaf, GREENS, ((0.10, 0.28, 0.12), (0.36, 0.56, 0.26))),
    "lily": (lily, ((0.12, 0.34, 0.10), (0.42, 0.62, 0.20)), ((0.18, 0.32, 0.14), (0.52, 0.60, 0.24))),
    "flower": (
        flower,
        ((0.95, 0.92, 0.88), (0.92, 0.70, 0.12)),
        ((0.78, 0.30, 0.62), (0.95, 0.80, 0.25)),
        ((0.93, 0.76, 0.16), (0.72, 0.40, 0.08)),
        ((0.46, 0.42, 0.86), (0.95, 0.90, 0.55)),
    ),
    "stone": (
        stone,
        ((0.40, 0.38, 0.35), (0.70, 0.67, 0.60)),
        ((0.30, 0.24, 0.20), (0.56, 0.46, 0.36)),
        ((0.44, 0.47, 0.46), (0.74, 0.76, 0.72)),
    ),
    "shell": (shell, ((0.86, 0.70, 0.56), (0.96, 0.90, 0.80)), ((0.70, 0.42, 0.36), (0.94, 0.80, 0.70))),
    "frond": (frond, GREENS, ((0.12, 0.26, 0.10), (0.40, 0.54, 0.22))),
    "grassblade": (blade, GREENS, ((0.12, 0.26, 0.10), (0.40, 0.54, 0.22))),
    "kelp": (
        blade,
        ((0.28, 0.22, 0.06), (0.60, 0.50, 0.18)),
        ((0.34, 0.15, 0.14), (0.62, 0.33, 0.28)),
        ((0.16, 0.26, 0.14), (0.42, 0.50, 0.26)),
    ),
    "weed": (frond, ((0.28, 0.22, 0.06), (0.60, 0.50, 0.18)), ((0.34, 0.15, 0.14), (0.62, 0.33, 0.28))),
}


def prop(name, rng):
    make, *palettes = PROPS[name]
    return make(rng, shifted_hue(palettes[rng.integers(len(palettes))], rng, 8))


KOI = (
    ((0.93, 0.90, 0.84), (0.90, 0.36, 0.08), (0.10, 0.09, 0.10)),
    ((0.92, 0.50, 0.10), (0.96, 0.86, 0.62), (0.25, 0.08, 0.04)),
    ((0.14, 0.14, 0.16), (0.88, 0.52, 0.16), (0.92, 0.90, 0.86)),
    ((0.36, 0.44, 0.40), (0.16, 0.22, 0.22), (0.70, 0.66, 0.48)),
)
SEA = (
    ((0.42, 0.44, 0.22), (0.76, 0.70, 0.40), (0.18, 0.15, 0.08)),
    ((0.62, 0.50, 0.34), (0.34, 0.25, 0.16), (0.90, 0.82, 0.64)),
    ((0.28, 0.36, 0.42), (0.62, 0.68, 0.66), (0.12, 0.14, 0.18)),
    ((0.70, 0.62, 0.48), (0.50, 0.42, 0.30), (0.24, 0.30, 0.38)),
)
CORAL = (
    ((0.80, 0.28, 0.16), (0.95, 0.62, 0.30), (0.96, 0.88, 0.72)),
    ((0.36, 0.16, 0.42), (0.86, 0.52, 0.20), (0.96, 0.84, 0.44)),
    ((0.16, 0.34, 0.56), (0.92, 0.78, 0.28), (0.06, 0.10, 0.18)),
    ((0.52, 0.36, 0.28), (0.28, 0.22, 0.24), (0.78, 0.64, 0.46)),
)
INSECT = (
    ((0.46, 0.10, 0.06), (0.10, 0.07, 0.06), (0.12, 0.09, 0.08)),
    ((0.12, 0.30, 0.16), (0.56, 0.60, 0.16), (0.06, 0.12, 0.10)),
    ((0.30, 0.22, 0.10), (0.58, 0.46, 0.20), (0.14, 0.10, 0.06)),
    ((0.16, 0.22, 0.34), (0.50, 0.36, 0.14), (0.07, 0.08, 0.12)),
)
WINGS = (
    ((0.90, 0.46, 0.08), (0.98, 0.76, 0.30), (0.10, 0.06, 0.05)),
    ((0.16, 0.36, 0.72), (0.46, 0.70, 0.90), (0.06, 0.07, 0.12)),
    ((0.88, 0.84, 0.62), (0.62, 0.66, 0.34), (0.20, 0.20, 0.12)),
    ((0.56, 0.24, 0.12), (0.86, 0.62, 0.30), (0.18, 0.10, 0.08)),
)

HABITATS = {
    "pond": Habitat(
        "pebbles",
        ((0.05, 0.10, 0.10), (0.14, 0.22, 0.20), (0.28, 0.34, 0.28), (0.46, 0.46, 0.36)),
        {"greenleaf": 4, "stone": 8},
        ("lily", "lily"),
        True,
        ("koi", "koi", "turtle"),
        KOI,
    ),
    "lagoon": Habitat(
        "sand",
        ((0.40, 0.42, 0.34), (0.66, 0.62, 0.46), (0.82, 0.77, 0.60), (0.94, 0.90, 0.76)),
        {"stone": 10, "shell": 12, "weed": 3},
        ("kelp",),
        True,
        ("turtle", "ray", "starfish", "eel"),
        SEA,
    ),
    "reef": Habitat(
        "reef",
        ((0.12, 0.10, 0.20), (0.36, 0.20, 0.30), (0.60, 0.36, 0.28), (0.42, 0.48, 0.34), (0.78, 0.66, 0.44)),
        {"shell": 6, "weed": 5},
        ("kelp",),
        True,
        ("starfish", "flatworm", "eel", "koi"),
        CORAL,
    ),
    "shore": Habitat(
        "pebbles",
        ((0.16, 0.14, 0.13), (0.36, 0.32, 0.28), (0.56, 0.50, 0.43), (0.76, 0.71, 0.62)),
        {"shell": 12, "weed": 6},
        ("kelp",),
        False,
        ("crab", "crab", "starfish"),
        CORAL + SEA,
    ),
    "forest": Habitat(
        "moss",
        ((0.05, 0.10, 0.02), (0.14, 0.24, 0.05), (0.30, 0.42, 0.10), (0.56, 0.64, 0.24)),
        {"frond": 5, "leaf": 26, "stone": 8, "greenleaf": 6},
        ("grassblade",),
        False,
        ("beetle", "beetle", "butterfly"),
        INSECT,
    ),
    "meadow": Habitat(
        "grass",
        ((0.03, 0.08, 0.02), (0.12, 0.26, 0.05), (0.30, 0.46, 0.10), (0.60, 0.70, 0.26)),
        {"frond": 3, "flower": 60, "greenleaf": 5},
        ("grassblade", "grassblade"),
        False,
        ("butterfly", "butterfly", "beetle"),
        WINGS,
    ),
}
