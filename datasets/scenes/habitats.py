"""The habitats of the scenes: grounds, and the plants that lie on them or hang over the animals."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from datasets.scenes.parts import Creature, paint_part, plane
from datasets.scenes.texture import cells, lit, mix, noise, ramp, rgb, smoothstep, tinted


@dataclass(frozen=True)
class Habitat:
    """A ground, the props on it, and the animals that live there.

    ground: the function that paints the ground.  colours: of the ground, dark to bright.  coats: colours of animals,
    each text has base, marking and accent.  animals: names in SPECIES.  water: caustics instead of shade.  props: {name
    in PROPS: mean number on the ground}.  over: names of props that hang over the animals.
    """

    ground: Callable
    colours: str
    coats: tuple
    animals: tuple
    water: bool
    props: dict
    over: tuple


def pebbles(shape, rng, colours):
    colour, height = np.zeros((*shape, 3), np.float32), np.zeros(shape, np.float32)
    for spacing, cover in ((15, 1.0), (38, 0.42), (70, 0.22)):
        rim, ident = cells(shape, rng, spacing)
        stone = smoothstep(rim, 0.02, 0.08) * (ident < cover)
        tone = 0.75 * ident / cover + 0.12 + 0.08 * noise(shape, rng, spacing, 1.8)
        colour = mix(colour * (1 - 0.5 * (ident < cover))[..., None], ramp(tone, colours), stone)
        height = np.where(stone > 0.5, 0.6 * np.sqrt(rim) * spacing, height)
    return lit(colour, 1.4 * height + 0.8 * noise(shape, rng, 30, 1.6))


def sand(shape, rng, colours):
    ripple, grain = noise(shape, rng, 34, along=rng.uniform(0, np.pi)), noise(shape, rng, 6, 0.5)
    weed = smoothstep(noise(shape, rng, 200, 2.6), 0.9, 1.7)
    tone = 0.5 + 0.16 * noise(shape, rng, 300, 3) + 0.10 * ripple + 0.10 * grain
    colour = mix(ramp(tone, colours), colours[0] * (0.55, 0.75, 0.6), 0.75 * weed)
    return lit(colour, 2.2 * ripple + 0.5 * grain + 2 * weed * noise(shape, rng, 12, 1.5))


def reef(shape, rng, colours):
    rim, ident = cells(shape, rng, 66)
    maze, polyps = smoothstep(noise(shape, rng, 12), -0.3, 0.3), smoothstep(noise(shape, rng, 8), 0.2, 1.2)
    fine = np.where(ident < 0.5, maze, polyps)
    colour = ramp(0.65 * ident + 0.25 * fine + 0.1 * noise(shape, rng, 60, 2), colours)
    colour = colour * (0.45 + 0.55 * smoothstep(rim, 0.0, 0.15))[..., None]
    return lit(colour, 22 * np.sqrt(rim) + 2.5 * fine + 0.8 * noise(shape, rng, 20, 1.5))


def moss(shape, rng, colours):
    mound, tuft, fibre = noise(shape, rng, 140, 3.2), noise(shape, rng, 6), noise(shape, rng, 14, 1)
    earth = smoothstep(noise(shape, rng, 180, 2.6), 0.8, 1.2)
    soil = ramp(0.5 + 0.2 * noise(shape, rng, 40, 1.5), rgb("1a120d 4d3621 755c3d"))
    colour = mix(ramp(0.45 + 0.16 * mound + 0.14 * tuft + 0.09 * fibre, colours), soil, earth)
    return lit(colour, 4.5 * mound + 2 * tuft * (1 - 0.5 * earth) + fibre)


def _leaf(rng, colours):
    """A long leaf with a wavy edge and a bright vein."""
    u, v = plane(1.1, 0.5)
    bow = v - rng.uniform(-0.14, 0.14) * np.sin(2.2 * u)
    width = rng.uniform(0.16, 0.3) * np.clip(1 - u * u, 0, 1) ** 0.8 * (1 - 0.3 * u) * (1 + 0.08 * np.sin(17 * u))
    veins = np.exp(-((bow / 0.02) ** 2)) + 0.5 * smoothstep(np.cos(26 * (u + 0.8 * np.abs(bow))), 0.8, 1.0)
    skin = mix(colours[0], colours[1], smoothstep(noise(u.shape, rng, 50, 2.3), -2, 2))
    return paint_part(width - np.abs(bow), mix(skin, colours[1] * 1.15, 0.6 * np.clip(veins, 0, 1)), 0.5)


def _lily(rng, colours):
    u, v = plane(1.0, 1.0)
    angle, away = np.arctan2(v, u), np.hypot(u, v)
    inside = np.minimum(0.95 + 0.02 * np.sin(9 * angle) - away, np.abs(v) + 0.08 - 0.35 * np.maximum(u, 0))
    veins = smoothstep(np.cos(13 * angle), 0.93, 1.0) * smoothstep(away, 0.05, 0.2)
    skin = mix(mix(*colours, smoothstep(noise(u.shape, rng, 90, 2.4), -2, 2)), colours[1] * 1.2, 0.5 * veins)
    return paint_part(inside, mix(skin, (0.45, 0.25, 0.12), 0.5 * smoothstep(away, 0.82, 0.95)), 0.25)


GREEN, BROWN, KELP = rgb("295714 80a833"), rgb("804214 cc8c33"), rgb("47380f 99802e")
#: name -> painter, colours, px of a unit, height over the ground in px
PROPS = {
    "leaf": (_leaf, GREEN, 17, 3),
    "dry leaf": (_leaf, BROWN, 17, 3),
    "grass": (_leaf, GREEN, 60, 12),
    "kelp": (_leaf, KELP, 60, 12),
    "lily": (_lily, GREEN, 34, 10),
}


def prop(name: str, rng: np.random.Generator) -> Creature:
    paint, colours, size, lift = PROPS[name]
    return Creature([paint(rng, tinted(colours, rng))], size * rng.uniform(0.7, 1.3), lift)


KOI = ("ede6d6 e65c14 1a171a", "eb801a f5db9e 40140a", "242429 e08529 ebe6db", "5c7066 293838 b3a87a")
SEA = ("6b7038 c2b366 2e2614", "9e8057 574029 e6d1a3", "475c6b 9eada8 1f242e", "b39e7a 806b4d 3d4d61")
CORAL = ("cc4729 f29e4d f5e0b8", "5c296b db8533 f5d670", "29578f ebc747 0f1a2e", "855c47 47383d c7a375")
BEETLE = ("751a0f 1a120f 1f1714", "1f4d29 8f9929 0f1f1a", "4d381a 947533 241a0f", "293857 805c24 12141f")

HABITATS = {
    "pond": Habitat(pebbles, "0d1a1a 243833 475747 75755c", coats=KOI, animals=("koi", "turtle"), water=True,
                    props={"leaf": 8}, over=("lily", "lily")),
    "lagoon": Habitat(sand, "666b57 a89e75 d1c499 f0e6c2", coats=SEA, animals=("turtle", "eel"), water=True,
                      props={"dry leaf": 6}, over=("kelp",)),
    "reef": Habitat(reef, "1f1a33 5c334d 995c47 6b7a57 c7a870", coats=CORAL, animals=("eel", "koi", "turtle"),
                    water=True, props={"dry leaf": 4}, over=("kelp", "kelp")),
    "forest": Habitat(moss, "0d1a05 243d0d 4d6b1a 8fa33d", coats=BEETLE, animals=("beetle",), water=False,
                      props={"dry leaf": 26, "leaf": 8}, over=("grass",)),
}  # fmt: skip
