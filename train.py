"""Train a method on raw video: python train.py --config configs/ytvos.yaml

Writes to the run folder: last.pth (everything needed to go on), best.pth (the network with the highest J&F on the
validation sequences), config.yaml and TensorBoard events.  At SIGINT, SIGTERM and SIGUSR1 the program saves and stops;
started again with the same run folder it goes on from there.
"""

import argparse
import logging
import signal
import sys
from dataclasses import replace
from pathlib import Path

import yaml

import models
from core import distributed, schedule
from core.atomic import replacing
from core.devices import pick
from core.errors import UserError, reported
from core.schema import as_plain
from datasets import clip
from training.compiled import compile_forward
from training.evaluators import Validation, aside
from training.logbook import Logbook, Meter, farewell, report
from training.run import Run, claim
from training.step import fitting, step
from training.stop import Stop, Stopped

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


def last_step(config, loader):
    """The step at which the run is finished."""
    total = config.schedule.epochs * loader.steps_per_epoch
    return min(total, config.schedule.steps or total)


def train(run, loader, validation, book):
    """The training loop.  Returns the number of the signal that ended it, or None."""
    config, end = run.config, last_step(run.config, loader)
    epoch, several = loader.steps_per_epoch, distributed.world_size() > 1
    every, total = config.validation.every_epochs * epoch, config.schedule.epochs * epoch
    model = distributed.averaged(run.method, run.device) if several else run.method
    meter, agreement, run.unread = Meter(), distributed.Agreement(), loader.bad_clips
    book.line(f"steps {run.step} to {end}, {epoch} an epoch, on {run.device}")
    with loader.serve(run.step, end) as batches, Stop(echo=3.0 if several else 0.0) as stop:

        def settle():
            """Validate and save where this is due after a step.  Returns whether to stop."""
            due = lambda steps: run.step % steps == 0 or run.step == end
            complete = True
            if run.measured < run.step and due(every):  # a validation that a signal ended is still due
                if validation.sequences:
                    run.save()  # an error in the validation must not cost the steps
                complete = validation.measure(run, book, stop)
                meter.clear()
            # Of a validation that is left out all know at once; it is due at this step alone.
            halt = agreement.any(stop.signal is not None) or not complete
            if config.log.keep_every_epochs and run.step % (config.log.keep_every_epochs * epoch) == 0:
                run.save_network(f"epoch{run.step // epoch:04d}.pth")
            if due(config.log.checkpoint_steps) or halt:
                run.save()
            return halt

        halt = run.step > run.measured and settle()
        while run.step < end and not halt:
            run.method.train()
            try:
                # Several processes must stop after the same step, so none of them may stop while it waits for data.
                with stop.during("saving", at_once=not several):
                    batch = meter.fetch(batches)
            except Stopped:
                run.save()
                break
            progress = schedule.Progress(run.step, epoch, total)
            with fitting(run):
                if run.step % config.log.picture_steps == 0 and distributed.rank() == 0:
                    with aside(run):
                        pictures = run.method.pictures({name: value.to(run.device) for name, value in batch.items()})
                    book.pictures(pictures, run.step + 1)
                losses, lr = step(run, model, batch, progress)
            meter.add(losses, config.data.batch_size)
            if run.step % config.log.scalar_steps == 0 or run.step == end:
                report(book, meter, run, progress, end, lr)
            halt = settle()
        halt = agreement.last() or halt
    return stop.signal or (signal.SIGTERM if halt else None)


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


def without_absent(config, args):
    """The configuration, without validation where the validation set of a file in configs/ does not exist.

    Where the user names a validation set that does not exist, it stays and is an error later.
    """
    root = config.validation.root
    named = any(setting.startswith(("validation.root=", "validation=")) for setting in args.overrides)
    ours = Path(args.config).resolve().parent == models.ROOT / "configs"
    if root is None or named or not ours or Path(root).is_dir():
        return config
    log.warning("validation.root = %s: there is no such folder; training goes on without J&F", root)
    return replace(config, validation=replace(config.validation, root=None))


@reported
def main():
    args = parse()
    config = clip.settled(without_absent(models.read_config(args.config, args.overrides), args))
    folder = Path(args.run_dir or Path("runs") / Path(args.config).stem / "default")
    device = distributed.start(pick(args.device))
    first = start_point(args, folder)
    views = models.METHODS[config.method.name].Views(config.method)
    loader = clip.loader(config, views, device)
    validation = Validation(config, views, device)
    method = models.build(config)
    for layer in config.validation.layers:
        method.extractor.require_layer(layer, "validation.layers")  # an error now, not after the first epochs
    fresh = models.initialise(method, args.init) if args.init and not first else []
    lock = claim(folder)
    if start_point(args, folder) != first:
        raise UserError(f"{folder}: another training has just ended here; start again to go on with it")
    run = Run(method, config, folder, device, args.init)
    if config.optim.checkpointing:
        models.recompute(run.method)
    if config.optim.compile:
        compile_forward(run.method)
    if first:
        run.restore(first)
    main_rank = distributed.rank() == 0
    if main_rank:
        with replacing(folder / "config.yaml") as part:
            part.write_text(yaml.safe_dump(as_plain(config), sort_keys=False))
    book = Logbook(folder / "tensorboard" if main_rank else None, run.step)
    new = f"a new run from the weights of {args.init}" if args.init else "a new run"
    began = f"start {run.starts}, going on from {first} at step {run.step}" if first else new
    book.event("; ".join(filter(None, (f"{folder}: {began}", run.changed_processes()))), run.step)
    spacing = f"clip.gap = {config.clip.gap}" if config.clip.fps is None else f"clip.fps = {config.clip.fps:g}"
    count, data = len(loader.dataset.videos), config.data
    book.line(f"{count} videos in {data.root}, data.reader = {data.reader}, {spacing}")
    if fresh:
        book.line(f"{args.init} lacks {len(fresh)} weights, which start at random: {', '.join(fresh[:4])}, ...")
    validation.begin(run)
    try:
        with distributed.peers():
            halted = train(run, loader, validation, book)
        book.event(farewell(run, last_step(config, loader), halted), run.step)
    finally:
        book.close()
        distributed.stop()
        lock.close()
    if halted:
        sys.exit(128 + halted)


if __name__ == "__main__":
    main()
