"""The made sample set: short clips of animals in their habitats, drawn by program, with exact masks.

    python -m datasets.sample [--out data/sample] [--seed N]

Layout (DAVIS 2017 for both splits, and YouTube-VOS for the clip in which an animal enters late):

    JPEGImages/480p/<clip>/00000.jpg ...     every clip
    Annotations/480p/<clip>/00000.png ...    the masks of the validation clips
    ImageSets/2017/train.txt                 names of the training clips; they have no masks
    ImageSets/2017/val.txt                   names of the validation clips, the late clip among them
    videos/<clip>.mp4                        the training clips once more, as video files of 24 frames a second
    valid/JPEGImages, valid/Annotations, valid/meta.json    the late clip as YouTube-VOS gives it: an object's
                                             mask at the frame of its birth alone
    sample.json                              version and settings; written last

All objects of a clip are in its first frame and ids are 1, 2, ...; but in the late clip the last object is born at
the first frame that shows half of it or more, and is not annotated before.  DAVIS' measure scores the others there.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from core.errors import UserError, reported
from core.palette import write_indexed
from datasets.scenes.habitats import HABITATS
from datasets.scenes.scene import Scene

VERSION = 2
STAMP = "sample.json"
JPEG_QUALITY = 92
VIDEO_FPS = 24
#: share of the frame that an animal of a validation clip must fill at the start
SEEN = 0.012

#: the validation clips: name -> habitat and animals, the topmost last
VALIDATION = {
    "butterflies": ("meadow", ("butterfly", "butterfly", "butterfly")),
    "coral-garden": ("reef", ("flatworm", "starfish", "eel")),
    "crabs": ("shore", ("starfish", "crab", "crab")),
    "forest-beetles": ("forest", ("beetle", "beetle")),
    "koi-pond": ("pond", ("koi", "koi", "koi", "koi")),
    "lagoon-ray": ("lagoon", ("ray",)),
    "sea-turtles": ("lagoon", ("ray", "turtle", "turtle")),
}
LATE = ("late-turtle", "pond", ("koi", "koi", "turtle"))


@dataclass(frozen=True)
class Settings:
    """What decides the set's content.  frames: of a clip; height, width: px of a frame."""

    seed: int = 0
    train_clips: int = 36
    train_frames: int = 20
    val_frames: int = 26
    height: int = 256
    width: int = 448


def make_sample(root, seed=0, workers=None, **settings):
    """Make the sample set at root, whole or not at all -> True; False where it is there already.

    settings: other fields of Settings.  workers: processes, None = one a core.  The same settings give the
    same masks and frames; with another BLAS a few frames differ by rounding.  Raises UserError where root holds
    anything else or cannot be written.
    """
    root, settings = Path(root), Settings(seed=seed, **settings)
    if _complete(root, settings):
        return False
    part = root.parent / f".{root.name}.{os.getpid()}.part"
    for left in root.parent.glob(f".{root.name}.*.part"):
        if time.time() - left.stat().st_mtime > 3600:  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        _write(part, settings, workers or os.cpu_count() or 1)
        _publish(part, root, settings)
    except OSError as error:
        raise UserError(f"{root}: the sample set cannot be written there ({error}); choose another --out") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return True


def _publish(part, root, settings):
    """Renames the finished folder; another process that was quicker is no failure."""
    try:
        os.replace(part, root)
    except OSError:
        if not _complete(root, settings):
            raise


def _complete(root, settings):
    """Whether root holds this very set.  Raises UserError where it holds anything else."""
    advice = "choose another --out, or delete it and run this again"
    if (root / STAMP).is_file():
        try:
            found = json.loads((root / STAMP).read_text())
        except ValueError:
            raise UserError(f"{root / STAMP}: damaged; delete {root} and run this again") from None
        wanted = {"version": VERSION, **asdict(settings)}
        if found == wanted:
            return True
        raise UserError(f"{root}: holds another sample set ({found}, wanted {wanted}); {advice}")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root}: holds something else than the sample set; {advice}")
    return False


def _write(root, settings, workers):
    """All clips, the lists, the stamp."""
    names = [f"clip-{index:03d}" for index in range(settings.train_clips)]
    jobs = [(root, settings, "late", LATE[0])]
    jobs += [(root, settings, "val", name) for name in VALIDATION]
    jobs += [(root, settings, "train", name) for name in names]
    if workers == 1:
        for job in jobs:
            write_clip(*job)
    else:
        # Spawned, not forked: the caller may hold threads or a GPU.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            min(workers, len(jobs)), spawn, initializer=cv2.setNumThreads, initargs=(1,)
        ) as pool:
            list(pool.map(write_clip, *zip(*jobs)))
    lists = root / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    for split, members in (("train", names), ("val", sorted([*VALIDATION, LATE[0]]))):
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in members))
    (root / STAMP).write_text(json.dumps({"version": VERSION, **asdict(settings)}, indent=1) + "\n")


def write_clip(root, settings, split, name):
    """Render one clip and write its frames, and its masks unless it is for training."""
    scene = _scene(settings, split, name)
    images, masks = root / "JPEGImages" / "480p" / name, root / "Annotations" / "480p" / name
    images.mkdir(parents=True)
    ids_T = []
    for t in range(scene.frames):
        frame, ids = scene.render(t)
        path = str(images / f"{t:05d}.jpg")
        if not cv2.imwrite(path, frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
            raise OSError(f"{path} cannot be written")
        ids_T.append(ids)
    if split == "train":
        _write_video(root / "videos" / f"{name}.mp4", images)
        return
    births = _births(ids_T, len(scene.actors))
    for t, ids in enumerate(ids_T):
        for ident, birth in births.items():
            ids[(ids == ident) & (t < birth)] = 0
        write_indexed(masks / f"{t:05d}.png", ids)
    if split == "late":
        _write_valid(root / "valid", name, images, ids_T, births)


def _write_video(path, images):
    """The frames of a folder as an mp4 file."""
    path.parent.mkdir(exist_ok=True)
    frames = [cv2.imread(str(image)) for image in sorted(images.iterdir())]
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), VIDEO_FPS, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()
    if not path.exists():
        raise OSError(f"{path} cannot be written")


def _births(ids_T, objects):
    """id -> first frame that shows at least half of the most that is ever seen of it."""
    births = {}
    for ident in range(1, objects + 1):
        areas = np.array([(ids == ident).sum() for ids in ids_T])
        births[ident] = 0 if areas[0] > 0 else int(np.argmax(areas >= areas.max() / 2))
    return births


def _write_valid(valid, name, images, ids_T, births):
    """The clip in the layout of YouTube-VOS' valid/: masks at the births alone, each with the newborn only."""
    shutil.copytree(images, valid / "JPEGImages" / name)
    for birth in sorted(set(births.values())):
        newborn = [ident for ident in births if births[ident] == birth]
        write_indexed(
            valid / "Annotations" / name / f"{birth:05d}.png", ids_T[birth] * np.isin(ids_T[birth], newborn)
        )
    frames = [f"{t:05d}" for t in range(len(ids_T))]
    objects = {
        str(ident): {"category": animal, "frames": frames[births[ident] :]}
        for (ident, animal) in enumerate(LATE[2], 1)
    }
    (valid / "meta.json").write_text(json.dumps({"videos": {name: {"objects": objects}}}, indent=1) + "\n")


def _scene(settings, split, name):
    """The clip's scene.  Where animals must be seen, scenes in which one is not are drawn anew."""
    shape = (settings.height, settings.width)
    frames = settings.train_frames if split == "train" else settings.val_frames
    label = int.from_bytes(f"{split}/{name}".encode(), "little")
    for attempt in range(500):
        rng = np.random.default_rng((settings.seed, label, attempt))
        if split == "train":
            habitat = list(HABITATS)[int(name[-3:]) % len(HABITATS)]
            animals = rng.choice(HABITATS[habitat].animals, rng.integers(2, 5)).tolist()
            return Scene(rng, habitat, animals, frames, shape)
        habitat, animals = LATE[1:] if split == "late" else VALIDATION[name]
        scene = Scene(rng, habitat, animals, frames, shape, late=split == "late")
        if _well_seen(scene, late=split == "late"):
            return scene
    raise AssertionError(f"{name}: no scene shows all its animals")


def _well_seen(scene, late):
    """Whether every animal is clearly seen throughout; the late one: not at the start, but in the second half."""
    least = SEEN * scene.shape[0] * scene.shape[1]
    for t in range(0, scene.frames, max(1, scene.frames // 6)):
        areas = np.bincount(scene.ids(t).ravel(), minlength=len(scene.actors) + 1)[1:]
        if late and t < scene.frames // 2:
            if t <= scene.frames // 6 and areas[-1] > 0:
                return False
            areas = areas[:-1]
        if (areas < (least if t == 0 else least / 4)).any():
            return False
    return True


@reported
def main():
    parser = argparse.ArgumentParser(description="Make the sample set (DAVIS layout, seeded).")
    parser.add_argument("--out", default="data/sample", help="folder to make (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another set (default: 0)")
    args = parser.parse_args()
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must be 0 or more")
    made = make_sample(args.out, args.seed)
    print(f"{args.out}: {'made' if made else 'is complete already'}")


if __name__ == "__main__":
    main()
