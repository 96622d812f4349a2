"""Does a device compute what the CPU computes, and how much faster?

    python benchmarks/devices.py [--device cuda] [--data data/sample] [--steps 3] [--repeats 3]

Three comparisons on the made sample set, each against float32 on the CPU in the same run: features of every layer,
masks of a whole sequence, and the losses of the first training steps from the same weights and clips.  Times are
medians of alternated repeats.  Prints one table; exit code 1 where the device differs by more than the bounds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.run import Run  # noqa: E402
from models.snapshots import build  # noqa: E402

from core import components, config, devices, schedule  # noqa: E402
from core.errors import reported  # noqa: E402
from datasets import vos_sequences  # noqa: E402
from datasets.clip import ClipDataset, ClipLoader  # noqa: E402
from labelprop import segment_video  # noqa: E402

# TF32 convolutions, torch's default on a GPU, keep 10 bits of the mantissa.
FEATURE_BOUND, PIXEL_BOUND, LOSS_BOUND = 5e-3, 0.01, 0.02


def timed(device, work):
    """Seconds and result of work(), the device's queue emptied before and after."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    before = time.perf_counter()
    result = work()
    wait()
    return time.perf_counter() - before, result


def features(device, settings, frames):
    """Every layer's features of one 480x854 frame."""
    method = build(settings).eval().to(device)
    return {key: method.extractor(key)(frames.to(device)).cpu() for key in method.keys}


def masks(device, settings, sequence):
    method = build(settings).eval().to(device)
    frames, given = list(sequence.frames()), sequence.given()
    return np.stack(list(segment_video(frames, given, method.extractor("res4"), settings.propagation, device=device)))


def losses(device, settings, batches):
    """The total loss of every step."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(build(settings), settings, folder, device)
    totals = []
    for step, batch in enumerate(batches):
        batch = {name: value.to(device) for name, value in batch.items()}
        loss = run.method(batch, schedule.Progress(step, len(batches), len(batches))).total
        run.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        run.optimiser.step()
        totals.append(loss.item())
    return np.array(totals)


def training_batches(settings, steps):
    module = components.load("method", settings.method.name)
    reader = components.load("reader", settings.data.reader).Reader(settings.data.root, settings.data.list)
    dataset = ClipDataset(reader, settings.clip, module.Views(settings.method), settings.seed)
    return list(ClipLoader(dataset, settings.data.batch_size, 0, settings.data.bad_share).batches(0, steps))


@reported
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a dry run")
    parser.add_argument("--data", default="data/sample")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    cpu, device = torch.device("cpu"), devices.pick(args.device)
    lists = [f"data.root={args.data}/JPEGImages/480p", f"data.list={args.data}/ImageSets/2017/train.txt"]
    settings = config.load("configs/sample.yaml", [*lists, "optim.precision=fp32"])
    frame = torch.rand(1, 3, 480, 854, generator=torch.Generator().manual_seed(0))
    sequence = vos_sequences.davis(args.data)[0]
    batches = training_batches(settings, args.steps)
    cases = {
        "features, 480x854": (lambda d: features(d, settings, frame), feature_gap, FEATURE_BOUND),
        f"masks, {sequence.name}": (lambda d: masks(d, settings, sequence), pixel_gap, PIXEL_BOUND),
        f"{args.steps} training steps": (lambda d: losses(d, settings, batches), loss_gap, LOSS_BOUND),
    }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{name} against cpu, float32, medians of {args.repeats} alternated runs\n")
    print("| work | cpu s | device s | ratio | largest difference | allowed |\n|---|---|---|---|---|---|")
    fine = True
    for title, (work, gap, bound) in cases.items():
        runs = [[timed(d, lambda d=d, work=work: work(d)) for d in (cpu, device)] for _ in range(args.repeats)]
        slow, fast = (statistics.median(pair[i][0] for pair in runs) for i in (0, 1))
        difference = gap(runs[-1][0][1], runs[-1][1][1])
        fine &= difference <= bound
        print(f"| {title} | {slow:.2f} | {fast:.3f} | {slow / fast:.1f} | {difference:.1e} | {bound} |", flush=True)
    sys.exit(not fine)


def feature_gap(ours, theirs):
    return max((ours[key] - theirs[key]).abs().max().item() for key in ours)


def pixel_gap(ours, theirs):
    """Share of pixels whose ids differ."""
    return float((ours != theirs).mean())


def loss_gap(ours, theirs):
    return float(np.abs(ours - theirs).max())


if __name__ == "__main__":
    main()
