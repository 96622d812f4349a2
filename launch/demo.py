"""The demo's last part: three ways to follow the sample set's objects, their J&F, and a picture of each."""

import sys
import time
from pathlib import Path

import numpy as np

from core.errors import reported
from core.evaluation import davis
from core.palette import overlay, read_ids, write_indexed, write_picture
from datasets import vos_sequences
from labelprop import runner
from models import snapshots

DATA, RUN, OUT = Path("data/sample"), Path("runs/sample/default"), Path("results/demo")
KEY = "res4"
PICTURED = ("koi-pond", "forest-beetles", "coral-garden")


def copy_first_masks(sequences, out):
    """The baseline that needs no network: nothing moves."""
    masks = out / f"{KEY}_vos"
    for sequence in sequences:
        ids = sequence.given()[0]
        for name in sequence.frame_names:
            write_indexed(masks / sequence.name / f"{name}.png", ids)
    return masks


def follow(checkpoint, sequences, out):
    """Propagate with a network's features -> the folder of masks."""
    config_path = "configs/sample.yaml" if checkpoint == "untrained" else None
    method, config = snapshots.restore(checkpoint, config_path)
    return runner.run(sequences, method.extractor(KEY), config.propagation, out, KEY, overwrite=True)


def compare(sequences, masks, path):
    """A sheet: for each pictured sequence a row per way, its columns four moments."""
    rows = []
    for sequence in (s for s in sequences if s.name in PICTURED):
        frames = list(sequence.frames())
        chosen = [round(i * (len(frames) - 1) / 3) for i in range(4)]
        for folder in masks.values():
            ids = [read_ids(folder / sequence.name / f"{sequence.frame_names[t]}.png") for t in chosen]
            rows.append(np.concatenate([overlay(frames[t], mask) for t, mask in zip(chosen, ids)], axis=1))
    write_picture(path, np.concatenate(rows))


@reported
def main():
    sequences = vos_sequences.sample(DATA)
    print(f"following the objects of {len(sequences)} sequences with {KEY} features, untrained and trained", flush=True)
    started = time.perf_counter()
    masks = {
        "first mask copied": copy_first_masks(sequences, OUT / "copied"),
        "untrained network": follow("untrained", sequences, OUT / "untrained"),
        "trained network": follow(RUN / "last.pth", sequences, OUT / "trained"),
    }
    scores = {way: davis.evaluate(DATA / "Annotations/480p", folder, [s.name for s in sequences])
              for way, folder in masks.items()}
    compare(sequences, masks, OUT / "comparison.jpg")
    print(f"\n{'sample set, percent':<22}{'J&F':>8}{'J':>8}{'F':>8}")
    for way, each in scores.items():
        total = davis.overall(each)
        print(f"{way:<22}{100 * total.jf_mean:8.1f}{100 * total.J.mean:8.1f}{100 * total.F.mean:8.1f}")
    print(
        f"\n{time.perf_counter() - started:.0f} s for propagation and scoring"
        f"\noverlays:         {OUT}/trained/{KEY}_vis/<sequence>/, and all three ways in {OUT}/comparison.jpg"
        f"\nTensorBoard log:  {RUN}/tensorboard   ({sys.executable} -m tensorboard.main --logdir runs)"
    )


if __name__ == "__main__":
    main()
