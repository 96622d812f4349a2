"""Noise, patterns, colours and relief: what the scenes of the sample set are painted with.

Arrays are float32; colours are RGB in [0, 1]; lengths are in pixels of the array that is made.
"""

import cv2
import numpy as np


def _shaped_noise(shape, rng, gain):
    """White noise [h,w] with its spectrum multiplied by gain [h,w//2+1]; zero mean, unit deviation, periodic."""
    spectrum = np.fft.rfft2(rng.standard_normal(shape, dtype=np.float32)) * gain.astype(np.float32)
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=shape)
    return (noise / (noise.std() + 1e-9)).astype(np.float32)


def _frequencies(shape):
    return np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]


def fractal(shape, rng, slope=2.2, longest=None):
    """Noise of all octaves, power 1 / frequency^slope, flat above the wavelength `longest`.  [h,w], unit deviation."""
    fy, fx = _frequencies(shape)
    floor = 1.0 / (longest or max(shape))
    return _shaped_noise(shape, rng, np.maximum(np.hypot(fy, fx), floor) ** (-slope / 2))


def band(shape, rng, wavelength, spread=0.25, stretch=1.0, angle=0.0):
    """Noise of about one wavelength: spots and labyrinths; stretch > 1 makes stripes that run along `angle` (rad)."""
    fy, fx = _frequencies(shape)
    along, across = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
    octaves = np.log(np.hypot(along * stretch, across) * wavelength + 1e-9)
    return _shaped_noise(shape, rng, np.exp(-0.5 * (octaves / spread) ** 2))


def smoothstep(values, low, high):
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def unit(values):
    """Values stretched to [0, 1] between their 1st and 99th percentile."""
    low, high = np.percentile(values, (1, 99))
    return np.clip((values - low) / (high - low + 1e-9), 0, 1)


def ramp(values, colours):
    """values [...] in [0,1] -> RGB [...,3] along the colours [K,3], evenly spaced."""
    colours = np.asarray(colours, np.float32)
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(values, stops, colours[:, c]) for c in range(3)], -1).astype(np.float32)


def mix(first, second, share):
    """first + share * (second - first); share [h,w] or a number, colours [h,w,3] or [3]."""
    share = np.asarray(share, np.float32)[..., None]
    return np.asarray(first, np.float32) * (1 - share) + np.asarray(second, np.float32) * share


def cells(shape, rng, spacing):
    """Irregular cells (a jittered grid's Voronoi cells): (rim, ident).

    rim [h,w]: distance to the second nearest seed minus that to the nearest, in spacings, 0 on the borders.
    ident [h,w]: a number in [0,1) that a cell's pixels share.
    """
    rows, cols = (int(np.ceil(n / spacing)) + 3 for n in shape)
    jitter = rng.uniform(0.08, 0.92, (rows, cols, 2)).astype(np.float32)
    name = rng.random((rows, cols), dtype=np.float32)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32) / spacing + 1
    row, col = y.astype(int), x.astype(int)
    first = np.full(shape, 9, np.float32)
    second, ident = first.copy(), np.zeros(shape, np.float32)
    for dr in (-1, 0, 1):
        for dc in (-1, 0, 1):
            seed = jitter[row + dr, col + dc]
            away = np.hypot(row + dr + seed[..., 0] - y, col + dc + seed[..., 1] - x)
            nearer = away < first
            second = np.where(nearer, first, np.minimum(second, away))
            ident = np.where(nearer, name[row + dr, col + dc], ident)
            first = np.minimum(first, away)
    return second - first, ident


def swirl(image, rng, strength, longest=90):
    """The image [h,w(,C)] with its places shifted by smooth noise of `strength` pixels, so that nothing is straight."""
    h, w = image.shape[:2]
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    x += strength * fractal((h, w), rng, 4, longest)
    y += strength * fractal((h, w), rng, 4, longest)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def normals(height, strength):
    """Unit normals [h,w,3] (x, y, towards the viewer) of a relief [h,w]."""
    height = np.float32(height)
    gx = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=strength / 8)
    gy = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=strength / 8)
    slope = np.stack([-gx, -gy, np.ones_like(gx)], -1)
    return slope / np.linalg.norm(slope, axis=-1, keepdims=True)


def shifted_hue(colours, rng, degrees=14, value=0.12):
    """The colours [K,3] with one random turn of the hue and one gain of saturation and of value for all of them."""
    hsv = cv2.cvtColor(np.asarray(colours, np.float32)[None], cv2.COLOR_RGB2HSV)[0]
    hsv[:, 0] = (hsv[:, 0] + rng.uniform(-degrees, degrees)) % 360
    hsv[:, 1:] = np.clip(hsv[:, 1:] * rng.uniform(1 - value, 1 + value, 2), 0, 1)
    return cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0]


PATTERNS = ("patches", "stripes", "bands", "spots", "labyrinth", "scales")


def coat(shape, rng, colours, pattern, size):
    """An animal's skin: RGB [h,w,3] of three colours (base, marking, accent) in a pattern of about `size` pixels.

    Returns also its relief [h,w].  The pattern carries the identity: coats of equal colours differ in it.
    """
    base, marking, accent = np.asarray(colours, np.float32)
    if pattern == "patches":
        field, second = fractal(shape, rng, 3.4, 3 * size), fractal(shape, rng, 3.2, 2 * size)
        skin = mix(mix(base, marking, smoothstep(field, 0.05, 0.25)), accent, smoothstep(second, 1.0, 1.15))
        bump = 0.1 * field
    elif pattern == "scales":
        rim, ident = cells(shape, rng, 1.4 * size)
        skin = mix(mix(base, marking, 0.75 * ident), accent, 1 - smoothstep(rim, 0.02, 0.16))
        bump = smoothstep(rim, 0, 0.5)
    else:
        stretch, angle = {"stripes": (5, 0.0), "bands": (5, np.pi / 2)}.get(pattern, (1, 0.0))
        field = band(shape, rng, 1.6 * size, 0.22, stretch, angle + rng.normal(0, 0.12))
        level = 0.75 if pattern == "spots" else 0.0
        skin = mix(base, marking, smoothstep(field, level - 0.18, level + 0.18))
        core = smoothstep(field, level + 0.9, level + 1.1)
        skin = mix(skin, accent, 0.85 * core)
        bump = 0.25 * smoothstep(field, level - 0.3, level + 0.3)
    grain = fractal(shape, rng, 1.4, 24)
    return np.clip(skin * (1 + 0.10 * grain[..., None]), 0, 1).astype(np.float32), bump + 0.05 * grain
