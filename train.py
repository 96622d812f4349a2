"""Train a method on raw video: python train.py --config configs/ytvos.yaml

Writes to the run folder: last.pth (everything needed to go on), best.pth (highest J&F on the validation
sequences), config.yaml and TensorBoard events.  SIGINT and SIGTERM save before they stop; started again with
the same run folder it goes on where it was.
"""

import argparse
import dataclasses
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import yaml

from core import components, distributed, optim, schedule
from core import config as configuration
from core.atomic import replacing
from core.devices import autocast, pick
from core.errors import UserError, reported
from core.evaluation import davis
from core.logbook import Logbook
from core.run import NotFinite, Run
from core.schema import RunConfig
from datasets import vos_sequences
from datasets.clip import ClipDataset, ClipLoader
from labelprop import runner
from models.snapshots import build


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    parser.add_argument("--run-dir", help="default: runs/<config>/default")
    parser.add_argument("--resume", default="auto", metavar="auto|none|PATH")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    return parser.parse_args()


class Stop:
    """Remembers SIGINT and SIGTERM until the step, and a validation under way, is done; a second one stops at once."""

    def __init__(self):
        self.signal = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number, frame):
        self.signal = number
        os.write(2, b"saving after this step; once more stops at once\n")  # print may be what was interrupted
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def train_step(run, model, batch, progress):
    """One optimiser step.  -> the losses' terms and total as numbers, and the learning rate."""
    config = run.config
    lr = schedule.learning_rate(config.schedule, config.base_lr, progress)
    optim.set_rates(run.optimiser, lr, schedule.weight_decay(config.schedule, config.optim.weight_decay, progress))
    batch = {name: value.to(run.device, non_blocking=True) for name, value in batch.items()}
    with autocast(run.device, config.optim.precision):
        losses = model(batch, progress)
    numbers = {"total": losses.total.item(), **{name: term.item() for name, term in losses.terms.items()}}
    wrong = [name for name, value in numbers.items() if value != value or abs(value) == float("inf")]
    if distributed.any_rank(bool(wrong), run.device):
        raise NotFinite(run, wrong or ["a term on another rank"])
    run.optimiser.zero_grad(set_to_none=True)
    run.scaler.scale(losses.total).backward()
    run.method.before_step(progress)
    if config.optim.clip_norm:
        run.scaler.unscale_(run.optimiser)
        optim.clip_each(run.method.parameters(), config.optim.clip_norm)
    run.scaler.step(run.optimiser)
    run.scaler.update()
    run.method.after_step(progress)
    run.step += 1
    return numbers, lr


def train(run, loader, validation, book, stop):
    """The loop.  Returns the signal that ended it early, or None."""
    config, log = run.config, run.config.log
    total = config.schedule.epochs * loader.steps_per_epoch
    end = min(total, config.schedule.steps or total)
    every = config.validation.every_epochs * loader.steps_per_epoch
    model = run.method
    if distributed.world_size() > 1:
        devices = [run.device] if run.device.type == "cuda" else None
        model = torch.nn.parallel.DistributedDataParallel(model, device_ids=devices)
    batches = loader.batches(run.step, end)
    bad_before, meter = run.bad_clips, Meter()
    book.line(f"steps {run.step} to {end}, {loader.steps_per_epoch} an epoch, on {run.device}")
    while run.step < end:
        run.method.train()
        batch = meter.fetch(batches)
        progress = schedule.Progress(run.step, loader.steps_per_epoch, total)
        if run.step % log.picture_steps == 0 and distributed.rank() == 0:
            book.pictures(sample_pictures(run, batch), run.step)
        numbers, lr = train_step(run, model, batch, progress)
        run.bad_clips = bad_before + loader.bad_clips.bad
        meter.add(numbers, config.data.batch_size)
        if run.step % log.scalar_steps == 0 or run.step == end:
            report(book, meter, run, progress, end, lr)
        if run.step % every == 0 or run.step == end:
            score = validation.measure(run, book)
            if score is not None and (run.best is None or score > run.best):
                run.save_best(score)
            meter.clear()
        halt = distributed.any_rank(stop.signal is not None, run.device)
        if run.step % log.checkpoint_steps == 0 or run.step == end or halt:
            run.save()
        if halt:
            return stop.signal or signal.SIGTERM
    return None


class Meter:
    """Means over the steps since the last report: losses, seconds waited for data, clips a second."""

    def __init__(self):
        self.clear()

    def clear(self):
        self.sums, self.steps, self.clips, self.wait = {}, 0, 0, 0.0
        self.started = time.perf_counter()

    def fetch(self, batches):
        """The next batch; the wait for it is measured."""
        before = time.perf_counter()
        batch = next(batches)
        self.wait += time.perf_counter() - before
        return batch

    def add(self, numbers, clips):
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps, self.clips = self.steps + 1, self.clips + clips

    def means(self):
        """{"loss/<term>", "speed/clips_per_second", "speed/data_wait_share"} and starts anew."""
        seconds = time.perf_counter() - self.started
        values = {f"loss/{name}": total / self.steps for name, total in self.sums.items()}
        values["speed/clips_per_second"] = self.clips / seconds
        values["speed/data_wait_share"] = self.wait / seconds
        self.clear()
        return values


def report(book, meter, run, progress, end, lr):
    values = meter.means()
    losses = "  ".join(f"{name[5:]} {value:.4f}" for name, value in values.items() if name.startswith("loss/"))
    speed, wait = values["speed/clips_per_second"], values["speed/data_wait_share"]
    book.line(
        f"step {run.step}/{end}  epoch {progress.epoch}  {losses}  lr {lr:.3g}  "
        f"{speed:.2f} clips/s  waiting for data {wait:.0%}"
    )
    values |= {"schedule/lr": lr, "schedule/epoch": progress.epoch, "data/bad_clips": run.bad_clips}
    book.scalars(values, run.step)


@contextmanager
def aside(run):
    """Evaluation mode, random draws of one's own, no other rank: what happens inside leaves no trace in the run."""
    run.method.eval()
    with distributed.alone(), torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(run.config.seed)
        yield
    run.method.train()


def sample_pictures(run, batch):
    with aside(run):
        return run.method.pictures({name: value.to(run.device) for name, value in batch.items()})


class Validation:
    """Loss on clips, and J&F by propagation, of the validation sequences (DAVIS layout); none if root is null."""

    CLIPS = 32  # at most; the loss is a curve to look at, J&F chooses the snapshot

    def __init__(self, config, views, device):
        self.settings = config.validation
        self.sequences = []
        if self.settings.root is not None:
            self.sequences = vos_sequences.davis(self.settings.root, names=self.settings.sequences or None)
            self.annotations = Path(self.settings.root) / "Annotations" / "480p"
            for sequence in self.sequences:
                if sequence.annotations is None:
                    raise UserError(f"{self.annotations / sequence.name}: validation needs a mask of every frame")
            spread = {"gap": self.settings.clips_gap, "step": config.clip.step or "whole"}
            clip = dataclasses.replace(config.clip, **spread, fps=None, clips_per_video=1)
            clips = ClipDataset(vos_sequences.SequenceReader(self.sequences), clip, views, config.seed)
            batch = min(config.data.batch_size, len(clips))
            self.loader = ClipLoader(clips, batch, 0, config.data.bad_share, device)

    def measure(self, run, book):
        """Logs everything; -> J&F of the first key in percent, or None without sequences."""
        if not self.sequences or distributed.rank() != 0:
            return None
        scores = {}
        with aside(run):
            book.scalars(self.losses(run), run.step)
            for key in self.settings.keys:
                scores[key] = self.propagate(run, key, book)
        book.scalars({f"validation/J&F_{key}": score for key, score in scores.items()}, run.step)
        told = "  ".join(f"{key} {score:.1f}" for key, score in scores.items())
        book.line(f"validation at step {run.step}: J&F {told}")
        return scores[self.settings.keys[0]]

    def losses(self, run):
        """Means of the loss terms over clips of the validation sequences; the same clips every time."""
        count, epoch = max(1, self.CLIPS // self.loader.batch_size), self.loader.steps_per_epoch
        sums, progress = {}, schedule.Progress(0, epoch, epoch)
        for batch in self.loader.batches(0, count):
            batch = {name: value.to(run.device) for name, value in batch.items()}
            with torch.no_grad(), autocast(run.device, run.config.optim.precision):
                losses = run.method(batch, progress)
            for name, value in {"total": losses.total, **losses.terms}.items():
                sums[name] = sums.get(name, 0.0) + value.item() / count
        return {f"validation/loss_{name}": value for name, value in sums.items()}

    def propagate(self, run, key, book):
        """J&F of one feature layer over the sequences, in percent; four overlays of each go to TensorBoard."""
        out, method = run.folder / "validation", run.method
        propagation = run.config.propagation_on("davis", method.cell_px(key))
        runner.run(
            self.sequences, method.extractor(key), propagation, out, key,
            overwrite=True, device=run.device, quiet=True,
        )
        scores = davis.evaluate(self.annotations, out / f"{key}_vos", [s.name for s in self.sequences])
        for sequence in self.sequences:
            paths = sorted((out / f"{key}_vis" / sequence.name).iterdir())
            chosen = [paths[round(i * (len(paths) - 1) / 3)] for i in range(4)]
            frames = [vos_sequences.read_frame(path) for path in chosen]
            sheet = np.vstack([np.hstack(frames[:2]), np.hstack(frames[2:])])
            book.pictures({f"validation_{key}/{sequence.name}": sheet.transpose(2, 0, 1)}, run.step)
        return 100 * davis.overall(scores).jf_mean


def make_loader(config, views, device):
    """The clips of config.data in batches, this process's share."""
    reader = components.load("reader", config.data.reader).Reader(config.data.root, config.data.list)
    dataset = ClipDataset(reader, config.clip, views, config.seed, config.data.folder_fps)
    data, rank, world = config.data, distributed.rank(), distributed.world_size()
    return ClipLoader(dataset, data.batch_size, data.workers, data.bad_share, device, rank, world)


def start_point(args, folder):
    """The checkpoint to go on from, or None.  A folder in use is never overwritten."""
    last = folder / "last.pth"
    if args.resume == "auto":
        return last if last.exists() else None
    if last.exists() and Path(args.resume).resolve() != last.resolve():
        raise UserError(f"{folder}: is in use by another run; go on with --resume auto, or name another --run-dir")
    return None if args.resume == "none" else Path(args.resume)


@reported
def main():
    args = parse()
    config = configuration.load(args.config, args.overrides)
    if not isinstance(config, RunConfig):
        raise UserError(f"{args.config}: method {config.method.name} serves inference alone; see infer_vos.py")
    folder = Path(args.run_dir or Path("runs") / Path(args.config).stem / "default")
    device = distributed.start(pick(args.device))
    first = start_point(args, folder)
    views = components.load("method", config.method.name).Views(config.method)
    loader = make_loader(config, views, device)
    validation = Validation(config, views, device)
    run = Run(build(config), config, folder, device)
    for key in config.validation.keys:
        run.method.extractor(key)  # a wrong name is told now, not after the first epochs
    if first:
        run.restore(first)
    main_rank = distributed.rank() == 0
    if main_rank:
        with replacing(folder / "config.yaml") as part:
            part.write_text(yaml.safe_dump(configuration.to_dict(config), sort_keys=False))
    book = Logbook(folder / "tensorboard" if main_rank else None, first_step=run.step)
    book.line(f"{folder}: " + (f"going on from {first} at step {run.step}" if first else "a new run"))
    try:
        halted = train(run, loader, validation, book, Stop())
    finally:
        book.close()
        distributed.stop()
    if halted:
        print(f"stopped by {signal.Signals(halted).name} at step {run.step}; the same command goes on", flush=True)
        sys.exit(128 + halted)


if __name__ == "__main__":
    main()
