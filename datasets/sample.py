"""The made sample set: short clips of animals in their habitats, drawn by program, with exact masks.

    python -m datasets.sample [--out data/sample] [--seed N]

Layout (DAVIS 2017, and under valid/ the clip in which an animal enters late as YouTube-VOS gives it):

    JPEGImages/480p/<clip>/00000.jpg ...     every clip
    Annotations/480p/<clip>/00000.png ...    the masks of the validation clips
    ImageSets/2017/{train,val}.txt           names of the clips; the training clips have no masks
    videos/<clip>.mp4                        the training clips once more, as video files of 24 frames a second
    valid/{JPEGImages,Annotations,meta.json} the late clip; an object's mask at the frame of its birth alone
    sample.json                              version and settings; written last

All objects of a clip are in its first frame, and their ids are 1, 2, ...  Only in the late clip the last object is born
at the first frame that shows half of it or more, and is not annotated before; DAVIS' measure does not score it.
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

VERSION = 3
STAMP = "sample.json"
#: The validation clips: name -> habitat and animals, the topmost last; in the late clip the last animal enters late.
VALIDATION = {
    "coral-garden": ("reef", ("turtle", "eel", "koi")),
    "forest-beetles": ("forest", ("beetle", "beetle")),
    "koi-pond": ("pond", ("koi", "koi", "koi", "koi")),
    "lagoon-eel": ("lagoon", ("eel",)),
    "late-turtle": ("pond", ("koi", "koi", "turtle")),
    "moss-beetles": ("forest", ("beetle", "beetle", "beetle")),
    "reef-eels": ("reef", ("koi", "eel", "eel")),
    "sea-turtles": ("lagoon", ("eel", "turtle", "turtle")),
}
LATE = "late-turtle"


@dataclass(frozen=True)
class Settings:
    """The settings that decide the set's content: numbers of clips, frames of a clip, height and width in px."""

    seed: int = 0
    train_clips: int = 36
    train_frames: int = 20
    val_frames: int = 26
    height: int = 256
    width: int = 448


def make_sample(root: str | Path, seed: int = 0, workers: int | None = None, **settings: int) -> bool:
    """Make the sample set at root, whole or not at all.  Returns False where the set is there already, else True.

    settings: other fields of Settings.  workers: processes, None = one a core.  The same settings give the same masks
    and frames, up to rounding on other processors.  Raises UserError where root holds anything else or cannot be
    written.
    """
    root, wanted = Path(root), Settings(seed=seed, **settings)
    if _complete(root, wanted):
        return False
    part = root.parent / f".{root.name}.{os.getpid()}.part"
    for left in root.parent.glob(f".{root.name}.*.part"):
        if time.time() - left.stat().st_mtime > 3600:  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        _write(part, wanted, workers or os.cpu_count() or 1)
        os.replace(part, root)
    except OSError as error:
        if not _complete(root, wanted):  # else another process was quicker
            raise UserError(f"{root}: the set cannot be written there ({error}); choose another --out") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return True


def _complete(root, settings):
    """Whether root holds the set of these settings.  Raises UserError where it holds anything else."""
    advice = "choose another --out, or delete it and run this again"
    if (root / STAMP).is_file():
        try:
            found = json.loads((root / STAMP).read_text())
        except ValueError:
            raise UserError(f"{root / STAMP}: damaged; delete {root} and run this again") from None
        wanted = {"version": VERSION, **asdict(settings)}
        if found != wanted:
            raise UserError(f"{root}: holds another sample set ({found}, wanted {wanted}); {advice}")
        return True
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root}: holds something else than the sample set; {advice}")
    return False


def _write(root, settings, workers):
    """Write all clips, the lists and the stamp."""
    splits = {"train": [f"clip-{index:03d}" for index in range(settings.train_clips)], "val": sorted(VALIDATION)}
    jobs = [(root, settings, name) for name in [*splits["val"], *splits["train"]]]
    if workers == 1:
        for job in jobs:
            write_clip(*job)
    else:
        spawn = multiprocessing.get_context("spawn")  # not forked: the caller may hold threads or a GPU
        with ProcessPoolExecutor(workers, spawn, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            list(pool.map(write_clip, *zip(*jobs)))
    lists = root / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    for split, names in splits.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    (root / STAMP).write_text(json.dumps({"version": VERSION, **asdict(settings)}, indent=1) + "\n")


def write_clip(root: Path, settings: Settings, name: str) -> None:
    """Render one clip; write its frames, and its masks (a validation clip) or its video file (a training clip)."""
    frames, ids_T = _render(settings, name)
    images, masks = root / "JPEGImages" / "480p" / name, root / "Annotations" / "480p" / name
    images.mkdir(parents=True)
    for t, frame in enumerate(frames):
        path = str(images / f"{t:05d}.jpg")
        if not cv2.imwrite(path, frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise OSError(f"{path} cannot be written")
    if name not in VALIDATION:
        _write_video(root / "videos" / f"{name}.mp4", frames)
        return
    if name == LATE:
        last = len(VALIDATION[LATE][1])
        areas = np.array([(ids == last).sum() for ids in ids_T])
        birth = int(np.argmax(areas >= areas.max() / 2))
        for ids in ids_T[:birth]:
            ids[ids == last] = 0
        _write_valid(root / "valid", images, ids_T, birth)
    for t, ids in enumerate(ids_T):
        write_indexed(masks / f"{t:05d}.png", ids)


def _write_video(path, frames):
    """Write the frames as an mp4 file."""
    path.parent.mkdir(exist_ok=True)
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 24, (width, height))
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    if not path.exists():
        raise OSError(f"{path} cannot be written")


def _write_valid(valid, images, ids_T, birth):
    """Write the late clip in the layout of YouTube-VOS' valid/: every mask holds only the objects born at its frame."""
    shutil.copytree(images, valid / "JPEGImages" / LATE)
    animals = VALIDATION[LATE][1]
    newborn = {0: ids_T[0], birth: np.where(ids_T[birth] == len(animals), ids_T[birth], np.uint8(0))}
    for t, ids in newborn.items():
        write_indexed(valid / "Annotations" / LATE / f"{t:05d}.png", ids)
    objects = {}
    for ident, animal in enumerate(animals, 1):
        first = birth if ident == len(animals) else 0
        objects[str(ident)] = {"category": animal, "frames": [f"{t:05d}" for t in range(first, len(ids_T))]}
    (valid / "meta.json").write_text(json.dumps({"videos": {LATE: {"objects": objects}}}, indent=1) + "\n")


def _render(settings, name):
    """The clip's frames and ids.  A validation clip is drawn again until all its animals are well seen."""
    shape = (settings.height, settings.width)
    for attempt in range(500):
        rng = np.random.default_rng((settings.seed, *name.encode(), attempt))
        if name in VALIDATION:
            scene = Scene(rng, *VALIDATION[name], settings.val_frames, shape, late=name == LATE)
        else:
            habitat = list(HABITATS)[int(name[-3:]) % len(HABITATS)]
            animals = rng.choice(HABITATS[habitat].animals, rng.integers(2, 5)).tolist()
            scene = Scene(rng, habitat, animals, settings.train_frames, shape)
        frames, ids_T = zip(*(scene.render(t) for t in range(scene.frames)))
        if name not in VALIDATION or _well_seen(ids_T, len(scene.actors), name == LATE):
            return frames, ids_T
    raise AssertionError(f"{name}: no scene shows all its animals")


def _well_seen(ids_T, count, late):
    """Whether every animal is clearly seen throughout; the late one: not at the start, but in the second half."""
    least, half = 0.012 * ids_T[0].size, len(ids_T) // 2
    areas_TN = np.stack([np.bincount(ids.ravel(), minlength=count + 1)[1:] for ids in ids_T])
    if late:
        if areas_TN[: half // 3 + 1, -1].any():
            return False
        areas_TN[:half, -1] = least + 1
    return (areas_TN[0] >= least).all() and (areas_TN >= least / 4).all()


@reported
def main() -> None:
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
