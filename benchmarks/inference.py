"""Where does the time of a video go, from JPEGs to masks and overlays, and what does overlapping save?

    python benchmarks/inference.py --data DIR [--sequence NAME] [--frames 30] [--repeats 3] [--device auto]

One sequence in DAVIS layout through the code of infer_vos.py, two ways that take turns:
    in turn      one stage after the other in one thread, one frame at a time; a GPU is waited for after each stage
    overlapped   as infer_vos.py runs: frames decoded and copied ahead, masks and overlays written behind, by threads
Both with the same network, precision and propagation.  Milliseconds a frame, medians of the repeats; one round before
them does not count.  Overlapped, a stage's time is that of its own thread, on a GPU that of handing out the work; what
counts there is the whole.  CPU seconds are those of all threads: less moved by a busy machine.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core import devices  # noqa: E402
from core.distributed import Team  # noqa: E402
from core.errors import reported  # noqa: E402
from datasets import vos_sequences  # noqa: E402
from labelprop import runner, video  # noqa: E402
from labelprop.context import Context  # noqa: E402
from models import snapshots  # noqa: E402

STAGES = {  # stage -> who does it when they overlap
    "decoding": "ahead", "to the device": "ahead", "network": "main", "propagation": "main", "up-sampling": "main",
    "PNG": "writers", "overlay": "writers",
}  # fmt: skip


class Watch:
    """Seconds of each stage, of all threads."""

    def __init__(self, device, waits):
        self.wait = torch.cuda.synchronize if waits and device.type == "cuda" else lambda: None
        self.seconds, self.lock = dict.fromkeys(STAGES, 0.0), threading.Lock()

    @contextmanager
    def stage(self, name):
        before = time.perf_counter()
        yield
        self.wait()
        with self.lock:
            self.seconds[name] += time.perf_counter() - before

    def timed(self, name, function):
        def call(*args, **kwargs):
            with self.stage(name):
                return function(*args, **kwargs)

        return call

    def each(self, name, items):
        """The items, the making of each being timed."""
        while True:
            with self.stage(name):
                item = next(items, None)
            if item is None:
                return
            yield item


class InTurn:
    """An executor without threads."""

    def submit(self, function, *args):
        future = Future()
        future.set_result(function(*args))
        return future


def segment(sequence, features, cfg, device, batch, overlapped, count):
    """Wall and CPU seconds of `count` frames, and the seconds of each stage."""
    watch = Watch(device, waits=not overlapped)
    watched = SimpleNamespace(
        name=sequence.name,
        frames=lambda: watch.each("decoding", islice(sequence.frames(), count)),
        given=sequence.given,
        frame_names=sequence.frame_names[:count],
        written=sequence.written[:count],
    )
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        for where, name, stage in (
            (video, "_inputs", "to the device"), (Context, "step", "propagation"), (video, "to_ids", "up-sampling"),
            (runner, "write_indexed", "PNG"), (runner, "overlay", "overlay"), (runner, "write_picture", "overlay"),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(where, name, watch.timed(stage, getattr(where, name))))
        if overlapped:
            pool = stack.enter_context(ThreadPoolExecutor(runner.writers(device, Team())))
        else:
            pool = InTurn()
            for where, name in ((runner, "FRAMES_AHEAD"), (runner, "BATCHES_AHEAD"), (video, "LANDING")):
                stack.enter_context(mock.patch.object(where, name, 0))
        network = watch.timed("network", features)
        wall, cpu = time.perf_counter(), time.process_time()
        runner.segment(
            watched, network, cfg, device, batch if overlapped else 1, Path(folder), Path(folder), pool, lambda: None
        )
        return time.perf_counter() - wall, time.process_time() - cpu, watch.seconds


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default="data/sample", help="in DAVIS layout")
    add("--sequence", help="default: the first")
    add("--frames", type=int, default=30)
    add("--repeats", type=int, default=3)
    add("--checkpoint", default="untrained")
    add("--config", help="default with untrained: configs/ytvos.yaml")
    add("--key", help="feature layer, default: the network's first")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--precision", default="auto", choices=("auto", *devices.DTYPES))
    add("--compile", action="store_true", help="torch.compile the network")
    add("--batch", type=int, help="when overlapped; default: that of infer_vos.py")
    return parser.parse_args()


@reported
def main():
    args = parse()
    device = devices.pick(args.device)
    precision = devices.inference_precision(device, args.precision)
    config = args.config or ("configs/ytvos.yaml" if args.checkpoint == "untrained" else None)
    method, config = snapshots.restore(args.checkpoint, config)
    key, batch = args.key or method.keys[0], args.batch or runner.BATCH[device.type]
    features = method.to(device, memory_format=torch.channels_last).extractor(key, precision, args.compile)
    (sequence, *_) = vos_sequences.davis(args.data, names=[args.sequence] if args.sequence else None)
    count = min(args.frames, sequence.length)
    propagation = config.propagation_on("davis", method.cell_px(key))
    runs = {False: [], True: []}
    for repeat in range(args.repeats + 1):
        for overlapped, results in runs.items():
            result = segment(sequence, features, propagation, device, batch, overlapped, count)
            if repeat:
                results.append(result)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    how = f"{precision}{', compiled' * args.compile}, batches of 1 and {batch}"
    print(f"{config.method.name} {key}, {how}; {where}; {sequence.name}, {count} frames")
    print(f"medians of {args.repeats} alternated runs\n")
    report(runs[False], runs[True], count)


def report(in_turn, overlapped, count):
    """The table: each stage, what is left, and the whole."""
    middle = lambda runs, value: 1000 * statistics.median(map(value, runs)) / count
    whole = [middle(runs, lambda run: run[0]) for runs in (in_turn, overlapped)]
    rest = list(whole)
    print("| stage | thread | in turn, ms a frame | share | overlapped, ms a frame |\n|---|---|---|---|---|")
    for stage, thread in STAGES.items():
        times = [middle(runs, lambda run, stage=stage: run[2][stage]) for runs in (in_turn, overlapped)]
        rest[0] -= times[0]
        rest[1] -= times[1] if thread == "main" else 0
        print(f"| {stage} | {thread} | {times[0]:.2f} | {times[0] / whole[0]:.1%} | {times[1]:.2f} |")
    print(f"| waiting, and what else there is | main | {rest[0]:.2f} | {rest[0] / whole[0]:.1%} | {rest[1]:.2f} |")
    print(f"| whole | | {whole[0]:.2f} | | {whole[1]:.2f} |")
    cpu = [middle(runs, lambda run: run[1]) for runs in (in_turn, overlapped)]
    print(f"| CPU time of all threads | | {cpu[0]:.2f} | | {cpu[1]:.2f} |\n")
    print(f"{1000 / whole[0]:.2f} frames/s in turn, {1000 / whole[1]:.2f} overlapped: x{whole[0] / whole[1]:.2f}")


if __name__ == "__main__":
    main()
