"""How fast is a step of training, how much memory does it need, and does it learn what the plain loop learns?

    python -m benchmarks.training [--device cuda] [--steps 200] [--ways plain ours compiled checkpointing] [--out docs]
                                  [--run CONFIG [section.key=value ...]] ...

DUL (configs/ytvos.yaml, 16 clips of 5 frames, 256 px) and INO (configs/charades.yaml, 4 clips of 4 frames, 224 px), or
the runs that --run names, on frames of the made sample set.  All ways start from the same weights and go through the
same batches, which lie in memory; they take turns, ten steps at a time, and the first ten do not count:
    plain          float32, weights as torch lays them out, one loop over the parameters, waits for every loss
    fp32           float32 in the steps of train.py: channels last, a fused optimiser on a GPU, no wait
    ours           with optim.precision=auto: bfloat16 where the hardware has it
    compiled       ours with optim.compile
    checkpointing  ours with optim.checkpointing
Memory is the peak of a step above what stays between two steps.  --out DIR: draw the loss curves, DIR/training.png.
"""

import argparse
import dataclasses
import textwrap
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

import models
from benchmarks import timing
from core import devices, schedule
from core.errors import UserError, reported
from datasets import clip
from training import optim
from training.compiled import compile_forward
from training.run import Run
from training.step import step

RUNS = [["ytvos"], ["charades", "data.batch_size=4"]]
WAYS = {
    "plain": {"precision": "fp32"},
    "fp32": {"precision": "fp32"},
    "ours": {"precision": "auto"},
    "compiled": {"precision": "auto", "compile": True},
    "checkpointing": {"precision": "auto", "checkpointing": True},
}
EPOCH = 20  # steps, so that warm-ups of some epochs are over soon
CHUNK = 10  # steps a turn
BATCHES = 8  # different ones


class Training:
    """A network that is trained, some steps at a time.  plain: as a plain loop does it."""

    def __init__(self, config, batches, device, plain=False):
        self.run, self.plain = Run(models.build(config), config, "nowhere", device), plain
        self.batches = cycle([{name: value.to(device) for name, value in batch.items()} for batch in batches])
        self.run.method.train()
        if plain:
            self.run.method.to(memory_format=torch.contiguous_format)
            self.run.optimiser = optim.build(self.run.method, config.optim, fused=False)
        if config.optim.checkpointing:
            models.recompute(self.run.method)
        if config.optim.compile:
            compile_forward(self.run.method)

    def advance(self, steps):
        """The total loss of each of the next steps."""
        total, losses = self.run.config.schedule.epochs * EPOCH, []
        for batch in islice(self.batches, steps):
            progress = schedule.Progress(self.run.step, EPOCH, total)
            losses.append(step(self.run, self.run.method, batch, progress)[0]["total"])
            if self.plain:
                losses[-1].item()
        return torch.stack(losses).cpu().numpy()


def settings_of(name, changes, data):
    """The configuration of a run on the frames of the sample set."""
    sample = [f"data.root={data}/JPEGImages/480p", f"data.list={data}/ImageSets/2017/train.txt", "data.reader=frames"]
    sample += ["data.folder_fps=24", "data.workers=0", "validation.root=null"]
    return models.read_config(models.ROOT / "configs" / f"{name}.yaml", [*sample, *changes])


def measured(config, ways, steps, device):
    """{way: ([Run of each turn], MiB of a step)}; the result of a turn are the losses of its steps."""
    views = models.METHODS[config.method.name].Views(config.method)
    batches = list(clip.loader(config, views, "cpu").batches(0, BATCHES))
    trained = {}
    for way in ways:
        changed = dataclasses.replace(config, optim=dataclasses.replace(config.optim, **WAYS[way]))
        trained[way] = Training(changed, batches, device, plain=way == "plain")
    turn = lambda training: timing.timed(partial(training.advance, CHUNK), device)
    runs = timing.alternated(trained, steps // CHUNK, turn)
    return {way: (runs[way], timing.added_mib(partial(trained[way].advance, 1), device)) for way in ways}


def report(found, clips):
    """Print the table of one run -> {way: losses of all steps}."""
    timing.head("way", "clips/s", "ratio", "clips/CPU s", "ratio", "MiB of a step", "loss at the end", "first step")
    curves, first = {}, None
    for way, (runs, mib) in found.items():
        rates = [CHUNK * clips / timing.median(runs[1:] or runs, clock) for clock in ("wall", "cpu")]
        first = first or rates
        curves[way] = np.concatenate([run.result for run in runs])
        cells = [f"{rate:.2f} | {rate / one:.2f}" for rate, one in zip(rates, first)]
        timing.row(way, *cells, f"{mib:.0f}", f"{curves[way][-2 * CHUNK :].mean():.4f}", f"{curves[way][0]:.4f}")
    return curves


def draw(curves, machine, path):
    """The loss curves of all ways beside each other, a panel a run, into a PNG.  curves: {title: {way: losses}}."""
    with timing.figure(path, 6 * len(curves), 4.5) as figure:
        for panel, (title, ways) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items()):
            for number, (way, losses) in enumerate(ways.items()):
                # Each is thinner than those below it, so that what coincides is seen to.
                panel.plot(range(1, len(losses) + 1), losses, label=way, linewidth=max(7 - 2 * number, 1), alpha=0.8)
            panel.set(xlabel="step", ylabel="loss")
            panel.set_title(textwrap.fill(title, 70), fontsize=9)
            panel.locator_params(axis="x", integer=True)
            panel.legend()
        figure.supxlabel(machine, fontsize=8)


@reported
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cuda", choices=("cuda", "cpu"))
    add("--data", default="data/sample")
    add("--steps", type=int, default=200, help=f"rounded down to whole tens, {2 * CHUNK} or more")
    add("--ways", nargs="+", choices=WAYS, default=["plain", "ours", "compiled", "checkpointing"])
    add("--run", nargs="+", action="append", metavar=("CONFIG", "section.key=value"), help="instead of DUL and INO")
    add("--out", metavar="DIR")
    args = parser.parse_args(argv)
    if args.steps < 2 * CHUNK:
        raise UserError(f"--steps {args.steps}: must be {2 * CHUNK} or more, since the first {CHUNK} do not count")
    if args.out:
        timing.require_matplotlib()
    device, curves = devices.pick(args.device), {}
    machine = f"{timing.machine(device)}, torch {torch.__version__}, {args.steps // CHUNK * CHUNK} steps"
    print(machine)
    for name, *changes in args.run or RUNS:
        config = settings_of(name, changes, args.data)
        title = f"{name}, {config.data.batch_size} clips of {config.clip.frames} frames {' '.join(changes)}".rstrip()
        print(f"\n{title}\n")
        curves[title] = report(measured(config, args.ways, args.steps, device), config.data.batch_size)
    if args.out:
        draw(curves, machine, Path(args.out, "training.png"))
        print(f"\nwritten: {args.out}/training.png")


if __name__ == "__main__":
    main()
