"""The animals of the scenes: each a function of (rng, colours: base, marking, accent, pattern) -> Creature."""

import numpy as np

from datasets.scenes.parts import Creature, dots, ellipse, fin, legs, mirrored, paint_part, plane, profile
from datasets.scenes.texture import band, cells, coat, fractal, mix, smoothstep


def koi(rng, colours, pattern):
    u, v = plane(1.1, 0.42)
    tail = rng.uniform(0.2, 0.3)
    girth = rng.uniform(0.2, 0.27)
    width = profile(
        u,
        [-1.05, -1, -0.72, -0.55, -0.2, 0.2, 0.55, 0.8, 0.95, 1.0],
        [tail, tail, 0.12, 0.075, 0.7 * girth, girth, girth, 0.75 * girth, 0.4 * girth, 0],
    )
    inside = np.minimum(width - np.abs(v), np.minimum(0.6 * np.abs(v) + u + 1.03, 1.0 - u))
    skin, bump = coat(u.shape, rng, colours, pattern, 20)
    rays = band(u.shape, rng, 7, 0.3, 8)
    fin_share = smoothstep(-u, 0.55, 0.7)
    skin = mix(skin, mix(colours[0], colours[1], 0.3) * np.float32(0.85) + 0.04 * rays[..., None], fin_share)
    ridge = np.exp(-((v / 0.035) ** 2)) * smoothstep(u, -0.35, -0.2) * smoothstep(-u, -0.35, -0.2)
    skin = dots(
        mix(skin, colours[2], 0.8 * ridge),
        u,
        v,
        [(0.76, girth * 0.72), (0.76, -girth * 0.72)],
        0.035,
        (0.03, 0.03, 0.03),
    )
    body = paint_part(inside, skin, bump + 0.3 * ridge, (1.1, 0.42), bend=("swim", 0.26))
    fu, fv = plane(0.4, 0.5)

    def pectoral(side):
        skin = mix(colours[0], colours[1], 0.25 + 0.15 * np.clip(band(fu.shape, rng, 7, 0.3, 8, np.pi / 2), -1, 1))
        return paint_part(
            fin(fu, side * fv, 0.4, 0.15, 0.2),
            skin,
            0 * fu,
            (0.4, 0.5),
            0.4,
            pivot=(0.42, 0.75 * side * girth),
            swing=0.25 * side,
            phase=rng.uniform(0, 6),
        )

    return Creature([*mirrored(pectoral), body], rng.uniform(62, 80), rng.uniform(0.45, 0.7), 0.75, 9, gloss=0.35)


def eel(rng, colours, pattern):
    u, v = plane(1.4, 0.5)
    girth = rng.uniform(0.17, 0.21)
    width = profile(
        u,
        [-1.35, -1.2, -0.5, 0.6, 1.0, 1.15, 1.3, 1.36],
        [0.02, 0.07, girth, girth, 0.85 * girth, girth, 0.65 * girth, 0],
    )
    skin, bump = coat(u.shape, rng, colours, "bands" if pattern == "stripes" else pattern, 16)
    skin = dots(skin, u, v, [(1.16, 0.07), (1.16, -0.07)], 0.04, (0.02, 0.02, 0.02))
    inside = np.minimum(width - np.abs(v), 1.36 - np.abs(u))
    return Creature(
        [paint_part(inside, skin, bump, (1.4, 0.5), bend=("slither", 0.26))],
        rng.uniform(56, 68),
        0.5,
        0.6,
        5,
        gloss=0.3,
    )


def ray(rng, colours, pattern):
    u, v = plane(1.3, 1.2)
    swept = u + 0.22 * v * v - 0.08
    disc = (1 - (np.abs(swept) / np.where(swept > 0, 0.6, 0.72)) ** 1.35 - (np.abs(v) / 1.02) ** 1.35) * 0.45
    tail = np.minimum(0.045 + 0.05 * (u + 1.3) - np.abs(v), np.minimum(-u, u + 1.25))
    skin, bump = coat(u.shape, rng, colours, pattern, 16)
    skin = mix(skin, colours[2], 0.6 * np.exp(-((v / 0.03) ** 2)) * smoothstep(-u, -0.3, 0.1))
    skin = dots(skin, u, v, [(0.42, 0.13), (0.42, -0.13)], 0.05, (0.03, 0.03, 0.04))
    return Creature(
        [paint_part(np.maximum(disc, tail), skin, bump, (1.3, 1.2), bend=("wings", 0.22))],
        rng.uniform(66, 84),
        rng.uniform(0.4, 0.6),
        0.5,
        16,
    )


def turtle(rng, colours, pattern):
    u, v = plane(0.8, 0.7)
    skin, bump = coat(u.shape, rng, colours, "scales" if pattern in ("patches", "scales") else pattern, 20)
    edge = ellipse(u, v, 0, 0, 0.76, 0.62, 2.2)
    skin = mix(skin, colours[1], 0.7 * (1 - smoothstep(edge, 0.05, 0.1)))
    shell = paint_part(edge, skin, bump, (0.8, 0.7), 1.1)
    fu, fv = plane(0.7, 0.7)

    def limb(side, at, length, width, sweep, swing, phase):
        rim, ident = cells(fu.shape, rng, 9)
        skin = mix(
            mix(colours[0], colours[2], 0.25 + 0.4 * ident),
            mix(colours[1], (1, 0.95, 0.8), 0.3),
            1 - smoothstep(rim, 0.05, 0.25),
        )
        return paint_part(
            fin(fu, side * fv, length, width, sweep),
            skin,
            0.3 * smoothstep(rim, 0, 0.4),
            (0.7, 0.7),
            0.5,
            pivot=(at, 0.45 * side),
            swing=swing * side,
            phase=phase,
        )

    front = mirrored(lambda side: limb(side, 0.42, 0.66, 0.22, 0.36, 0.55, 0.0))
    back = mirrored(lambda side: limb(side, -0.5, 0.36, 0.2, 0.28, 0.4, 2.4))
    hu, hv = plane(0.34, 0.26)
    skin, bump = coat(hu.shape, rng, (colours[0], colours[2], colours[1]), "scales", 9)
    skin = dots(skin, hu, hv, [(0.12, 0.13), (0.12, -0.13)], 0.035, (0.02, 0.02, 0.02))
    head = paint_part(
        ellipse(hu, hv, 0, 0, 0.32, 0.19, 2.3), skin, bump, (0.34, 0.26), pivot=(0.88, 0.0), swing=0.2, phase=1.0
    )
    return Creature([*front, *back, head, shell], rng.uniform(54, 68), rng.uniform(0.35, 0.55), 0.45, 14)


def starfish(rng, colours, pattern):
    u, v = plane(1.1, 1.1)
    arms = rng.choice([5, 5, 6])
    angle, away = np.arctan2(v, u), np.hypot(u, v)
    reach = 0.36 + 0.66 * np.abs(np.cos(arms * angle / 2)) ** 2.6
    skin, bump = coat(u.shape, rng, colours, "spots" if pattern == "stripes" else pattern, 11)
    crest = np.exp(-((np.sin(arms * angle / 2) * away / 0.07) ** 2)) * (away < 0.95)
    skin = mix(skin, colours[1], 0.7 * crest)
    nubs = smoothstep(band(u.shape, rng, 9, 0.2), 0.9, 1.4)
    part = paint_part(
        (reach - away) * 0.55,
        mix(skin, colours[2], 0.5 * nubs),
        bump + 0.35 * crest + 0.35 * nubs,
        (1.1, 1.1),
        bend=("curl", 0.16),
    )
    return Creature([part], rng.uniform(46, 64), 0.14, 0.35, 4)


def flatworm(rng, colours, pattern):
    u, v = plane(1.15, 0.8)
    edge = ellipse(u, v, 0, 0, 0.98, 0.55, 2.1)
    skin, bump = coat(u.shape, rng, colours, pattern, 14)
    skin = mix(skin, colours[2], 1 - smoothstep(edge, 0.03, 0.07))
    skin = mix(skin, colours[1], (1 - smoothstep(edge, 0.1, 0.14)) * smoothstep(edge, 0.05, 0.08))
    folds = np.sin(14 * np.arctan2(v, u)) * (1 - smoothstep(edge, 0.05, 0.25))
    return Creature(
        [paint_part(edge, skin, bump + 0.5 * folds, (1.15, 0.8), bend=("ripple", 0.1))],
        rng.uniform(48, 62),
        0.32,
        0.5,
        5,
        gloss=0.3,
    )


def beetle(rng, colours, pattern):
    half = (1.2, 1.1)
    stance = [(0.45, 0.62, 0.9), (0.02, 0.05, -0.1), (-0.35, -0.55, -0.95)]
    tripods = []
    for tripod in (0, 1):
        feet = []
        for index, (hip, knee, foot) in enumerate(stance):
            side = 1 if (index + tripod) % 2 else -1
            feet.append([(hip, 0.3 * side), (knee, 0.72 * side), (foot, 0.95 * side)])
        tripods.append(legs(rng, np.asarray(colours[2]) * 0.6, feet, 0.085, half, swing=0.2, phase=np.pi * tripod))
    u, v = plane(1.0, 0.62)
    wing = ellipse(u, v, -0.2, 0, 0.74, 0.56, 2.3)
    neck = ellipse(u, v, 0.52, 0, 0.26, 0.4, 2.4)
    head = ellipse(u, v, 0.8, 0, 0.18, 0.22)
    skin, bump = coat(u.shape, rng, colours, pattern, 17)
    dark = mix(colours[2], (0.05, 0.05, 0.05), 0.5)
    skin = mix(skin, dark * (1 + 0.1 * fractal(u.shape, rng, 2, 12)[..., None]), smoothstep(u, 0.36, 0.4))
    seam = np.exp(-((v / 0.016) ** 2)) * (u < 0.38) + np.exp(-(((u - 0.38) / 0.02) ** 2))
    groove = 0.25 * band(u.shape, rng, 8, 0.2, 12) * (u < 0.36)
    skin = dots(
        mix(skin, dark * 0.5, 0.9 * np.clip(seam, 0, 1)),
        u,
        v,
        [(0.84, 0.15), (0.84, -0.15)],
        0.05,
        (0.02, 0.02, 0.02),
    )
    body = paint_part(
        np.maximum(np.maximum(wing, neck), head), skin, bump - 0.6 * seam + 0.2 * groove, (1.0, 0.62), 1.1
    )
    return Creature([*tripods, body], rng.uniform(50, 64), rng.uniform(0.3, 0.5), 1.1, 5, gloss=0.6)


def crab(rng, colours, pattern):
    half = (1.0, 1.25)
    limbs = []
    for side in (1, -1):
        for first in (0, 1):
            feet = []
            for hip in (0.28 - 0.3 * first, -0.02 - 0.3 * first):
                feet.append([(hip, 0.5 * side), (hip * 1.5 + 0.08, 0.9 * side), (hip * 2.0 - 0.1, 1.14 * side)])
            limbs.append(
                legs(rng, mix(colours[0], colours[2], 0.3), feet, 0.11, half, swing=0.16, phase=np.pi * first + side)
            )
    cu, cv_ = plane(0.5, 0.5)

    def claw(side):
        w = side * cv_
        arm = np.maximum(ellipse(cu, w, -0.18, -0.06, 0.2, 0.1), ellipse(cu, w, 0.14, 0.0, 0.28, 0.2))
        gap = ellipse(cu, w, 0.36, -0.04, 0.24, 0.05)
        skin, bump = coat(cu.shape, rng, colours, pattern, 10)
        return paint_part(
            np.minimum(arm, -gap),
            skin,
            bump,
            (0.5, 0.5),
            pivot=(0.52, 0.52 * side),
            turn=0.15 * side,
            swing=0.3 * side,
            phase=side,
        )

    u, v = plane(0.75, 0.85)
    shell = ellipse(u, v, 0, 0, 0.56 + 0.05 * np.cos(3 * v), 0.76, 2.3)
    skin, bump = coat(u.shape, rng, colours, pattern, 16)
    skin = dots(skin, u, v, [(0.46, 0.2), (0.46, -0.2)], 0.06, (0.03, 0.03, 0.03))
    return Creature(
        [*limbs, *mirrored(claw), paint_part(shell, skin, bump, (0.75, 0.85), 1.1)],
        rng.uniform(44, 58),
        rng.uniform(0.3, 0.5),
        1.2,
        6,
        sideways=True,
        gloss=0.3,
    )


def butterfly(rng, colours, pattern):
    half = (1.0, 1.0)
    u, v = plane(*half)

    def pair(side):
        w = side * v
        angle, away = np.arctan2(w, u), np.hypot(u, w)
        fore = np.exp(-(((angle - 0.98) / 0.52) ** 2))
        hind = np.exp(-(((angle - 2.12) / 0.56) ** 2))
        wing = np.minimum((0.16 + 0.84 * fore + 0.66 * hind + 0.015 * np.sin(16 * angle) - away) * 0.7, w + 0.05)
        twin = np.random.default_rng(pattern_seed)
        skin, bump = coat(u.shape, twin, colours, pattern, 18)
        if side < 0:
            skin, bump = skin[::-1], bump[::-1]
        skin = mix(skin, colours[2], 1 - smoothstep(wing, 0.05, 0.12))
        beads = smoothstep(np.sin(22 * np.arctan2(w, u)), 0.5, 0.8) * np.exp(-(((wing - 0.05) / 0.02) ** 2))
        skin = mix(skin, mix(colours[0], (1, 1, 0.95), 0.6), beads)
        skin = dots(skin, u, w, [(0.42, 0.55), (-0.42, 0.4)], 0.09, colours[2])
        return paint_part(wing, skin, 0.3 * bump, half, 0.15, flap=0.5)

    pattern_seed = int(rng.integers(1 << 31))
    bu, bv = plane(0.7, 0.3)
    skin, bump = coat(bu.shape, rng, (colours[2], mix(colours[2], colours[0], 0.4), colours[2]), "bands", 7)
    body = paint_part(
        np.maximum(ellipse(bu, bv, -0.12, 0, 0.5, 0.09), ellipse(bu, bv, 0.4, 0, 0.14, 0.1)), skin, bump, (0.7, 0.3)
    )
    return Creature([*mirrored(pair), body], rng.uniform(54, 68), rng.uniform(0.45, 0.7), 0.85, 24)


SPECIES = {
    "koi": koi,
    "eel": eel,
    "ray": ray,
    "turtle": turtle,
    "starfish": starfish,
    "flatworm": flatworm,
    "beetle": beetle,
    "crab": crab,
    "butterfly": butterfly,
}
