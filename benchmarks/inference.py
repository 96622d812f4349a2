"""How long does each stage take between JPEGs and masks, and how much time does overlapping the stages save?

    python -m benchmarks.inference --data DIR [--sequence NAME] [--frames 30] [--repeats 3] [--device auto]

Runs the code of infer_vos.py on one sequence (DAVIS layout) in two ways that take turns:
    in turn      one stage after the other, one frame at a time; on a GPU each stage waits for its result
    overlapped   as infer_vos.py runs: threads decode and copy the next frames, and write the last masks and overlays
The table has milliseconds per frame, medians of the repeats after one round of warm-up.  On a GPU the overlapped time
of a stage is the time to start it; only the whole is comparable.
"""

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch

import models
from benchmarks import timing
from core import devices
from core.errors import reported
from datasets import vos_sequences
from labelprop import Tracker, runner, tracker, video
from labelprop.context import Context

STAGES = {  # {name: (its thread when the stages overlap, its functions as (module or class, name))}
    "decoding": ("ahead", [(vos_sequences, "read_frame")]),
    "to the device": ("ahead", [(video.Video, "batch")]),
    "network": ("main", [(Tracker, "features")]),
    "propagation": ("main", [(Context, "step")]),
    "up-sampling": ("main", [(video, "to_ids")]),
    "PNG": ("writers", [(runner, "write_indexed")]),
    "overlay": ("writers", [(runner, "overlay"), (runner, "write_picture")]),
}
QUEUES = (runner, "WAITING"), (tracker, "AHEAD"), (video, "LANDING")


def watched(function, seconds, wait):
    """The function, which also appends the duration of every call to the list `seconds`; wait(): ends each call."""

    def call(*args, **kwargs):
        before = time.perf_counter()
        result = function(*args, **kwargs)
        wait()
        seconds.append(time.perf_counter() - before)
        return result

    return call


def segment(sequence, network, overlapped):
    """Segment the sequence with a Tracker.  Returns a Run whose result is {stage: seconds}."""
    wait = torch.cuda.synchronize if network.device.type == "cuda" and not overlapped else lambda: None
    seconds = {stage: [] for stage in STAGES}
    with ExitStack() as stack:
        patch = lambda where, name, new: stack.enter_context(mock.patch.object(where, name, new))
        for stage, (_, functions) in STAGES.items():
            for where, name in functions:
                patch(where, name, watched(getattr(where, name), seconds[stage], wait))
        if not overlapped:
            patch(network, "batch", 1)
            for where, name in QUEUES:
                patch(where, name, 0)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pool = stack.enter_context(ThreadPoolExecutor(runner.writers(network.device) if overlapped else 1))
        work = lambda: runner.segment(sequence, network, sequence.given(), folder, folder, pool, lambda: None)
        run = timing.timed(work, network.device)
    return run._replace(result={stage: sum(each) for stage, each in seconds.items()})


def report(in_turn, overlapped, count):
    """Print the time of each stage, of the rest, and of the whole."""
    both = (in_turn, overlapped)
    whole, cpu = ([1e3 * timing.median(runs, clock) / count for runs in both] for clock in ("wall", "cpu"))
    timing.head("stage", "thread", "in turn, ms a frame", "share", "overlapped, ms a frame")
    print_row = lambda name, thread, slow, fast: timing.row(
        name, thread, f"{slow:.2f}", f"{slow / whole[0]:.1%}", f"{fast:.2f}"
    )
    rest = list(whole)
    for stage, (thread, _) in STAGES.items():
        slow, fast = (1e3 * statistics.median(run.result[stage] for run in runs) / count for runs in both)
        rest[0] -= slow
        rest[1] -= fast if thread == "main" else 0
        print_row(stage, thread, slow, fast)
    print_row("the rest, and waiting", "main", *rest)
    print_row("whole", "", *whole)
    timing.row("CPU time of all threads", "", f"{cpu[0]:.2f}", "", f"{cpu[1]:.2f}")
    print(f"\n{1e3 / whole[0]:.2f} frames/s in turn, {1e3 / whole[1]:.2f} overlapped: x{whole[0] / whole[1]:.2f}")


@reported
def main(argv=None):
    parser = timing.arguments(__doc__, repeats=3)
    add = parser.add_argument
    add("--data", default="data/sample", help="data set in DAVIS layout")
    add("--sequence", help="default: the first")
    add("--frames", type=timing.count, default=30)
    add("--checkpoint", default="untrained")
    add("--config", help="with untrained; default: DUL's ResNet-18")
    add("--key", help="feature layer, default: the network's first")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--precision", default="fp32", choices=devices.DTYPES)
    add("--compile", action="store_true", help="torch.compile the network")
    add("--batch", type=int, help="when overlapped; default: as in infer_vos.py")
    args = parser.parse_args(argv)
    network = Tracker(
        models.load(args.checkpoint, args.config), args.key, device=args.device,
        precision=args.precision, batch=args.batch, compiled=args.compile,
    )  # fmt: skip
    (whole, *_) = vos_sequences.davis(args.data, names=[args.sequence] if args.sequence else None)
    first = slice(args.frames)
    sequence = replace(whole, images=whole.images[first], masks=whole.masks[first], written=whole.written[first])
    works = {overlapped: partial(segment, sequence, network, overlapped) for overlapped in (False, True)}
    runs = timing.alternated(works, args.repeats, lambda work: work(), warm=1)
    how = f"{network.precision}{', compiled' if args.compile else ''}, batches of 1 and {network.batch}"
    print(f"{network.layer}, {how}; {timing.machine(network.device)}; {sequence.name}, {sequence.length} frames")
    print(f"medians of {args.repeats} alternated runs\n")
    report(runs[False], runs[True], sequence.length)


if __name__ == "__main__":
    main()
