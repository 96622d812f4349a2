"""Where does the time of a video go, from JPEGs to masks and overlays, and what does overlapping save?

    python -m benchmarks.inference --data DIR [--sequence NAME] [--frames 30] [--repeats 3] [--device auto]

One sequence in DAVIS layout through the code of infer_vos.py, two ways that take turns:
    in turn      one stage after the other in one thread, one frame at a time; a GPU is waited for after each stage
    overlapped   as infer_vos.py runs: frames decoded and copied ahead, masks and overlays written behind, by threads
Both with the same network, precision and propagation.  Milliseconds a frame, medians of the repeats; one round before
them does not count.  Overlapped, a stage's time is that of its own thread, on a GPU that of handing out the work; what
counts there is the whole.  CPU seconds are those of all threads: less moved by a busy machine.
"""

import statistics
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

import models
from benchmarks import timing
from core import devices
from core.errors import reported
from datasets import vos_sequences
from labelprop import Tracker, runner, video
from labelprop import tracker as tracking
from labelprop.context import Context

STAGES = {  # stage -> who does it when they overlap
    "decoding": "ahead", "to the device": "ahead", "network": "main", "propagation": "main", "up-sampling": "main",
    "PNG": "writers", "overlay": "writers",
}  # fmt: skip
PATCHED = (  # where a function is looked up, its name, its stage
    (video.Video, "batch", "to the device"), (Context, "step", "propagation"), (video, "to_ids", "up-sampling"),
    (runner, "write_indexed", "PNG"), (runner, "overlay", "overlay"), (runner, "write_picture", "overlay"),
)  # fmt: skip


class Watch:
    """Seconds of each stage, of all threads."""

    def __init__(self, wait):
        self.wait, self.seconds, self.lock = wait, dict.fromkeys(STAGES, 0.0), threading.Lock()

    def timed(self, stage, function):
        """The function, its calls counted as the stage's."""

        def call(*args, **kwargs):
            before = time.perf_counter()
            result = function(*args, **kwargs)
            self.wait()
            with self.lock:
                self.seconds[stage] += time.perf_counter() - before
            return result

        return call

    def each(self, stage, items):
        """The items; making them counts as the stage's."""
        step = self.timed(stage, lambda: next(items, None))
        while (item := step()) is not None:
            yield item


class InTurn:
    """An executor without threads."""

    def submit(self, function, *args):
        future = Future()
        future.set_result(function(*args))
        return future


def segment(sequence, tracker, count, overlapped):
    """The Run of `count` frames; its result: the seconds of each stage."""
    device = tracker.device
    watch = Watch(torch.cuda.synchronize if device.type == "cuda" and not overlapped else lambda: None)
    watched = SimpleNamespace(
        name=sequence.name,
        frames=lambda: watch.each("decoding", islice(sequence.frames(), count)),
        given=sequence.given,
        frame_names=sequence.frame_names[:count],
        written=sequence.written[:count],
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for where, name, stage in PATCHED:
            stack.enter_context(mock.patch.object(where, name, watch.timed(stage, getattr(where, name))))
        if overlapped:
            pool = stack.enter_context(ThreadPoolExecutor(runner.writers(device)))
        else:
            pool = InTurn()
            for where, name in ((tracking, "AHEAD"), (video, "LANDING")):
                stack.enter_context(mock.patch.object(where, name, 0))
            stack.enter_context(mock.patch.object(tracker, "batch", 1))
        stack.enter_context(mock.patch.object(tracker, "features", watch.timed("network", tracker.features)))
        work = lambda: runner.segment(watched, tracker, sequence.given(), folder, folder, pool, lambda: None)
        run = timing.timed(work, device)
    return run._replace(result=watch.seconds)


def report(in_turn, overlapped, count):
    """The table: each stage, what is left, and the whole."""
    both = (in_turn, overlapped)
    whole, cpu = ([1e3 * timing.median(runs, clock) / count for runs in both] for clock in ("wall", "cpu"))
    rest = list(whole)
    timing.head("stage", "thread", "in turn, ms a frame", "share", "overlapped, ms a frame")
    for stage, thread in STAGES.items():
        each = [1e3 * statistics.median(run.result[stage] for run in runs) / count for runs in both]
        rest[0] -= each[0]
        rest[1] -= each[1] if thread == "main" else 0
        timing.row(stage, thread, f"{each[0]:.2f}", f"{each[0] / whole[0]:.1%}", f"{each[1]:.2f}")
    share = f"{rest[0] / whole[0]:.1%}"
    timing.row("waiting, and what else there is", "main", f"{rest[0]:.2f}", share, f"{rest[1]:.2f}")
    timing.row("whole", "", f"{whole[0]:.2f}", "", f"{whole[1]:.2f}")
    timing.row("CPU time of all threads", "", f"{cpu[0]:.2f}", "", f"{cpu[1]:.2f}")
    print(f"\n{1e3 / whole[0]:.2f} frames/s in turn, {1e3 / whole[1]:.2f} overlapped: x{whole[0] / whole[1]:.2f}")


def parse(argv):
    parser = timing.arguments(__doc__, repeats=3)
    add = parser.add_argument
    add("--data", default="data/sample", help="in DAVIS layout")
    add("--sequence", help="default: the first")
    add("--frames", type=int, default=30)
    add("--checkpoint", default="untrained")
    add("--config", help="with untrained; default: DUL's ResNet-18")
    add("--key", help="feature layer, default: the network's first")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--precision", default="auto", choices=("auto", *devices.DTYPES))
    add("--compile", action="store_true", help="torch.compile the network")
    add("--batch", type=int, help="when overlapped; default: that of infer_vos.py")
    return parser.parse_args(argv)


@reported
def main(argv=None):
    args = parse(argv)
    tracker = Tracker(
        models.load(args.checkpoint, args.config), args.key, device=args.device,
        precision=args.precision, batch=args.batch, compiled=args.compile,
    )  # fmt: skip
    (sequence, *_) = vos_sequences.davis(args.data, names=[args.sequence] if args.sequence else None)
    count = min(args.frames, sequence.length)
    work = partial(segment, sequence, tracker, count)
    runs = timing.alternated({False: False, True: True}, args.repeats, work, warm=1)
    how = f"{tracker.precision}{', compiled' if args.compile else ''}, batches of 1 and {tracker.batch}"
    print(f"{tracker.layer}, {how}; {timing.machine(tracker.device)}; {sequence.name}, {count} frames")
    print(f"medians of {args.repeats} alternated runs\n")
    report(runs[False], runs[True], count)


if __name__ == "__main__":
    main()
