"""A scene of the sample set: camera, paths, light and shadow; one frame and its object ids at a time.

World coordinates are pixels (x, y) of the ground's canvas; one world pixel is one frame pixel at zoom 1.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from datasets.scenes.creatures import SPECIES
from datasets.scenes.draw import Pose, cast_shadow, draw, lay, streak
from datasets.scenes.habitats import GROUNDS, HABITATS, prop
from datasets.scenes.parts import Creature
from datasets.scenes.texture import PATTERNS, band, fractal, mix, shifted_hue, smoothstep

#: share of a frame's time that the shutter is open
SHUTTER = 0.35


def _wander(rng, frames, periods):
    """A smooth random curve of about unit amplitude, [frames + 1]."""
    t = np.arange(frames + 1) / frames
    waves = [np.sin(2 * np.pi * (p * t + rng.random())) * rng.uniform(0.5, 1) for p in periods]
    return sum(waves) / len(periods) * 1.3


class Camera:
    """Pan, zoom, roll and a slight shake.  Everything is indexed by frame."""

    def __init__(self, rng, frames, shape, canvas, pan=1.0):
        t = np.arange(frames + 1) / frames - 0.5
        angle = rng.uniform(0, 2 * np.pi)
        self.shape = shape
        reach = np.array([0.13 * shape[1], 0.13 * shape[0]]) * pan
        shake = cv2.GaussianBlur(rng.standard_normal((frames + 1, 2)), (1, 0), 0, sigmaY=0.7) * 0.9
        self.centre = (
            np.array(canvas[::-1]) / 2
            + np.stack(
                [
                    reach[0] * (2 * np.cos(angle) * t + 0.25 * _wander(rng, frames, (1.0, 1.7))),
                    reach[1] * (2 * np.sin(angle) * t + 0.25 * _wander(rng, frames, (1.0, 1.7))),
                ],
                -1,
            )
            + shake
        )
        self.zoom = 1.04 + rng.uniform(-0.12, 0.12) * t * 2 + 0.03 * _wander(rng, frames, (1.3,))
        self.roll = np.deg2rad(3.0) * _wander(rng, frames, (0.6, 1.1))

    def matrix(self, t, parallax=1.0):
        """World -> frame, [2,3].  parallax > 1: for things nearer than the ground."""
        cos, sin = np.cos(self.roll[t]) * self.zoom[t], np.sin(self.roll[t]) * self.zoom[t]
        turn = np.array([[cos, -sin], [sin, cos]])
        middle = self.centre.mean(0)
        away = np.array(self.shape[::-1]) / 2 - turn @ (middle + parallax * (self.centre[t] - middle))
        return np.hstack([turn, away[:, None]])


@dataclass(frozen=True)
class Actor:
    """A creature with its poses in the world, one a frame and one more (for the blur of the last)."""

    creature: Creature
    poses: list
    parallax: float = 1.0

    def pose(self, camera, t):
        pose, matrix = self.poses[t], camera.matrix(t, self.parallax)
        x, y = matrix @ (pose.x, pose.y, 1)
        return Pose(x, y, pose.heading + camera.roll[t], pose.scale * camera.zoom[t], pose.clock)


class Scene:
    """One clip: the same rng gives the same clip.

    habitat: name in HABITATS.  animals: names in SPECIES, the topmost last; object k + 1 is animals[k].
    late: the last animal comes in from outside at about a third of the clip.
    """

    def __init__(self, rng, habitat, animals, frames, shape, late=False):
        self.habitat, self.shape, self.frames = HABITATS[habitat], shape, frames
        self.scale = shape[0] / 256  # sizes of creatures are those in a frame 256 px high
        self.canvas = (shape[0] * 15 // 8, shape[1] * 13 // 8)
        self.camera = Camera(rng, frames, shape, self.canvas)
        self.noise_seed = int(rng.integers(1 << 31))
        self.colours = shifted_hue(self.habitat.colours, rng, 10)
        self._ground_rng, over_rng, light_rng = rng.spawn(3)
        self.actors = self._cast(rng, animals, self.colours, late)
        self.over = self._overhang(over_rng)
        self._light(light_rng)

    @cached_property
    def ground(self):
        """The painted ground with all that lies on it, RGB [h,w,3] of the canvas."""
        rng = self._ground_rng
        ground = GROUNDS[self.habitat.paint](self.canvas, rng, self.colours).astype(np.float32)
        self._scatter(rng, ground)
        return ground

    def _scatter(self, rng, ground):
        """Lays the props on the ground, with their shadows."""
        h, w = self.canvas
        for name, count in self.habitat.props.items():
            kinds = [prop(name, rng) for _ in range(min(count, 5))]
            for _ in range(rng.poisson(count)):
                item = kinds[rng.integers(len(kinds))]
                size = item.size * rng.uniform(0.7, 1.3) * self.scale
                pose = Pose(rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0, 6.3), size, 0)
                box, layer = draw(item, pose, (h, w), margin=6)
                if not box.empty:
                    cast_shadow(ground, box, layer[..., 3], 2.5, 0.5)
                    lay(ground, box, layer)

    def _cast(self, rng, animals, ground_colours, late):
        """The animals with their coats and paths; their paths cross near the middle of the clip."""
        start, coats, actors = rng.uniform(0, 2 * np.pi), self.habitat.coats, []
        for index, name in enumerate(animals):
            if index == 0 or rng.random() < 0.45:
                colours = shifted_hue(coats[rng.integers(len(coats))], rng, 12)
                if rng.random() < 0.3:  # camouflage: towards the ground's own colours
                    colours = np.array(
                        [
                            mix(colours[0], ground_colours[2], 0.5),
                            mix(colours[1], ground_colours[-1], 0.4),
                            ground_colours[0],
                        ]
                    )
                used = []
            pattern = rng.choice([p for p in PATTERNS if p not in used])
            used.append(pattern)
            creature = SPECIES[name](rng, [np.float32(c) for c in colours], str(pattern))
            angle = start + 2 * np.pi * (index + rng.uniform(-0.25, 0.25)) / len(animals)
            actors.append(Actor(creature, self._path(rng, creature, angle, late and index == len(animals) - 1)))
        return actors

    def _path(self, rng, creature, angle, late):
        h, w = self.shape
        t = np.arange(-1, self.frames + 2) / self.frames
        out = np.array([np.cos(angle), np.sin(angle)])
        back = angle + np.pi + rng.uniform(-0.7, 0.7)
        half = np.array([w, h]) * (0.36, 0.30)
        travel = creature.speed / 0.85
        begin, end = out * half, np.array([np.cos(back), np.sin(back)]) * half
        centre = rng.uniform(-0.22, 0.22, 2) * (w, h)
        if late:
            begin = out / np.abs(out / (np.array([w, h]) / 2 + creature.size * self.scale * 1.3)).max() * 1.25
        if creature.speed < 0.3:  # what creeps stays near its place, whatever the camera does
            centre = begin
        begin, end = centre + (begin - centre) * (1 if late else travel**0.4), centre + (end - centre) * travel
        ease = (t + 0.09 * np.sin(2 * np.pi * (t + rng.random())))[:, None]
        middle = 2 * centre - (begin + end) / 2
        path = (1 - ease) ** 2 * begin + 2 * ease * (1 - ease) * middle + ease**2 * end
        if creature.speed < 0.3:
            path = begin + (end - begin) * ease
        sway = _wander(rng, self.frames + 2, (1.3, 2.1)) * 0.02 * w * min(1, travel)
        path = path + np.stack([-np.sin(back) * sway, np.cos(back) * sway], -1)
        follow = self.camera.centre[[0, *range(self.frames + 1), self.frames]]
        world = path + (follow if creature.speed >= 0.3 else follow.mean(0))
        step = cv2.GaussianBlur(np.gradient(path if creature.speed < 0.3 else world, axis=0), (1, 0), 0, sigmaY=2.4)
        heading = np.unwrap(np.arctan2(step[:, 1], step[:, 0])) + (np.pi / 2 if creature.sideways else 0)
        if creature.speed < 0.3:
            heading = rng.uniform(0, 6.3) + 0.5 * _wander(rng, self.frames + 2, (0.7,))
        scale = creature.size * self.scale * (1 + 0.16 * _wander(rng, self.frames + 2, (0.5, 0.9)))
        clock = rng.uniform(0, 6.3) + creature.beat * np.arange(len(t)) + 0.5 * _wander(rng, self.frames + 2, (1.5,))
        return [Pose(*world[i], heading[i], scale[i], clock[i]) for i in range(1, self.frames + 2)]

    def _overhang(self, rng):
        h, w = self.canvas
        actors = []
        for name in self.habitat.over:
            item, place = prop(name, rng), rng.uniform(0.2, 0.8, 2) * (w, h)
            turn, sway = rng.uniform(0, 6.3), 0.12 * _wander(rng, self.frames, (1.0, 2.2))
            size = item.size * rng.uniform(0.9, 1.25) * self.scale
            actors.append(Actor(item, [Pose(*place, turn + s, size, 0) for s in sway], 1.25))
        return actors

    def _light(self, rng):
        h, w = self.shape
        self.waves = (
            [band((h, w), rng, 70, 0.35) for _ in range(2)]
            if self.habitat.water
            else [fractal((h, w), rng, 3.4, 260)]
        )
        self.drift = rng.uniform(-1, 1, (2, 2)) * (3.5, 2.5)
        self.exposure = 1 + 0.16 * _wander(rng, self.frames, (0.5, 1.2))
        self.warmth = 0.05 * _wander(rng, self.frames, (0.5, 0.8))
        y, x = np.mgrid[0:h, 0:w].astype(np.float32)
        away = ((x / w - 0.5) ** 2 + (y / h - 0.5) ** 2) * 2
        side = rng.uniform(0, 2 * np.pi)
        slope = 0.12 * ((x / w - 0.5) * np.cos(side) + (y / h - 0.5) * np.sin(side))
        self.vignette = (1.06 - 0.42 * away + slope)[..., None].astype(np.float32)

    def _illumination(self, t):
        """Factor [h,w,1]: caustics under water, else the moving shade of leaves and clouds."""
        moved = [np.roll(wave, tuple(np.round(d * t).astype(int)), (0, 1)) for wave, d in zip(self.waves, self.drift)]
        if self.habitat.water:
            web = np.exp(-np.abs(moved[0] + moved[1]) * 3.2)
            return (0.84 + 0.55 * web)[..., None]
        return (0.70 + 0.42 * smoothstep(moved[0], -0.9, 0.3))[..., None]

    def _stack(self):
        """(id, actor) from the lowest to the topmost; what hangs over the animals has id 0."""
        return [*enumerate(self.actors, 1), *((0, actor) for actor in self.over)]

    def ids(self, t):
        """The ids that render gives, without the picture."""
        ids = np.zeros(self.shape, np.uint8)
        for ident, actor in self._stack():
            box, layer = draw(actor.creature, actor.pose(self.camera, t), self.shape)
            if not box.empty:
                ids[box.slices][layer[..., 3] >= 0.5] = ident
        return ids

    def render(self, t):
        """Frame t: (uint8 RGB [h,w,3], ids uint8 [h,w]: the topmost object where its alpha is 0.5 or more)."""
        h, w = self.shape
        frame = cv2.warpAffine(
            self.ground, self.camera.matrix(t), (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        here, there = self.camera.matrix(t), self.camera.matrix(t + 1)
        flow = SHUTTER * (there - here) @ np.array([*self.camera.centre[t], 1])
        kernel = streak(*flow)
        frame = frame if kernel is None else cv2.filter2D(frame, -1, kernel)
        ids = np.zeros((h, w), np.uint8)
        for ident, actor in self._stack():
            self._place(frame, ids, ident, actor, t)
        return self._develop(frame, t), ids

    def _place(self, frame, ids, ident, actor, t):
        """Draws one actor with its shadow onto frame and ids, in place."""
        pose, following = actor.pose(self.camera, t), actor.pose(self.camera, t + 1)
        box, layer = draw(actor.creature, pose, self.shape, margin=2 * actor.creature.lift + 12)
        if box.empty:
            return
        ids[box.slices][layer[..., 3] >= 0.5] = ident
        cast_shadow(frame, box, layer[..., 3], actor.creature.lift, 0.5)
        kernel = streak(SHUTTER * (following.x - pose.x), SHUTTER * (following.y - pose.y))
        lay(frame, box, layer if kernel is None else cv2.filter2D(layer, -1, kernel, borderType=cv2.BORDER_REPLICATE))

    def _develop(self, frame, t):
        """Light, colour of the water, exposure, the lens and the sensor."""
        rng = np.random.default_rng((self.noise_seed, t))
        frame = frame * self._illumination(t) * self.vignette
        if self.habitat.water:
            frame = mix(frame, (0.10, 0.38, 0.40), 0.13)
        frame *= self.exposure[t] * np.array([1 + self.warmth[t], 1, 1 - self.warmth[t]], np.float32)
        frame = np.clip(1.08 * frame, 0, 1.2) ** 0.84
        grain = rng.standard_normal((*self.shape, 1), dtype=np.float32) * 0.012
        grain = grain + rng.standard_normal(frame.shape, dtype=np.float32) * 0.009
        return (np.clip(frame + grain, 0, 1) * 255 + 0.5).astype(np.uint8)
