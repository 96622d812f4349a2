"""Clips of T frames from a reader's videos, and batches of them.

All random draws for a clip follow from (seed, epoch, place in the epoch).  So the clips do not depend on the number of
workers or of processes, and a run can go on at any step.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from core import distributed
from core.errors import UserError
from core.schema import Clip, RunConfig
from datasets import readers, worker
from datasets.readers import UnreadableFrame

log = logging.getLogger(__name__)

#: Seconds.  Times that differ by less count as equal: the index of a video keeps microseconds.
NO_TIME = 1e-5


def places(length: int, clip: Clip, times: np.ndarray | None = None) -> int:
    """The number of frames at which a clip can start in a video of `length` frames; 0 if the video is too short.

    times: [length], the ascending times of the frames in seconds; needed with clip.fps.
    """
    if length < clip.frames:
        return 0
    if clip.fps is None:
        window, step = _window(length, clip)
        # The authors bound the start by the window only where the step is a fraction.
        return length - window + 1 if clip.step == "fraction" else length - (clip.frames - 1) * step
    assert times is not None
    last = times[-1] - (clip.frames - 1) / clip.fps + NO_TIME
    return min(int(np.searchsorted(times, last, side="right")), length - clip.frames + 1)


def sample_frames(length: int, clip: Clip, rng: np.random.Generator, times: np.ndarray | None = None) -> list[int]:
    """Draw the numbers of the T frames of a clip, none twice.  The arguments are those of `places`.

    With clip.gap the frames are evenly spread over a window; with clip.fps they are the frames nearest to the times
    start + i / fps.
    """
    count = places(length, clip, times)
    assert count, "videos shorter than a clip are left out beforehand"
    start = int(rng.integers(0, count))
    if clip.fps is None or times is None:
        _, step = _window(length, clip)
        frames = [start + int(i * step) for i in range(clip.frames)]
    else:
        frames = _nearest(times, times[start] + np.arange(clip.frames) / clip.fps)
    return [frames[i] for i in rng.permutation(clip.frames)] if clip.order == "random" else frames


def _window(length, clip):
    """(length of the window, step from one sampled frame to the next), in frames, for a clip with clip.gap."""
    window = min(length, clip.gap * clip.frames)
    step = window // clip.frames if clip.step == "whole" else window / clip.frames
    return window, step


def _nearest(times, wanted):
    """The frame nearest to each wanted time, ascending, none twice; of two equally near frames, the later."""
    right = np.searchsorted(times, wanted).clip(1, len(times) - 1)
    left_is_nearer = wanted - times[right - 1] < times[right] - wanted - NO_TIME
    frames = np.where(left_is_nearer, right - 1, right)
    # Where the video has fewer frames a second than wanted, a frame is nearest to several times.  The frames after it
    # take its place: each is at least one more than the frame before, and leaves room for those that follow.
    steps = np.arange(len(frames))
    frames = np.maximum.accumulate(frames - steps) + steps
    return np.minimum(frames, len(times) - len(frames) + steps).tolist()


class ClipDataset(Dataset):
    """Item (epoch, place, video) -> one training sample; `place` is the position of the clip in the epoch.

    reader: datasets.readers.VideoReader.  views: called with (frames, rng), see models/method.py.  folder_fps: see
    core.schema.Data.  A sample is the dict of the views with one more key, "bad": the (path, reason) of every file that
    could not be read; each time a clip of another video took its place.  Where no sample could be made, a key "error"
    says why.
    videos: the numbers of the videos that are long enough.  clips: the video of every clip of an epoch, which takes
    clip.clips_per_video clips of each video, or as many as there are frames at which a clip can start.
    """

    tries = 32

    def __init__(
        self, reader: readers.VideoReader, clip: Clip, views: Callable, seed: int, folder_fps: float | None = None
    ):
        self.reader, self.clip, self.views, self.seed, self.folder_fps = reader, clip, views, seed, folder_fps
        counts = [places(reader.length(video), clip, self._times(video)) for video in range(len(reader))]
        self.videos = [video for video, count in enumerate(counts) if count]
        self.clips = [video for video in self.videos for _ in range(min(counts[video], clip.clips_per_video))]
        self.left_out = len(reader) - len(self.videos)
        if not self.videos:
            rate, raised = ("", "") if clip.fps is None else (f" at clip.fps = {clip.fps}", ", raise clip.fps")
            raise UserError(
                f"clip.frames = {clip.frames}{rate}: none of the {len(reader)} videos is long enough (frames of the"
                f" longest: {max(map(reader.length, range(len(reader))), default=0)}); lower clip.frames{raised}"
                " or set data.root to longer videos"
            )
        if self.left_out:
            least = "" if clip.fps is None else f" or {(clip.frames - 1) / clip.fps:.3g} seconds"
            log.warning(
                "%d of %d videos left out: fewer than %d frames%s", self.left_out, len(reader), clip.frames, least
            )

    def _times(self, video):
        """The times of a video's frames in seconds; None for clips with clip.gap, which need none."""
        if self.clip.fps is None:
            return None
        times = self.reader.times(video)
        if times is None and self.folder_fps is None:
            raise UserError(
                f"clip.fps = {self.clip.fps}: the frames of {self.reader.name(video)} have no times; set"
                " data.folder_fps to the frames a second that they hold, or clip.fps=null, clip.gap and clip.step"
            )
        return np.arange(self.reader.length(video)) / self.folder_fps if times is None else times

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: tuple[int, int, int]) -> dict:
        epoch, place, video = item
        rng = np.random.default_rng([self.seed, epoch, 1 + place])  # 0 is the epoch's order
        bad: list[tuple[str, str]] = []
        for _ in range(self.tries):
            try:
                frames = sample_frames(self.reader.length(video), self.clip, rng, self._times(video))
                return {**self.views(self.reader.read(video, frames), rng), "bad": bad}
            except UnreadableFrame as error:
                bad.append((error.path, error.reason))
                video = self.videos[rng.integers(len(self.videos))]
            # An error that a worker raises gets the worker's traceback into its message: these are returned instead.
            except UserError as error:
                return {"bad": bad, "error": str(error)}
            except MemoryError:
                return {"bad": bad, "error": f"no memory was left to read data.  {worker.MEMORY}"}
        advice = "is data.root the right folder?"
        return {"bad": bad, "error": f"{self.tries} clips in a row could not be read; {advice}{_first_ten(dict(bad))}"}


def _first_ten(reasons):
    return "".join(f"\n  {path}: {reason}" for path, reason in list(reasons.items())[:10])


class BadClips:
    """Counts the clips that could not be read; too large a share of them stops the run.

    share: the largest share that is accepted.  warm_up: the share is taken of this many clips at least, so that one bad
    file at the start does not stop the run.
    """

    warm_up = 200

    def __init__(self, share: float):
        self.share, self.clips, self.bad = share, 0, 0
        self.reasons: dict[str, str] = {}

    def add(self, clips: int, bad: list[tuple[str, str]]) -> None:
        """Count `clips` sound clips and the bad clips that they replaced; bad: (path, reason) of each.

        Raises UserError where the share of bad clips is too large.
        """
        self.clips += clips + len(bad)
        self.bad += len(bad)
        for path, reason in bad:
            if path not in self.reasons:
                log.warning("unreadable, another clip took its place: %s: %s", path, reason)
            self.reasons[path] = reason
        if self.bad > self.share * max(self.clips, self.warm_up):
            raise UserError(
                f"{self.bad} of {self.clips} clips could not be read, more than data.bad_share = {self.share} allows;"
                f" mend or remove the files, or raise it.  The first of {len(self.reasons)}:{_first_ten(self.reasons)}"
            )


class ClipLoader:
    """Batches of a ClipDataset, step by step, through as many epochs as needed.

    batch_size: clips of all processes together; this process (rank of world) gets its equal share of each batch.
    An epoch is one random order of the data set's clips, cut into whole batches; an order shorter than a batch is
    repeated until it fills a batch.  device: for "cuda" batches are in pinned memory.
    """

    def __init__(
        self, dataset: ClipDataset, batch_size: int, workers: int, bad_share: float, device="cpu", rank=0, world=1
    ):
        if batch_size % world:
            raise UserError(f"data.batch_size = {batch_size}: must be a multiple of the {world} processes sharing it")
        self.dataset, self.batch_size, self.workers = dataset, batch_size, workers
        self.rank, self.world, self.pinned = rank, world, torch.device(device).type == "cuda"
        self.bad_clips = BadClips(bad_share)
        self.steps_per_epoch = max(1, len(dataset) // batch_size)
        if len(dataset) < batch_size:
            count = len(dataset.videos)
            log.warning("%d videos for batches of %d clips: videos are repeated in a batch", count, batch_size)

    def batches(self, first_step: int, last_step: int) -> Iterator[dict[str, torch.Tensor]]:
        """Yields the batches of steps first_step .. last_step - 1 of the run: {name: tensor [B, ...]}.

        Step s is batch s % steps_per_epoch of epoch s // steps_per_epoch.  Workers prefetch across the ends
        of epochs, and stop when the generator is closed.  Raises UserError when too many clips are bad.
        """
        with self.serve(first_step, last_step) as batches:
            yield from batches

    @contextmanager
    def serve(self, first_step: int, last_step: int) -> Iterator[Iterator[dict[str, torch.Tensor]]]:
        """with loader.serve(a, b) as batches: the iterator `batches(a, b)`; its workers end with the block.

        Where a worker has died, the next batch raises a UserError.
        """
        batches = worker.started(self.dataset, self._items(first_step, last_step), self.workers, self.pinned)
        try:
            yield self._checked(batches)
        except UserError:
            raise
        except Exception as error:
            if worker.died(batches, error):
                cause = f"{str(error) or type(error).__name__}  {worker.MEMORY}"
                raise UserError(f"a worker that reads data died: {cause}") from error
            raise
        finally:
            worker.end(batches)

    def _checked(self, batches):
        for batch, bad, error in batches:
            if error:
                raise UserError(error)
            self.bad_clips.add(self.batch_size // self.world, bad)
            yield batch

    def _items(self, first_step, last_step):
        """For each step a list of (epoch, place, video), one entry for each clip of this process."""
        share, ordered_epoch = self.batch_size // self.world, None
        for step in range(first_step, last_step):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if ordered_epoch != epoch:
                ordered_epoch, order = epoch, self.order(epoch)
            first = batch * self.batch_size + self.rank * share
            yield [(epoch, place, order[place]) for place in range(first, first + share)]

    def order(self, epoch: int) -> list[int]:
        """The video of every clip of an epoch, in order, [steps_per_epoch * batch_size]."""
        rng = np.random.default_rng([self.dataset.seed, epoch, 0])
        order = [self.dataset.clips[i] for i in rng.permutation(len(self.dataset))]
        size = self.steps_per_epoch * self.batch_size
        return (order * -(-size // len(order)))[:size]


def settled(config: RunConfig) -> RunConfig:
    """The configuration with the choices that depend on the videos made.

    data.reader "auto" becomes the name of a reader.  Where clip.gap and clip.fps are both given, one of them remains.
    """
    data, clip = config.data, config.clip
    reader = readers.fitting(data.root, data.list) if data.reader == "auto" else data.reader
    if clip.gap is not None and clip.fps is not None:
        timeless = reader == "frames" and data.folder_fps is None
        clip = replace(clip, fps=None) if timeless else replace(clip, gap=None, step=None)
    return replace(config, data=replace(data, reader=reader), clip=clip)


def loader(config: RunConfig, views: Callable, device: torch.device | str) -> ClipLoader:
    """The ClipLoader of a run for this process.  Raises UserError for data that the run cannot use."""
    data = config.data
    if Path(data.root).is_relative_to("data/sample") and not Path(data.root).is_dir():
        raise UserError(f"data.root = {data.root}: is not there yet; make it: python -m datasets.sample")
    reader = readers.opened(data.reader, data.root, data.list)
    clips = ClipDataset(reader, config.clip, views, config.seed, data.folder_fps)
    rank, world = distributed.rank(), distributed.world_size()
    if data.batch_size % (data.accumulate * world):
        divisor = f"data.accumulate = {data.accumulate}"
        if world > 1:
            divisor += f" times the {world} processes sharing it"
        raise UserError(f"data.batch_size = {data.batch_size}: must be a multiple of {divisor}")
    return ClipLoader(clips, data.batch_size, data.workers, data.bad_share, device, rank, world)
