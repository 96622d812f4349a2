"""Train a method on raw video: python train.py --config configs/ytvos.yaml

Writes to the run folder: last.pth (everything needed to go on), best.pth (highest J&F on the validation
sequences), config.yaml and TensorBoard events.  SIGINT and SIGTERM save before they stop; started again with
the same run folder it goes on where it was.
"""

import argparse
import dataclasses
import logging
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import yaml

from core import checkpoint, components, distributed, optim, schedule
from core import config as configuration
from core.atomic import replacing
from core.devices import autocast, pick
from core.errors import UserError, reported
from core.evaluation import davis
from core.logbook import Logbook, Meter, report
from core.run import NotFinite, Run
from core.schema import RunConfig
from core.stop import Stop, Stopped
from datasets import vos_sequences
from datasets.clip import ClipDataset, ClipLoader
from labelprop import runner
from models import snapshots

log = logging.getLogger(__name__)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    parser.add_argument("--run-dir", help="default: runs/<config>/default")
    parser.add_argument("--resume", default="auto", metavar="auto|none|PATH")
    parser.add_argument("--init", metavar="PATH", help="start a new run from these weights: any checkpoint")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    return parser.parse_args()


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


def last_step(config, loader):
    """The step at which the run is finished."""
    total = config.schedule.epochs * loader.steps_per_epoch
    return min(total, config.schedule.steps or total)


def train(run, loader, validation, book):
    """The loop.  Returns the signal that ended it, or None."""
    config, told, end = run.config, run.config.log, last_step(run.config, loader)
    every = config.validation.every_epochs * loader.steps_per_epoch
    total = config.schedule.epochs * loader.steps_per_epoch
    model = run.method
    if distributed.world_size() > 1:
        devices = [run.device] if run.device.type == "cuda" else None
        model = torch.nn.parallel.DistributedDataParallel(model, device_ids=devices)
    bad_before, meter = run.bad_clips, Meter()
    book.line(f"steps {run.step} to {end}, {loader.steps_per_epoch} an epoch, on {run.device}")
    with loader.serve(run.step, end) as batches, Stop() as stop:

        def due():
            """Whether a validation is: also one that a signal ended before."""
            return run.measured < run.step and (run.step % every == 0 or run.step == end)

        def settle():
            """What is due between two steps -> whether to stop."""
            if due():
                validation.measure(run, book, stop)
                meter.clear()
            halt = distributed.any_rank(stop.signal is not None, run.device)
            if run.step % told.checkpoint_steps == 0 or run.step == end or halt:
                run.save()
            return halt

        halt = due() and settle()
        while run.step < end and not halt:
            run.method.train()
            try:
                # Several processes must stop after the same step, not while one of them waits for data.
                with stop.during("saving", at_once=distributed.world_size() == 1):
                    batch = meter.fetch(batches)
            except Stopped:
                run.save()
                break
            progress = schedule.Progress(run.step, loader.steps_per_epoch, total)
            if run.step % told.picture_steps == 0 and distributed.rank() == 0:
                book.pictures(sample_pictures(run, batch), run.step + 1)
            numbers, lr = train_step(run, model, batch, progress)
            run.bad_clips = bad_before + loader.bad_clips.bad
            meter.add(numbers, config.data.batch_size)
            if run.step % told.scalar_steps == 0 or run.step == end:
                report(book, meter, run, progress, end, lr)
            halt = settle()
    return stop.signal or (signal.SIGTERM if halt else None)


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

    def __init__(self, config, views, device, named=True):
        """named: whether the user named the root; one that is not there is else left out with a warning."""
        self.settings = config.validation
        self.sequences = []
        root = self.settings.root
        if root is not None and not named and not Path(root).is_dir():
            if distributed.rank() == 0:
                log.warning("validation.root = %s: there is no such folder; training goes on without J&F", root)
        elif root is not None:
            self.sequences = vos_sequences.davis(root, names=self.settings.sequences or None)
            self.annotations = Path(root) / "Annotations" / "480p"
            for sequence in self.sequences:
                if sequence.annotations is None:
                    raise UserError(f"{self.annotations / sequence.name}: validation needs a mask of every frame")
            spread = {"gap": self.settings.clips_gap, "step": config.clip.step or "whole"}
            clip = dataclasses.replace(config.clip, **spread, fps=None, clips_per_video=1)
            clips = ClipDataset(vos_sequences.SequenceReader(self.sequences), clip, views, config.seed)
            batch = min(config.data.batch_size, len(clips))
            self.loader = ClipLoader(clips, batch, 0, config.data.bad_share, device)

    def measure(self, run, book, stop):
        """Logs everything and keeps the best network.  A signal ends it and nothing of it counts: it is due again."""
        if self.sequences and distributed.rank() == 0:
            scores, pictures = {}, {}
            try:
                with stop.during("leaving the validation at its next frame, then saving"), aside(run):
                    values = self.losses(run, stop)
                    for key in self.settings.keys:
                        scores[key] = self.propagate(run, key, pictures, stop)
            except Stopped:
                book.line("the validation is left out; it comes first when the run goes on")
                return
            book.scalars(values | {f"validation/J&F_{key}": score for key, score in scores.items()}, run.step)
            book.pictures(pictures, run.step)
            told = "  ".join(f"{key} {score:.1f}" for key, score in scores.items())
            book.line(f"validation at step {run.step}: J&F {told}")
            run.score = scores[self.settings.keys[0]]
            if run.best is None or run.score > run.best:
                run.save_best(run.score)
        run.measured = run.step

    def losses(self, run, stop):
        """Means of the loss terms over clips of the validation sequences; the same clips every time."""
        count, epoch = max(1, self.CLIPS // self.loader.batch_size), self.loader.steps_per_epoch
        sums, progress = {}, schedule.Progress(0, epoch, epoch)
        for batch in self.loader.batches(0, count):
            stop.check()
            batch = {name: value.to(run.device) for name, value in batch.items()}
            with torch.no_grad(), autocast(run.device, run.config.optim.precision):
                losses = run.method(batch, progress)
            for name, value in {"total": losses.total, **losses.terms}.items():
                sums[name] = sums.get(name, 0.0) + value.item() / count
        return {f"validation/loss_{name}": value for name, value in sums.items()}

    def propagate(self, run, key, pictures, stop):
        """J&F of one feature layer over the sequences, in percent; four overlays of each are added to pictures."""
        out, method = run.folder / "validation", run.method
        propagation, extract = run.config.propagation_on("davis", method.cell_px(key)), method.extractor(key)

        def features(frames):
            stop.check()
            return extract(frames)

        runner.run(self.sequences, features, propagation, out, key, overwrite=True, device=run.device, quiet=True)
        scores = []
        for sequence in self.sequences:
            stop.check()
            scores += davis.evaluate(self.annotations, out / f"{key}_vos", [sequence.name])
            paths = sorted((out / f"{key}_vis" / sequence.name).iterdir())
            chosen = [paths[round(i * (len(paths) - 1) / 3)] for i in range(4)]
            frames = [vos_sequences.read_frame(path) for path in chosen]
            sheet = np.vstack([np.hstack(frames[:2]), np.hstack(frames[2:])])
            pictures[f"validation_{key}/{sequence.name}"] = sheet.transpose(2, 0, 1)
        return 100 * davis.overall(scores).jf_mean


def make_loader(config, views, device):
    """The clips of config.data in batches, this process's share."""
    if Path(config.data.root).is_relative_to("data/sample") and not Path(config.data.root).is_dir():
        raise UserError(f"data.root = {config.data.root}: is not there yet; make it: python -m datasets.sample")
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
    if args.resume != "none" and args.init:
        raise UserError(f"--resume {args.resume} goes on with a run, --init {args.init} starts a new one: give one")
    return None if args.resume == "none" else Path(args.resume)


def start_from(method, config, path):
    """--init: the weights of a checkpoint, ours or published, for a new run."""
    given, its = snapshots.restore(path)
    try:
        checkpoint.load_strictly(method, given.state_dict(), f"--init {path}")
    except UserError as error:
        there, here = (configuration.to_dict(each)["method"] for each in (its, config))
        other = [f"{key} {value!r} ({here.get(key)!r} here)" for key, value in there.items() if value != here.get(key)]
        raise UserError(f"{error}.  It was made with method: {', '.join(other[:8]) or 'the same settings'}") from None


def named_validation(args):
    """Whether the user named validation.root: on the command line, or in a file that is not one of ours."""
    said = any(setting.startswith(("validation.root=", "validation=")) for setting in args.overrides)
    return said or Path(args.config).resolve().parent != snapshots.CONFIGS


def farewell(run, end, halted):
    """What a person wants to know when the program ends."""
    if run.step < end or run.measured < run.step:
        left = "" if run.step < end else ", the last, without its validation"
        return f"stopped by {signal.Signals(halted).name} at step {run.step}{left}; the same command goes on"
    best = run.folder / "best.pth"
    root, chosen = run.config.validation.root, best if best.exists() else run.last
    score = "not measured" if run.score is None else f"{run.score:.1f} at the end, {run.best:.1f} at its best"
    return (
        f"finished at step {run.step}; J&F {score}\n  {run.last}: the last network, and the run's state"
        + (f"\n  {best}: the network of the highest J&F" if best.exists() else "")
        + f"\nnext: python infer_vos.py --checkpoint {chosen} --dataset davis --data {root or 'data/davis2017'} "
        f"--out results/{run.folder.parent.name}_{run.folder.name}"
    )


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
    validation = Validation(config, views, device, named_validation(args))
    method = snapshots.build(config)
    if args.init and not first:
        start_from(method, config, args.init)
    run = Run(method, config, folder, device, args.init)
    for key in config.validation.keys:
        run.method.extractor(key)  # a wrong name is told now, not after the first epochs
    if first:
        run.restore(first)
    main_rank = distributed.rank() == 0
    if main_rank:
        with replacing(folder / "config.yaml") as part:
            part.write_text(yaml.safe_dump(configuration.to_dict(config), sort_keys=False))
    book = Logbook(folder / "tensorboard" if main_rank else None, run.step)
    new = f"a new run from the weights of {args.init}" if args.init else "a new run"
    book.line(f"{folder}: " + (f"going on from {first} at step {run.step}" if first else new))
    try:
        halted = train(run, loader, validation, book)
    finally:
        book.close()
        distributed.stop()
    if main_rank:
        print(farewell(run, last_step(config, loader), halted), flush=True)
    if halted:
        sys.exit(128 + halted)


if __name__ == "__main__":
    main()
