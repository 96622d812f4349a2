"""A scene of the sample set: camera, paths, light and shadow; one frame and its object ids at a time.

World coordinates are pixels (x, y) of the ground's canvas; one world pixel is one frame pixel at zoom 1.
"""

import cv2
import numpy as np

from datasets.scenes.creatures import SPECIES
from datasets.scenes.habitats import HABITATS, prop
from datasets.scenes.parts import Pose, draw, lay
from datasets.scenes.texture import PATTERNS, mix, noise, rgb, smoothstep, tinted


def _wander(rng, frames, *periods):
    """A smooth random curve of about unit amplitude, [frames]; periods: in the clip."""
    t = np.arange(frames) / frames
    waves = [np.sin(2 * np.pi * (p * t + rng.random())) * rng.uniform(0.65, 1.3) for p in periods]
    return sum(waves) / len(periods)


class Camera:
    """Pan, zoom, roll and a slight shake.  Everything is indexed by frame."""

    def __init__(self, rng, frames, shape, canvas):
        self.frame_centre, self.world_centre = (np.array(size[::-1]) / 2 for size in (shape, canvas))
        t, angle = np.linspace(-1, 1, frames), rng.uniform(0, 2 * np.pi)
        pan = np.outer(t, [np.cos(angle), np.sin(angle)])
        pan += 0.25 * np.stack([_wander(rng, frames, 1.0, 1.7) for _ in range(2)], -1)
        shake = 0.5 * rng.standard_normal((frames, 2))
        self.centre = self.world_centre + 0.13 * np.array(shape[::-1]) * pan + shake
        self.zoom = 1.04 + rng.uniform(-0.12, 0.12) * t + 0.03 * _wander(rng, frames, 1.3)
        self.roll = np.deg2rad(3.0) * _wander(rng, frames, 0.6, 1.1)

    def matrix(self, t: int) -> np.ndarray:
        """The affine map from world to frame coordinates in frame t, [2,3]."""
        cos, sin = np.cos(self.roll[t]) * self.zoom[t], np.sin(self.roll[t]) * self.zoom[t]
        turn = np.array([[cos, -sin], [sin, cos]])
        return np.column_stack([turn, self.frame_centre - turn @ self.centre[t]])

    def see(self, pose: Pose, t: int) -> Pose:
        """A pose in the world as it is in frame t."""
        x, y = self.matrix(t) @ (pose.x, pose.y, 1)
        return Pose(x, y, pose.heading + self.roll[t], pose.scale * self.zoom[t], pose.clock)


class Scene:
    """One clip: the same rng gives the same clip.

    habitat: name in HABITATS.  animals: names in SPECIES, the topmost last; object k + 1 is animals[k].
    late: the last animal comes in from outside at about a third of the clip.
    """

    def __init__(self, rng, habitat, animals, frames, shape, late=False):
        self.habitat, self.frames, self.shape = HABITATS[habitat], frames, shape
        self.scale = shape[0] / 256  # sizes of creatures are those in a frame 256 px high
        self.canvas = (shape[0] * 3 // 2, shape[1] * 3 // 2)
        self.camera = Camera(rng, frames, shape, self.canvas)
        self.colours = tinted(rgb(self.habitat.colours), rng)
        self.light = Light(rng, frames, shape, self.habitat.water)
        self.ground = self._paint_ground(rng)
        self.actors = self._cast(rng, animals, late)
        self.over = [self._overhang(rng, name) for name in self.habitat.over]

    def _paint_ground(self, rng):
        """The ground with the props on it, RGB [h,w,3] of the canvas."""
        ground = self.habitat.ground(self.canvas, rng, self.colours)
        for name, count in self.habitat.props.items():
            for _ in range(rng.poisson(count)):
                item, place = prop(name, rng), rng.uniform(0, 1, 2) * self.canvas[::-1]
                pose = Pose(*place, rng.uniform(0, 6.3), item.size * self.scale, 0)
                lay(ground, *draw(item, pose, self.canvas), item.lift)
        return ground

    def _cast(self, rng, animals, late):
        """(creature, poses) of each animal; coats are often alike but for the pattern, and paths cross."""
        start, coats, actors = rng.uniform(0, 2 * np.pi), self.habitat.coats, []
        patterns = rng.permutation(PATTERNS).tolist()
        for index, name in enumerate(animals):
            if index == 0 or rng.random() < 0.45:
                colours = tinted(rgb(coats[rng.integers(len(coats))]), rng)
                if rng.random() < 0.3:  # camouflage: towards the ground's own colours
                    colours = mix(colours, self.colours[[2, -1, 0]], (0.5, 0.4, 1.0))
            creature = SPECIES[name](rng, colours, patterns[index])
            angle = start + 2 * np.pi * (index + rng.uniform(-0.25, 0.25)) / len(animals)
            actors.append((creature, self._path(rng, creature, angle, late and index == len(animals) - 1)))
        return actors

    def _path(self, rng, creature, angle, late):
        """The poses on a way from the side at `angle` through the middle to about the other side."""
        half, frames = np.array([0.32, 0.28]) * self.shape[::-1], self.frames
        back = angle + np.pi + rng.uniform(-0.7, 0.7)
        begin, end = (half * (np.cos(side), np.sin(side)) for side in (angle, back))
        begin = begin * 2.4 if late else begin
        t = np.linspace(0, 1, frames)
        ease = t + 0.09 * np.sin(2 * np.pi * (t + rng.random()))
        sway = 0.25 * half[1] * _wander(rng, frames, 0.9, 1.6)
        path = self.camera.world_centre + rng.uniform(-0.2, 0.2, 2) * self.shape[::-1]
        path = path + np.outer(1 - ease, begin) + np.outer(ease, end) + np.outer(sway, [-np.sin(back), np.cos(back)])
        heading = np.unwrap(np.arctan2(*np.gradient(path, axis=0).T[::-1]))
        scale = creature.size * self.scale * (1 + 0.16 * _wander(rng, frames, 0.5, 0.9))
        clock = rng.uniform(0, 6.3) + creature.beat * np.arange(frames) + 0.5 * _wander(rng, frames, 1.5)
        return [Pose(*values) for values in zip(*path.T, heading, scale, clock)]

    def _overhang(self, rng, name):
        """(creature, poses) of a prop that hangs over the animals and sways."""
        item, place = prop(name, rng), rng.uniform(0.25, 0.75, 2) * self.canvas[::-1]
        turns = rng.uniform(0, 6.3) + 0.12 * _wander(rng, self.frames, 1.0, 2.2)
        return item, [Pose(*place, turn, item.size * self.scale, 0) for turn in turns]

    def render(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Frame t: (uint8 RGB [h,w,3], ids uint8 [h,w]: the topmost object where its alpha is 0.5 or more)."""
        size = self.shape[::-1]
        frame = cv2.warpAffine(self.ground, self.camera.matrix(t), size, borderMode=cv2.BORDER_REFLECT)
        ids = np.zeros(self.shape, np.uint8)
        for ident, (creature, poses) in [*enumerate(self.actors, 1), *((0, item) for item in self.over)]:
            window, layer = draw(creature, self.camera.see(poses[t], t), self.shape)
            lay(frame, window, layer, creature.lift)
            ids[window][layer[..., 3] >= 0.5] = ident
        return self.light.develop(frame, t), ids


class Light:
    """The light of a clip: caustics under water, else moving shade; exposure, lens and sensor."""

    def __init__(self, rng, frames, shape, water):
        self.water, self.seed = water, int(rng.integers(1 << 31))
        self.waves = [noise(shape, rng, 70) if water else noise(shape, rng, 260, 3.4) for _ in range(2 if water else 1)]
        self.drift = rng.uniform(-1, 1, (2, 2)) * (3.5, 2.5)
        exposure, warmth = _wander(rng, frames, 0.5, 1.2), _wander(rng, frames, 0.5, 0.8)
        self.colour = 1 + 0.16 * exposure[:, None] + 0.05 * np.outer(warmth, [1, 0, -1])
        y, x = np.mgrid[-0.5 : 0.5 : shape[0] * 1j, -0.5 : 0.5 : shape[1] * 1j]
        self.vignette = 1.06 - 0.84 * (x**2 + y**2)

    def develop(self, frame: np.ndarray, t: int) -> np.ndarray:
        """The lit frame [h,w,3] as the camera records it, uint8."""
        rng = np.random.default_rng((self.seed, t))
        waves = [np.roll(wave, np.round(d * t).astype(int), (0, 1)) for wave, d in zip(self.waves, self.drift)]
        if self.water:
            frame = mix(frame, (0.10, 0.38, 0.40), 0.13)
            light = 0.84 + 0.55 * np.exp(-np.abs(sum(waves)) * 3.2)
        else:
            light = 0.70 + 0.42 * smoothstep(waves[0], -0.9, 0.3)
        frame = frame * (light * self.vignette)[..., None] * self.colour[t]
        frame = np.clip(1.08 * frame, 0, 1.2) ** 0.84 + 0.015 * rng.standard_normal(frame.shape, dtype=np.float32)
        return (np.clip(frame, 0, 1) * 255 + 0.5).astype(np.uint8)
