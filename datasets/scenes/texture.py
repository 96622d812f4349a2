"""Noise, patterns, colours and light that the scenes of the sample set are painted with.

Arrays are float32; colours are RGB in [0, 1]; lengths are in pixels of the array that is made.
"""

import cv2
import numpy as np

#: Direction to the light: the upper left.
LIGHT = np.array([-0.45, -0.55, 0.70], np.float32)
PATTERNS = ("patches", "bands", "spots", "labyrinth", "scales")


def rgb(text: str) -> np.ndarray:
    """Colours [K,3] from their hexadecimal names: "ff8000 102030"."""
    return np.array([tuple(bytes.fromhex(name)) for name in text.split()], np.float32) / 255


def noise(shape, rng, wavelength: float, slope: float | None = None, along: float | None = None) -> np.ndarray:
    """Smooth noise [h,w]: zero mean, unit deviation, periodic.

    slope: power is 1 / frequency^slope below `wavelength`, flat above it.  Without slope: about this wavelength
    alone, which makes spots and labyrinths, or stripes that run `along` an angle (rad).
    """
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    if along is not None:
        fx, fy = 5 * (fx * np.cos(along) + fy * np.sin(along)), fy * np.cos(along) - fx * np.sin(along)
    waves = np.hypot(fx, fy) * wavelength
    gain = np.exp(-10 * np.log(waves + 1e-9) ** 2) if slope is None else np.maximum(waves, 1) ** (-slope / 2)
    gain[0, 0] = 0
    values = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape, dtype=np.float32)) * gain, s=shape)
    return (values / values.std()).astype(np.float32)


def smoothstep(values, low: float, high: float) -> np.ndarray:
    """0 below low, 1 above high, and a smooth rise between."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def ramp(values: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """values [...] in [0,1] -> RGB [...,3] along the colours [K,3], evenly spaced."""
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(values, stops, colours[:, c]) for c in range(3)], -1).astype(np.float32)


def mix(first, second, share) -> np.ndarray:
    """first + share * (second - first); share [h,w] or a number, colours [h,w,3] or [3]."""
    share = np.asarray(share, np.float32)[..., None]
    return np.asarray(first, np.float32) * (1 - share) + np.asarray(second, np.float32) * share


def cells(shape, rng: np.random.Generator, spacing: int) -> tuple[np.ndarray, np.ndarray]:
    """Irregular cells: rim [h,w], distance to the border in spacings, and ident [h,w], a cell's number in [0,1)."""
    y, x = np.mgrid[0 : shape[0] + spacing : spacing, 0 : shape[1] + spacing : spacing]
    y, x = ((n + rng.uniform(0, 0.9 * spacing, n.shape)).astype(int) for n in (y, x))
    seeds = np.ones((y.max() + 1, x.max() + 1), np.uint8)
    seeds[y, x] = 0
    _, cell = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    row, col = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    for at in (row, col):  # so that no border is straight
        at += 0.11 * spacing * noise(shape, rng, 2 * spacing, 4)
    cell = cv2.remap(cell.astype(np.float32), col, row, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    inner = cv2.morphologyEx(cell, cv2.MORPH_GRADIENT, np.ones((3, 3))) == 0
    rim = cv2.distanceTransform(inner.astype(np.uint8), cv2.DIST_L2, 5) / spacing
    return rim, rng.random(y.size + 1, dtype=np.float32)[cell.astype(int)]


def lit(colour, height, gloss=0.0):
    """A surface's colour [h,w,3] by its relief [h,w] (px) under the scenes' light; gloss: strength of highlights."""
    gx, gy = (cv2.Sobel(np.float32(height), cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
    steepness = np.sqrt(gx**2 + gy**2 + 1)
    facing = (-LIGHT[0] * gx - LIGHT[1] * gy + LIGHT[2]) / steepness
    half_way = LIGHT + (0, 0, 1)
    half_way = half_way / np.linalg.norm(half_way)
    shine = gloss * np.clip((-half_way[0] * gx - half_way[1] * gy + half_way[2]) / steepness, 0, 1) ** 24
    return np.clip(colour * (0.43 + 0.83 * np.clip(facing, 0, None))[..., None] + shine[..., None], 0, 1)


def tinted(colours: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The colours [K,3] with one random gain of red, green and blue for all of them."""
    return np.clip(colours * np.float32(rng.uniform(0.84, 1.16, 3)), 0, 1)


def coat(shape, rng: np.random.Generator, colours, pattern: str, size: int) -> np.ndarray:
    """An animal's skin: RGB [h,w,3] of three colours (base, marking, accent) in a pattern of about `size` pixels.

    The pattern carries the identity: coats of equal colours differ in it.
    """
    base, marking, accent = colours
    if pattern == "patches":
        field, second = noise(shape, rng, 3 * size, 3.4), noise(shape, rng, 2 * size, 3.2)
        skin = mix(mix(base, marking, smoothstep(field, 0.05, 0.25)), accent, smoothstep(second, 1.0, 1.15))
    elif pattern == "scales":
        rim, ident = cells(shape, rng, round(1.4 * size))
        skin = mix(accent, mix(base, marking, 0.75 * ident), smoothstep(rim, 0.0, 0.14))
    else:
        field = noise(shape, rng, 1.6 * size, along=np.pi / 2 if pattern == "bands" else None)
        level = 0.75 if pattern == "spots" else 0.0
        skin = mix(base, marking, smoothstep(field, level - 0.18, level + 0.18))
        skin = mix(skin, accent, 0.85 * smoothstep(field, level + 0.9, level + 1.1))
    return np.clip(skin * (1 + 0.10 * noise(shape, rng, 24, 1.4)[..., None]), 0, 1)
