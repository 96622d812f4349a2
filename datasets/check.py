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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision.utils import make_grid

import models
from core.atomic import replacing
from core.devices import pick
from core.errors import UserError, reported
from core.schedule import Progress
from core.schema import RunConfig
from datasets import clip
from datasets.readers import UnreadableFrame, VideoReader
from training.compiled import compile_forward
from training.run import Run
from training.step import fitting, gradients

#: How many training samples the sheet shows, how many frames of each, and how many details are printed below a line.
SHOWN, COLUMNS, NAMED = 6, 8, 10
#: How many frames are read at a time.
CHUNK = 16
#: A step that takes more seconds than this is measured only once.
PATIENCE = 20.0
TILE_PX, TITLE_PX = 128, 18


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
    """Read frames for so many seconds; print their sizes, and which frames cannot be read."""
    sizes: dict[int, str] = {}
    reasons: dict[str, str] = {}
    looked, unreadable, end = 0, 0, time.monotonic() + seconds
    for video, numbers in frames_to_read(reader):
        frames = sound(reader, video, numbers, reasons)
        looked, unreadable = looked + len(numbers), unreadable + len(numbers) - len(frames)
        if frames:
            sizes.setdefault(video, f"{frames[0].shape[1]}x{frames[0].shape[0]}")
        if time.monotonic() > end:
            break
    found = [f"{size} ({count} videos)" for size, count in Counter(sizes.values()).most_common()]
    say("sizes", ", ".join(found[:NAMED]) + (f" and {len(found) - NAMED} more" if len(found) > NAMED else ""))
    total = sum(reader.length(video) for video in range(len(reader)))
    part = "all" if looked == total else f"{looked} of {total} in {seconds:g} s (--seconds looks longer)"
    details = [f"{path}: {why}" for path, why in reasons.items()]
    say("frames", f"looked at {part}; {unreadable} cannot be read", details)


def frames_to_read(reader: VideoReader) -> Iterator[tuple[int, list[int]]]:
    """Yield (video, numbers of frames): the middle frame of every video, in random order, then all other frames."""
    order = np.random.default_rng(0).permutation(len(reader)).tolist()
    for video in order:
        yield video, [reader.length(video) // 2]
    for video in order:
        others = [number for number in range(reader.length(video)) if number != reader.length(video) // 2]
        for first in range(0, len(others), CHUNK):
            yield video, others[first : first + CHUNK]


def sound(reader: VideoReader, video: int, numbers: list[int], reasons: dict[str, str]) -> list[np.ndarray]:
    """The frames that can be read, of some frames of a video; reasons: {file: why it cannot be read}, added to."""
    try:
        return reader.read(video, numbers)
    except UnreadableFrame as error:
        if len(numbers) > 1:  # the others may be sound
            return [frame for number in numbers for frame in sound(reader, video, [number], reasons)]
        reasons[error.path] = error.reason
        return []


@dataclass
class Speed:
    """What `make_samples` measured.

    clips: how many were made.  seconds: for all clips; views_seconds: the part of the views, without reading.
    samples: (name of the video, sample) of the first clips.  bad: (path, reason) of clips that could not be read.
    """

    clips: int = 0
    seconds: float = 0.0
    views_seconds: float = 0.0
    samples: list[tuple[str, dict]] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)


def make_samples(loader: clip.ClipLoader, seconds: float, keep: int) -> Speed:
    """Make samples of the first epoch for so many seconds.

    keep: how many of the first samples are kept.  Raises UserError where no sample can be made.
    """
    speed, views = Speed(), loader.dataset.views

    def timed(frames, rng):
        before = time.perf_counter()
        sample = views(frames, rng)
        speed.views_seconds += time.perf_counter() - before
        return sample

    loader.dataset.views = timed
    started = time.perf_counter()
    for place, video in enumerate(loader.order(0)):
        sample = loader.dataset[0, place, video]
        if "error" in sample:
            raise UserError(sample["error"])
        bad = sample.pop("bad")
        speed.bad += bad
        speed.clips += 1
        speed.seconds = time.perf_counter() - started
        if place < keep:
            name = loader.dataset.reader.name(video)
            speed.samples.append((f"another video for {name}" if bad else name, sample))
        if speed.seconds > seconds:
            break
    return speed


def sheet(samples: list[tuple[str, dict]]) -> np.ndarray:
    """The pictures of samples, one below another, with a row for each view -> uint8 RGB [H,W,3]."""
    blocks = []
    for name, sample in samples:
        views = {view: value for view, value in sample.items() if value.dtype == torch.uint8}
        rows = [np.concatenate([_tile(frame) for frame in value[:COLUMNS]], axis=1) for value in views.values()]
        title = np.full((TITLE_PX, rows[0].shape[1], 3), 255, np.uint8)
        text = f"{name}: {', '.join(views)}".encode("ascii", "replace").decode()
        cv2.putText(title, text, (4, TITLE_PX - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
        blocks += [title, *rows]
    return np.concatenate(blocks)


def _tile(pictures):
    """A picture uint8 [3,h,w], or several of them [N,3,h,w] side by side -> uint8 [TILE_PX,TILE_PX,3]."""
    pictures = pictures.reshape(-1, *pictures.shape[-3:])
    grid = make_grid(pictures, math.ceil(math.sqrt(len(pictures))), padding=0).permute(1, 2, 0).numpy()
    width, height = (max(1, round(side * TILE_PX / max(grid.shape))) for side in grid.shape[1::-1])
    tile = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)
    tile[:height, :width] = cv2.resize(grid, (width, height), interpolation=cv2.INTER_AREA)
    return tile


def measured_step(config: RunConfig, loader: clip.ClipLoader, samples: list[dict], device: torch.device) -> float:
    """Seconds that the loss of a batch and its gradient take."""
    size, epoch = config.data.batch_size, loader.steps_per_epoch
    batch = default_collate((samples * -(-size // len(samples)))[:size])
    run, seconds = Run(models.build(config), config, ".", device), 0.0
    if config.optim.checkpointing:
        models.recompute(run.method)
    if config.optim.compile:
        compile_forward(run.method)
    run.method.train()
    progress = Progress(0, epoch, config.schedule.epochs * epoch)
    if config.optim.compile:  # which takes minutes, once
        with fitting(run):
            gradients(run, run.method, batch, progress)
    for _ in range(2):  # the first is slower
        started = time.perf_counter()
        with fitting(run):
            losses = gradients(run, run.method, batch, progress)
            losses["total"].item()  # waits for the device
        seconds = time.perf_counter() - started
        if seconds > PATIENCE:
            break
    return seconds


def tell_speed(config: RunConfig, loader: clip.ClipLoader, speed: Speed, step: float) -> None:
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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker of the loader
    cv2.setNumThreads(0)
    try:
        speed = make_samples(loader, args.seconds, keep=max(SHOWN, config.data.batch_size))
    finally:
        torch.set_num_threads(threads)
    path = Path(args.sheet or f"runs/{Path(args.config).stem}/check.png")
    with replacing(path) as part:
        Image.fromarray(sheet(speed.samples[:SHOWN])).save(part, format="PNG")
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
