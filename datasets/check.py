"""Print what a configuration would train on, before the training:

    python -m datasets.check --config configs/own.yaml data.root=/my/videos

A program that lies in this room for its name only: it imports the configuration's method, whose views and step it runs.
"""

import argparse
import math
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import default_collate

import models
from core.atomic import replacing
from core.devices import pick
from core.errors import UserError, reported
from core.schedule import Progress
from core.schema import RunConfig
from datasets import clip, survey
from datasets.readers import VideoReader
from training.run import Run
from training.step import gradients

#: How many training samples the sheet shows, and how many details are printed below a line.
SHOWN, NAMED = 6, 10
#: A step that takes more seconds than this is measured only once.
PATIENCE = 20.0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a configuration would train on, and how fast.")
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="see configs/")
    add("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="as for training, such as data.root=/my/videos")
    add("--seconds", type=float, default=20, metavar="S", help="to read frames, and to make samples (default: 20)")
    add("--step-seconds", type=float, metavar="S", help="a training step's time where you know it; else it is measured")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="of the step that is measured")
    add("--sheet", metavar="FILE", help="PNG of training samples (default: runs/<config>/check.png)")
    args = parser.parse_intermixed_args()  # settings may stand anywhere
    for option in ("seconds", "step_seconds"):
        value = getattr(args, option)
        if value is not None and not value > 0:
            raise UserError(f"--{option.replace('_', '-')} {value:g}: must be above 0")
    return args


def say(name: str, text: str, details=()) -> None:
    """Print one line, and up to NAMED details below it."""
    details = list(details)
    more = [f"... and {len(details) - NAMED} more"] if len(details) > NAMED else []
    print("\n".join([f"{name:<11}{text}", *(f"{'':<13}{detail}" for detail in [*details[:NAMED], *more])]), flush=True)


def tell_videos(config: RunConfig, loader: clip.ClipLoader) -> None:
    """Print which videos there are, and which are left out."""
    reader, dataset, wanted = loader.dataset.reader, loader.dataset, config.clip
    lengths = [reader.length(video) for video in range(len(reader))]
    say("videos", f"{len(reader)} in {config.data.root} (data.reader = {config.data.reader}), {sum(lengths)} frames")
    say("lengths", f"{min(lengths)} to {max(lengths)} frames, median {statistics.median(lengths):g}{_seconds(reader)}")
    broken = [f"{name}: {why}" for name, why in reader.broken.items()]
    if broken:
        say("left out", f"{len(broken)} that cannot be read", broken)
    used = set(dataset.videos)
    short = [f"{reader.name(v)}: {lengths[v]} frames" for v in range(len(reader)) if v not in used]
    if short:
        spacing = "" if wanted.fps is None else f" at {wanted.fps:g} a second"
        say("left out", f"{len(short)} too short for a clip of {wanted.frames} frames{spacing}", short)
    per_epoch, batch = loader.steps_per_epoch, config.data.batch_size
    say("clips", f"{len(dataset)} an epoch, {wanted.clips_per_video} a video at most; {per_epoch} steps of {batch}")


def _seconds(reader: VideoReader) -> str:
    """The durations of the videos in words; "" where the reader knows none."""
    times = [reader.times(video) for video in range(len(reader))]
    known = [seconds[-1] - seconds[0] for seconds in times if seconds is not None]
    return f"; {min(known):.1f} to {max(known):.1f} seconds, {sum(known) / 60:.1f} minutes in all" if known else ""


def tell_frames(reader: VideoReader, seconds: float) -> None:
    """Print the sizes of the frames, and which frames cannot be read."""
    found, total = survey.read_frames(reader, seconds), sum(reader.length(video) for video in range(len(reader)))
    looked = found.read + found.unreadable
    sizes = [f"{width}x{height} ({count} videos)" for (width, height), count in found.sizes.most_common()]
    more = f" and {len(sizes) - NAMED} more" if len(sizes) > NAMED else ""
    say("sizes", ", ".join(sizes[:NAMED]) + more)
    part = "all" if looked == total else f"{looked} of {total} in {seconds:g} s (--seconds looks longer)"
    reasons = (f"{path}: {why}" for path, why in found.reasons.items())
    say("frames", f"looked at {part}; {found.unreadable} cannot be read", reasons)


def measured_step(config: RunConfig, loader: clip.ClipLoader, samples: list[dict], device: torch.device) -> float:
    """Seconds that the loss of a batch and its gradient take."""
    size, epoch = config.data.batch_size, loader.steps_per_epoch
    batch = default_collate((samples * -(-size // len(samples)))[:size])
    run, seconds = Run(models.build(config), config, ".", device), 0.0
    run.method.train()
    for _ in range(2):  # the first is slower
        started = time.perf_counter()
        try:
            losses = gradients(run, run.method, batch, Progress(0, epoch, config.schedule.epochs * epoch))
            losses["total"].item()  # waits for the device
        except torch.OutOfMemoryError:
            cure = "lower data.batch_size, or raise data.accumulate"
            raise UserError(f"data.batch_size = {size}: a step needs more memory than {device} has; {cure}") from None
        seconds = time.perf_counter() - started
        if seconds > PATIENCE:
            break
    return seconds


def tell_speed(config: RunConfig, loader: clip.ClipLoader, speed: survey.Speed, step: float) -> None:
    """Print how fast samples are made, how many workers the training needs, and how long it takes.

    step: seconds that a training step takes once its batch is there.
    """
    batch, workers, cores = config.data.batch_size, config.data.workers, os.cpu_count() or 1
    a_clip, views = speed.seconds / speed.clips, speed.views_seconds / speed.clips
    told = f"{1 / a_clip:.1f} clips/s: reading {1000 * (a_clip - views):.0f} ms a clip, views {1000 * views:.0f} ms"
    say("one worker", f"{told} (measured on {speed.clips} clips; files read before come from memory)")
    needed = math.ceil(batch * a_clip / step)
    real = max(step, batch * a_clip / min(workers, cores)) if workers else step + batch * a_clip
    waits = f"a step takes {real:.2f} s, for the device waits" if real > step else "the device need not wait"
    few = f" (this machine has {cores} cores)" if needed > cores else ""
    say("workers", f"{needed} {'is' if needed == 1 else 'are'} enough{few}; data.workers = {workers}: {waits}")
    epochs = config.schedule.epochs * loader.steps_per_epoch
    steps = min(epochs, config.schedule.steps or epochs)
    say("training", f"{steps} steps or {steps / loader.steps_per_epoch:.1f} epochs: {steps * real / 3600:.1f} hours")


@reported
def main() -> None:
    args = parse()
    config = clip.settled(models.read_config(args.config, args.overrides))
    device = pick(args.device)
    loader = clip.loader(config, models.METHODS[config.method.name].Views(config.method), "cpu")
    tell_videos(config, loader)
    tell_frames(loader.dataset.reader, args.seconds)
    speed = survey.make_samples(loader, args.seconds, keep=max(SHOWN, config.data.batch_size))
    path = Path(args.sheet or f"runs/{Path(args.config).stem}/check.png")
    with replacing(path) as part:
        Image.fromarray(survey.sheet(speed.samples[:SHOWN])).save(part, format="PNG")
    say("sheet", f"{path} ({min(SHOWN, len(speed.samples))} training samples)")
    step, source = args.step_seconds, "as --step-seconds says"
    if step is None:
        print("measuring a training step ... (--step-seconds leaves it out)", file=sys.stderr)
        step = measured_step(config, loader, [sample for _, sample in speed.samples], device)
        source = f"measured on {device}: loss and gradient"
    say("step", f"{step:.2f} s for {config.data.batch_size} clips ({source})")
    tell_speed(config, loader, speed, step)
    clip.BadClips(config.data.bad_share).add(speed.clips, speed.bad)  # stops where the training would stop


if __name__ == "__main__":
    main()
