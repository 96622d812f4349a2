"""Clips of T frames from a reader's videos, and batches of them.

Everything drawn for a clip comes from (seed, epoch, place in the epoch): neither the number of workers nor
the number of processes changes it, and a run can go on at any step.
"""

import logging
import os
import signal
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from core import distributed
from core.errors import UserError
from datasets import readers
from datasets.readers import UnreadableFrame

log = logging.getLogger(__name__)

#: Seconds between times that are the same: indexes keep microseconds.
NO_TIME = 1e-5


def places(length, clip, times=None):
    """At how many frames of a video of `length` frames a clip can start; 0: the video is too short.

    clip: core.schema.Clip.  times: seconds of the frames, ascending [length]; needed with clip.fps.
    """
    if length < clip.frames:
        return 0
    if clip.fps is None:
        window, step = _window(length, clip)
        # The authors bound the start by the window only where the step is a fraction.
        return length - window + 1 if clip.step == "fraction" else length - (clip.frames - 1) * step
    last = times[-1] - (clip.frames - 1) / clip.fps + NO_TIME
    return min(int(np.searchsorted(times, last, side="right")), length - clip.frames + 1)


def sample_frames(length, clip, rng, times=None):
    """T frame ids of a video, from a random place on, as `clip` says; see `places` for the arguments.

    With clip.gap the frames are evenly spread over a window; with clip.fps they are those nearest to
    start + i / fps seconds.  rng: numpy Generator.  Returns a list of T ids, none twice.
    """
    count = places(length, clip, times)
    assert count, "videos shorter than a clip are left out beforehand"
    start = int(rng.integers(0, count))
    if clip.fps is None:
        _, step = _window(length, clip)
        ids = [start + int(i * step) for i in range(clip.frames)]
    else:
        ids = _nearest(times, times[start] + np.arange(clip.frames) / clip.fps)
    return [ids[i] for i in rng.permutation(clip.frames)] if clip.order == "random" else ids


def _window(length, clip):
    """(frames of the window, frames from one sampled frame to the next) of a clip with clip.gap."""
    window = min(length, clip.gap * clip.frames)
    return window, window // clip.frames if clip.step == "whole" else window / clip.frames


def _nearest(times, wanted):
    """Ids of the frames nearest to the wanted times, the later of two; each at least one after the one before."""
    right = np.searchsorted(times, wanted).clip(1, len(times) - 1)
    ids = right - (wanted - times[right - 1] < times[right] - wanted - NO_TIME)
    # Where frames are rarer than wanted the nearest ones repeat: the next ones stand in, up to the last.
    steps = np.arange(len(ids))
    ids = np.maximum.accumulate(ids - steps) + steps
    return np.minimum(ids, len(times) - len(ids) + steps).tolist()


class ClipDataset(Dataset):
    """Item (epoch, place, video) -> one training sample; `place` is where in the epoch the clip stands.

    reader: datasets.readers.VideoReader.  clip: core.schema.Clip.  views: called with (frames, rng), see
    models/method.py.  folder_fps: see core.schema.Data.  A sample has one key more than the views make: "bad",
    a list of (path, reason) of the files that could not be read; each time another video took the clip's place.
    clips: the video of every clip of an epoch; each stands there clip.clips_per_video times, or as often as it
    has places where a clip can start.
    """

    tries = 32

    def __init__(self, reader, clip, views, seed, folder_fps=None):
        self.reader, self.clip, self.views, self.seed, self.folder_fps = reader, clip, views, seed, folder_fps
        counts = [places(*self._span(video)) for video in range(len(reader))]
        self.videos = [video for video, count in enumerate(counts) if count]
        self.clips = [video for video in self.videos for _ in range(min(counts[video], clip.clips_per_video))]
        self.left_out = len(reader) - len(self.videos)
        if not self.videos:
            raise UserError(self._all_too_short())
        if self.left_out:
            least = "" if clip.fps is None else f" or {(clip.frames - 1) / clip.fps:.3g} seconds"
            log.warning(
                "%d of %d videos left out: fewer than %d frames%s", self.left_out, len(reader), clip.frames, least
            )

    def _span(self, video):
        """The arguments of `places`."""
        length = self.reader.length(video)
        if self.clip.fps is None:
            return length, self.clip, None
        times = self.reader.times(video)
        if times is None and self.folder_fps is None:
            raise UserError(
                f"clip.fps = {self.clip.fps}: the frames of {self.reader.name(video)} have no times; set"
                " data.folder_fps to the frames a second that they hold, or clip.fps=null, clip.gap and clip.step"
            )
        return length, self.clip, np.arange(length) / self.folder_fps if times is None else times

    def _all_too_short(self):
        lengths = [self.reader.length(video) for video in range(len(self.reader))]
        longest = max(lengths, default=0)
        if longest < self.clip.frames:
            return (
                f"clip.frames = {self.clip.frames}: none of the {len(lengths)} videos has so many frames (the longest:"
                f" {longest}); lower clip.frames or set data.root to longer videos"
            )
        return (
            f"clip.frames = {self.clip.frames} at clip.fps = {self.clip.fps}: none of the {len(lengths)} videos is long"
            " enough; lower clip.frames, raise clip.fps or set data.root to longer videos"
        )

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, item):
        epoch, place, video = item
        rng = np.random.default_rng([self.seed, epoch, 1 + place])  # 0 is the epoch's order
        bad = []
        for _ in range(self.tries):
            try:
                length, clip, times = self._span(video)
                ids = sample_frames(length, clip, rng, times)
                return {**self.views(self.reader.read(video, ids), rng), "bad": bad}
            except UnreadableFrame as error:
                bad.append((error.path, error.reason))
                video = self.videos[rng.integers(len(self.videos))]
            except UserError as error:
                if get_worker_info() is None:
                    raise
                return {"bad": bad, "error": str(error)}  # torch would put the worker's traceback into its message
        return {"bad": bad}


class BadClips:
    """Counts clips that could not be read; too large a share of them stops the run.

    share: largest share of bad clips that is borne.  `warm_up`: fewer clips than that are judged as if they
    were so many, so that one bad file at the start stops nothing.
    """

    warm_up = 200

    def __init__(self, share):
        self.share, self.clips, self.bad, self.reasons = share, 0, 0, {}

    def add(self, clips, bad):
        """clips: how many were wanted.  bad: (path, reason) of those replaced.  Raises UserError."""
        self.clips += clips + len(bad)
        self.bad += len(bad)
        for path, reason in bad:
            if path not in self.reasons:
                log.warning("unreadable, another clip took its place: %s: %s", path, reason)
            self.reasons[path] = reason
        if self.bad > self.share * max(self.clips, self.warm_up):
            raise self.error(f"more than data.bad_share = {self.share} allows; mend or remove the files, or raise it")

    def error(self, verdict):
        first = "".join(f"\n  {path}: {reason}" for path, reason in list(self.reasons.items())[:10])
        return UserError(
            f"{self.bad} of {self.clips} clips could not be read, {verdict}.  The first of {len(self.reasons)}"
            f" files:{first}"
        )


class ClipLoader:
    """Batches of a ClipDataset, step by step, through as many epochs as it takes.

    batch_size: clips of all processes together; this process (rank of world) gets its equal share of each.
    An epoch is one random order of the data set's clips, cut into whole batches; where there are fewer than a
    batch has, the order is repeated until it fills one.  device: batches are pinned for "cuda".
    """

    def __init__(self, dataset, batch_size, workers, bad_share, device="cpu", rank=0, world=1):
        if batch_size % world:
            raise UserError(f"data.batch_size = {batch_size}: must be a multiple of the {world} processes sharing it")
        self.dataset, self.batch_size, self.workers = dataset, batch_size, workers
        self.rank, self.world, self.pinned = rank, world, torch.device(device).type == "cuda"
        self.bad_clips = BadClips(bad_share)
        self.steps_per_epoch = max(1, len(dataset) // batch_size)
        if len(dataset) < batch_size:
            count = len(dataset.videos)
            log.warning("%d videos for batches of %d clips: videos are repeated in a batch", count, batch_size)

    def batches(self, first_step, last_step):
        """Yields the batches of steps first_step .. last_step - 1 of the run: {name: tensor [B, ...]}.

        Step s is batch s % steps_per_epoch of epoch s // steps_per_epoch.  Workers prefetch across the ends
        of epochs, and stop when the generator is closed.  Raises UserError when too many clips are bad.
        """
        with self.serve(first_step, last_step) as batches:
            yield from batches

    @contextmanager
    def serve(self, first_step, last_step):
        """with loader.serve(a, b) as batches: what `batches` yields, whose workers end with the block.

        torch reports a worker's death wherever the main process is at that moment: here it becomes a UserError.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores: as told
            loader = DataLoader(
                self.dataset,
                batch_sampler=self._items(first_step, last_step),
                num_workers=self.workers,
                collate_fn=_collate,
                pin_memory=self.pinned,
                worker_init_fn=_start_worker,
                generator=torch.Generator(),  # else the loader would draw from the run's own generator
            )
            batches = iter(loader)
        try:
            yield self._checked(batches)
        except Exception as error:
            reason = _death(batches, error)
            if reason is None:
                raise
            raise UserError(reason) from error
        finally:
            _end(batches)

    def _checked(self, batches):
        for batch in batches:
            if "error" in batch:
                raise UserError(batch["error"])
            self.bad_clips.add(self.batch_size // self.world, batch.pop("bad"))
            if not batch:
                raise self.bad_clips.error(f"{self.dataset.tries} of them in a row; is this the right folder?")
            yield batch

    def _items(self, first_step, last_step):
        """Per step the (epoch, place, video) of this process's clips."""
        share, order_of = self.batch_size // self.world, None
        for step in range(first_step, last_step):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if order_of != epoch:
                order_of, order = epoch, self.order(epoch)
            first = batch * self.batch_size + self.rank * share
            yield [(epoch, place, order[place]) for place in range(first, first + share)]

    def order(self, epoch):
        """The video of every clip of an epoch, in order: steps_per_epoch * batch_size of them."""
        rng = np.random.default_rng([self.dataset.seed, epoch, 0])
        order = [self.dataset.clips[i] for i in rng.permutation(len(self.dataset))]
        size = self.steps_per_epoch * self.batch_size
        return (order * -(-size // len(order)))[:size]


MEMORY = (
    "Mostly memory ran out: /dev/shm (in a container, start it with --shm-size=16g) or the machine's; "
    "lower data.workers or data.batch_size, or set data.workers=0"
)


def _death(batches, error):
    """Why the workers' end explains an error, in words, or None where it does not."""
    if isinstance(error, UserError):
        return None
    if isinstance(error, MemoryError):
        return f"no memory was left to read data.  {MEMORY}"
    text = str(error)
    if text.startswith("Caught "):  # a worker's own exception, with its traceback
        return None
    # A dead worker's half-sent batch raises whatever the connection meets.
    dead = [worker for worker in _workers(batches) if worker.exitcode is not None]
    if "DataLoader worker" in text or (dead and not batches._shutdown):
        return f"a worker that reads data died: {text or type(error).__name__}  {MEMORY}"
    return None


def _workers(batches):
    """The processes of a DataLoader's iterator; torch keeps them to itself."""
    return getattr(batches, "_workers", [])


def _end(batches):
    """End the workers within seconds, whatever they do: first as torch does, then by force."""
    workers = _workers(batches)
    if not workers:
        return
    done = threading.Event()

    def force():
        for end in ("terminate", "kill"):
            if done.wait(2):
                return
            for worker in workers:
                getattr(worker, end)()

    threading.Thread(target=force, daemon=True).start()
    batches._shutdown_workers()
    done.set()


def loader(config, views, device):
    """The clips that a run trains on in batches, this process's share.  config: core.schema.RunConfig."""
    data = config.data
    if Path(data.root).is_relative_to("data/sample") and not Path(data.root).is_dir():
        raise UserError(f"data.root = {data.root}: is not there yet; make it: python -m datasets.sample")
    reader = readers.opened(data.reader, data.root, data.list)
    clips = ClipDataset(reader, config.clip, views, config.seed, data.folder_fps)
    rank, world = distributed.rank(), distributed.world_size()
    return ClipLoader(clips, data.batch_size, data.workers, data.bad_share, device, rank, world)


def _collate(samples):
    bad = [entry for sample in samples for entry in sample.pop("bad")]
    errors = [sample["error"] for sample in samples if "error" in sample]
    if errors:
        return {"bad": bad, "error": errors[0]}
    complete = all(samples)  # a sample is empty where nothing could be read in its place
    return {**(default_collate(samples) if complete else {}), "bad": bad}


def _start_worker(_):
    """The main process decides what a signal to all processes means: workers go on until it ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey, daemon=True).start()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _obey():
    """End this worker at a SIGTERM from the main process; anyone else's counts for nothing."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
