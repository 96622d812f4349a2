"""Does a device compute the same as the CPU, and how much faster is it?

    python -m benchmarks.devices [--device cuda] [--data data/sample] [--steps 3] [--repeats 3]

On the made sample set, features of every layer, masks of a sequence and losses of the first training steps are compared
with the CPU's in float32.  Times are medians; the devices take turns.  The exit code is 1 if a difference is larger
than allowed.
"""

import sys
from functools import partial
from itertools import islice

import numpy as np
import torch

import models
from benchmarks import timing
from benchmarks.training import Training
from core import devices
from core.errors import reported
from datasets import clip, vos_sequences
from labelprop import Tracker

# TF32 convolutions, torch's default on a GPU, keep 10 bits of the mantissa.
FEATURE_BOUND, PIXEL_BOUND, LOSS_BOUND = 5e-3, 0.01, 0.02


def features(settings, frames, device):
    """The features of every layer, flat in one array."""
    extractor = models.build(settings).eval().to(device).extractor
    with torch.no_grad():
        return np.concatenate([extractor(frames.to(device), name).cpu().numpy().ravel() for name in extractor.layers])


def masks(settings, sequence, count, device):
    """The ids [T,H,W] of the first `count` frames, None = all."""
    tracker = Tracker(models.build(settings).extractor, device=device, precision="fp32")
    return np.stack(list(tracker.segment(islice(sequence.frames(), count), {0: sequence.given()[0]})))


def losses(settings, batches, device):
    """The total loss of every step."""
    return Training(settings, batches, device).advance(len(batches))


@reported
def main(argv=None):
    parser = timing.arguments(__doc__, repeats=3)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a dry run")
    parser.add_argument("--data", default="data/sample")
    parser.add_argument("--steps", type=timing.count, default=3)
    parser.add_argument("--frames", type=timing.count, help="of the sequence (default: all)")
    args = parser.parse_args(argv)
    device = devices.pick(args.device)
    lists = [f"data.root={args.data}/JPEGImages/480p", f"data.list={args.data}/ImageSets/2017/train.txt"]
    settings = models.read_config("configs/sample.yaml", [*lists, "optim.precision=fp32", "data.workers=0"])
    frame = torch.rand(1, 3, 480, 854, generator=torch.Generator().manual_seed(0))
    (sequence, *_) = vos_sequences.davis(args.data)
    views = models.METHODS[settings.method.name].Views(settings.method)
    batches = list(clip.loader(settings, views, "cpu").batches(0, args.steps))
    largest = lambda ours, theirs: np.abs(ours - theirs).max()
    share = lambda ours, theirs: (ours != theirs).mean()
    print(f"{timing.machine(device)} against the CPU, float32, medians of {args.repeats} alternated runs\n")
    timing.head("work", "cpu s", "device s", "ratio", "largest difference, share of pixels", "allowed")
    fine = True
    for title, work, gap, bound in (
        ("features, 480x854", partial(features, settings, frame), largest, FEATURE_BOUND),
        (f"masks, {sequence.name}", partial(masks, settings, sequence, args.frames), share, PIXEL_BOUND),
        (f"{args.steps} training steps", partial(losses, settings, batches), largest, LOSS_BOUND),
    ):
        measure = lambda where, work=work: timing.timed(partial(work, where), where)
        cpu, other = timing.alternated({"cpu": torch.device("cpu"), "device": device}, args.repeats, measure).values()
        slow, fast, difference = timing.median(cpu), timing.median(other), gap(cpu[-1].result, other[-1].result)
        fine &= bool(difference <= bound)
        timing.row(title, f"{slow:.2f}", f"{fast:.3f}", f"{slow / fast:.1f}", f"{difference:.1e}", bound)
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
