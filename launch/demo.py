"""Follow the objects of the sample set in several ways; print their J&F and draw a picture of all.

python -m launch.demo weights    copies of the first mask, and the weights in the box
python -m launch.demo            the same, an untrained network, and the network that the demo trained
"""

import sys
import time
from pathlib import Path

import numpy as np

import models
from core.errors import reported
from core.evaluation import davis
from core.palette import overlay, read_ids, write_indexed, write_picture
from datasets import vos_sequences
from labelprop import Tracker, runner

DATA, RUN, OUT = Path("data/sample"), Path("runs/sample/default"), Path("results/demo")
LAYER = "res4"
PICTURED = ("koi-pond", "forest-beetles", "coral-garden")


def copy_first_masks(sequences, out):
    """Write the first mask for every frame: the baseline without a network."""
    masks = out / f"{LAYER}_vos"
    for sequence in sequences:
        ids = sequence.given()[0]
        for name in sequence.frame_names:
            write_indexed(masks / sequence.name / f"{name}.png", ids)
    return masks


def compare(sequences, masks, path):
    """Draw a sheet with a row for each way and pictured sequence, and four frames in each row."""
    rows = []
    for sequence in (s for s in sequences if s.name in PICTURED):
        frames = list(sequence.frames())
        chosen = [round(i * (len(frames) - 1) / 3) for i in range(4)]
        for folder in masks.values():
            ids = [read_ids(folder / sequence.name / f"{sequence.frame_names[t]}.png") for t in chosen]
            rows.append(np.concatenate([overlay(frames[t], mask) for t, mask in zip(chosen, ids)], axis=1))
    write_picture(path, np.concatenate(rows))


@reported
def main() -> None:
    sequences, trained = vos_sequences.sample(DATA), sys.argv[1:] != ["weights"]
    sources = {"weights in the box": models.DEFAULT}
    if trained:
        sources = {"untrained network": "untrained"} | sources | {"trained by this demo": RUN / "last.pth"}
    print(f"following the objects of {len(sequences)} sequences: {', '.join(sources)}", flush=True)
    started = time.perf_counter()
    masks = {"first mask copied": copy_first_masks(sequences, OUT / "copied")}
    for way, source in sources.items():
        # Weights may be others than in an earlier demo; those in the box were followed by the first call of two.
        anew = not trained or source == RUN / "last.pth"
        out, tracker = OUT / way.replace(" ", "_"), Tracker(models.load(source), LAYER)
        masks[way] = runner.run(sequences, tracker, out, overwrite=anew)
    compare(sequences, masks, OUT / "comparison.jpg")
    print(f"\n{'sample set, percent':<25}{'J&F':>8}{'J':>8}{'F':>8}")
    for way, folder in masks.items():
        total = davis.overall(davis.evaluate(DATA / "Annotations/480p", folder, [s.name for s in sequences]))
        print(f"{way:<25}{100 * total.jf_mean:8.1f}{100 * total.J.mean:8.1f}{100 * total.F.mean:8.1f}")
    print(
        f"\n{time.perf_counter() - started:.0f} s for propagation and scoring"
        f"\noverlays:         {folder.parent}/{LAYER}_vis/<sequence>/, and all ways in {OUT}/comparison.jpg"
    )
    if trained:
        print(f"TensorBoard log:  {RUN}/tensorboard   ({sys.executable} -m tensorboard.main --logdir runs)")


if __name__ == "__main__":
    main()
