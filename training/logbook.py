"""The output of a run: lines of text for the terminal and log files, curves and pictures for TensorBoard."""

import logging
import math
import resource
import signal
import sys
import time
from datetime import timedelta

import torch

from core import distributed
from training.run import NotFinite

log = logging.getLogger(__name__)


class _Curves:
    """tensorboardX's SummaryWriter in a folder, None = none.

    Where the package is missing, or its file cannot be written, it warns once and writes no more.
    """

    def __init__(self, folder, first_step):
        self.writer = None
        if folder is None:
            return
        try:
            from tensorboardX import SummaryWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog

            # Files are named by the second and the machine: with the step, too, a start in the same second overwrites
            # nothing.
            self.writer = SummaryWriter(str(folder), filename_suffix=f".{first_step:09d}")
            # Its thread would end on a full disk, and adding then wait for ever; written here, errors come here.
            self.events = self.writer.file_writer.event_writer
            self.events.add_event = self.events._ev_writer.write_event
            # The writer's purge_step would go by its thread, and hide what is written here before.
            self.writer.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), first_step)
        except ImportError:
            log.warning("no TensorBoard log: tensorboardX is missing (%s -m pip install tensorboardX)", sys.executable)
        except OSError as error:
            log.warning("no TensorBoard log: %s cannot be written (%s)", folder, error)

    def __getattr__(self, name):
        """A method of the writer."""

        def call(*values):
            if self.writer is None:
                return
            try:
                getattr(self.writer, name)(*values)
            except OSError as error:
                log.warning("no more TensorBoard log: %s cannot be written (%s)", self.events.get_logdir(), error)
                self.events._worker.stop()
                self.writer, self.events._closed = None, True  # nothing is tried again at the program's end

        return call


class Logbook:
    """Writes lines to stdout, scalars and pictures to a folder.  folder None, for ranks > 0: writes nothing."""

    def __init__(self, folder, last_step=0):
        """last_step: the steps that the run has taken; TensorBoard hides earlier entries of later steps."""
        self.writer = _Curves(folder, last_step + 1)
        self.prints, self.started = bool(folder), time.monotonic()

    def line(self, text):
        """Print one line with the time since the start."""
        if self.prints:
            print(f"[{timedelta(seconds=int(time.monotonic() - self.started))}] {text}", flush=True)

    def event(self, text, step):
        """Print a line about a start or a stop, and show it in TensorBoard."""
        self.line(text)
        self.writer.add_text("run/events", text, step)

    def scalars(self, values, step):
        """values: {name: number}."""
        for name, value in values.items():
            self.writer.add_scalar(name, float(value), step)
        self.writer.flush()

    def pictures(self, images, step):
        """images: {name: uint8 RGB [3,H,W]}."""
        for name, image in images.items():
            self.writer.add_image(name, image, step)
        self.writer.flush()

    def close(self):
        self.writer.close()


class Meter:
    """Means over the steps since the last report: losses, the share of time that waits for data, clips a second.

    Losses stay on the device until they are reported, so that no step waits for them.
    """

    def __init__(self):
        self.clear()

    def clear(self):
        self.sums, self.steps, self.clips, self.wait = {}, 0, 0, 0.0
        self.started = time.perf_counter()

    def fetch(self, batches):
        """The next batch; measures how long it takes to come."""
        before = time.perf_counter()
        batch = next(batches)
        self.wait += time.perf_counter() - before
        return batch

    def add(self, losses, clips):
        """Count one step.  losses: {name: scalar tensor}; clips: of its batch."""
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.steps, self.clips = self.steps + 1, self.clips + clips

    def losses(self):
        """The mean of each loss."""
        return {name: total.item() / self.steps for name, total in self.sums.items()}

    def speeds(self):
        """{"speed/clips_per_second", "speed/data_wait_share"}."""
        seconds = time.perf_counter() - self.started
        return {"speed/clips_per_second": self.clips / seconds, "speed/data_wait_share": self.wait / seconds}


def report(book, meter, run, progress, end, lr):
    """Log a line and the curves of the steps since the last report, and clear the meter.

    Raises NotFinite where a loss is not finite.
    """
    losses = meter.losses()
    wrong = [name for name, value in losses.items() if not math.isfinite(value)]
    memory = peak_memory(run.device)
    found, *peaks = zip(*distributed.gathered((wrong, *memory.values())))
    if any(found):
        raise NotFinite(run, wrong or ["a term on another rank"])
    memory = dict(zip(memory, map(max, peaks)))  # of the process that needs the most
    run.count_bad()
    speeds = meter.speeds()
    meter.clear()
    told = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
    book.line(
        f"step {run.step}/{end}  epoch {progress.epoch}  {told}  lr {lr:.3g}  "
        f"{speeds['speed/clips_per_second']:.2f} clips/s  waiting for data {speeds['speed/data_wait_share']:.0%}  "
        f"memory {' + '.join(f'{size:.1f}' for size in memory.values())} GiB"
        + (f"  unreadable clips {run.bad_clips}, files {run.bad_files}" if run.bad_clips else "")
    )
    values = {f"loss/{name}": value for name, value in losses.items()} | speeds | memory
    values |= {"schedule/lr": lr, "schedule/epoch": progress.epoch, "run/start": run.starts}
    values |= {"data/bad_clips": run.bad_clips, "data/bad_files": run.bad_files}
    book.scalars(values, run.step)


def peak_memory(device):
    """{"memory/host_gib"} of this process since its start, and on a GPU {"memory/device_gib"} since the last call."""
    # Linux counts in KiB, macOS in bytes.
    unit = 2**30 if sys.platform == "darwin" else 2**20
    memory = {"memory/host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if device.type == "cuda":
        memory["memory/device_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        torch.cuda.reset_peak_memory_stats(device)
    return memory


def farewell(run, end, halted):
    """The last words of a run: why it stopped, or its J&F, its files and the command to try its network."""
    root = run.config.validation.root
    if run.step < end or (halted and root and run.measured < run.step):
        left = "" if run.step < end else ", the last, without its validation"
        return f"stopped by {signal.Signals(halted).name} at step {run.step}{left}; the same command goes on"
    best, layer = run.folder / "best.pth", run.config.validation.layers[0]
    chosen = best if best.exists() else run.last
    option = "" if layer == run.method.extractor.layers[0] else f" --key {layer}"
    told = "J&F not measured"
    if layer in run.score:
        told = f"J&F of {layer} {run.score[layer]:.1f} at the end, {run.best[layer]:.1f} at its best ({best})"
    return (
        f"finished at step {run.step}; {told}\n  {run.last}: the last network, and the run's state\n"
        f"next: python infer_vos.py --checkpoint {chosen} --dataset davis --data {root or 'data/davis2017'} "
        f"--out results/{run.folder.parent.name}_{run.folder.name}{option}"
    )
