"""The animals of the scenes: each a function of (rng, colours: base, marking, accent, pattern) -> Creature."""

import numpy as np

from datasets.scenes.parts import Creature, ellipse, eyes, paint_part, plane, spindle
from datasets.scenes.texture import coat, mix, noise, smoothstep


def _limbs(rng, colours, pattern, at, length, width, sweep, swing, phase=0.0):
    """A pair of fins or legs that hang on (u, v) `at` and on its mirror point; sweep: how far the tips lie behind."""
    u, v = plane(0.8, 0.9)
    pair = []
    for side in (1, -1):
        t = np.clip(side * v / length, 0, 1)
        blade = width * np.sqrt(1 - t) * (0.55 + 0.9 * t * (1 - t)) - 0.01 - np.abs(u + sweep * t * t)
        skin = coat(u.shape, rng, colours, pattern, 6)
        inside, pivot = np.minimum(blade, side * v + 0.06), (at[0], side * at[1])
        pair.append(paint_part(inside, skin, 0.5, pivot=pivot, swing=swing * side, phase=phase))
    return pair


def koi(rng, colours, pattern):
    u, v = plane(1.1, 0.42)
    girth, tail = rng.uniform(0.2, 0.27), rng.uniform(0.2, 0.3)
    back = [(-0.72, 0.12), (-0.55, 0.075), (-0.2, 0.7 * girth), (0.2, girth), (0.55, girth)]
    head = [(0.8, 0.75 * girth), (0.95, 0.4 * girth), (1.0, 0)]
    body = spindle(u, v, (-1.05, tail), (-0.98, tail), *back, *head)
    veil = (mix(*colours[:2], 0.3), mix(*colours[:2], 0.6), colours[0])
    skin = coat(u.shape, rng, colours, pattern, 20)
    rays = mix(veil[0], veil[1], smoothstep(noise(u.shape, rng, 7, along=0.0), -1, 1))
    skin = mix(skin, rays, smoothstep(-u, 0.55, 0.7))
    skin = eyes(skin, u, v, 0.76, 0.72 * girth, 0.035)
    forked = np.minimum(body, 0.6 * np.abs(v) + u + 1.03)
    shape = dict(length=0.4, width=0.15, sweep=0.2)
    fins = _limbs(rng, veil, "bands", (0.42, 0.75 * girth), **shape, swing=0.25, phase=rng.uniform(0, 6))
    return Creature([*fins, paint_part(forked, skin, wave=0.26)], rng.uniform(62, 80), lift=9, gloss=0.35, beat=0.75)


def eel(rng, colours, pattern):
    u, v = plane(1.4, 0.5)
    girth = rng.uniform(0.17, 0.21)
    body = [(-1.35, 0.02), (-1.2, 0.07), (-0.5, girth), (0.6, girth), (1.0, 0.85 * girth)]
    inside = spindle(u, v, *body, (1.15, girth), (1.3, 0.65 * girth), (1.36, 0))
    skin = eyes(coat(u.shape, rng, colours, pattern, 16), u, v, 1.16, 0.07, 0.04)
    return Creature([paint_part(inside, skin, wave=0.26)], rng.uniform(56, 68), lift=5, gloss=0.3, beat=0.6)


def turtle(rng, colours, pattern):
    limb = (colours[1], mix(colours[1], colours[2], 0.6), mix(colours[0], (1, 0.95, 0.8), 0.5))
    front = _limbs(rng, limb, "scales", (0.42, 0.45), length=0.78, width=0.24, sweep=0.43, swing=0.5)
    rear = _limbs(rng, limb, "scales", (-0.5, 0.4), length=0.45, width=0.2, sweep=0.25, swing=0.4, phase=2.4)
    u, v = plane(0.34, 0.26)
    skin = eyes(coat(u.shape, rng, limb, "scales", 7), u, v, 0.12, 0.13, 0.035)
    head = paint_part(ellipse(u, v, 0, 0.32, 0.19, 2.3), skin, pivot=(0.88, 0.0), swing=0.2, phase=1.0)
    u, v = plane(0.8, 0.7)
    edge = ellipse(u, v, 0, 0.76, 0.62, 2.2)
    skin = coat(u.shape, rng, colours, "scales" if pattern == "patches" else pattern, 20)
    skin = mix(skin, colours[1], 0.7 * (1 - smoothstep(edge, 0.05, 0.1)))
    return Creature([*front, *rear, head, paint_part(edge, skin, 1.1)], rng.uniform(54, 68), lift=14, beat=0.45)


def beetle(rng, colours, pattern):
    dark = mix(colours[2], (0.05, 0.05, 0.05), 0.5)
    legs = []
    for hip, sweep, phase in ((0.42, -0.35, 0), (0.0, 0.1, np.pi), (-0.4, 0.5, 0)):
        shape = dict(length=0.85, width=0.11, sweep=sweep)
        legs += _limbs(rng, [dark] * 3, "spots", (hip, 0.3), **shape, swing=0.2, phase=phase)
    u, v = plane(1.0, 0.62)
    wings, neck = ellipse(u, v, -0.2, 0.74, 0.56, 2.3), ellipse(u, v, 0.52, 0.26, 0.4, 2.4)
    inside = np.maximum(np.maximum(wings, neck), ellipse(u, v, 0.8, 0.18, 0.22))
    skin = mix(coat(u.shape, rng, colours, pattern, 17), dark, smoothstep(u, 0.36, 0.4))
    seams = np.exp(-((v / 0.016) ** 2)) * (u < 0.38) + np.exp(-(((u - 0.38) / 0.02) ** 2))
    armour = paint_part(inside, eyes(mix(skin, dark * 0.4, seams), u, v, 0.84, 0.15, 0.05), 1.1)
    return Creature([*legs, armour], rng.uniform(50, 64), lift=5, gloss=0.6, beat=1.1)


SPECIES = {"koi": koi, "eel": eel, "turtle": turtle, "beetle": beetle}
