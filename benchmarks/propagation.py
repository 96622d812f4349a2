"""How much faster is the propagation of one frame than the dense computation, and how far apart are they?

    python -m benchmarks.propagation [--device cpu] [--davis DIR] [--repeats 1] [--geometry dul ino] [--threads 2]

One frame of 480x854 in steady state, from features to soft masks; preparing the frame counts.  DUL: 60x107 cells,
D 512, 21 frames, disc 12, open reference, top 10.  INO: 60x106 cells, D 384, 11 frames, square 40, top 5.
Ways that take turns:
    dense     every cell against every cell in chunks of queries; on a GPU in float32 and in float16
    windowed  the engine in plain torch, float32
    int8      on a CPU: the engine where 8-bit products find the candidates
    triton    on a GPU: the engine by the Triton kernels
On a CPU each run is a process of its own, so that its peak memory is its own: the frame is computed once for the memory
and once more, as warm as within a video, for the time.  Masks are compared with the dense ones, on a GPU with those of
the engine in float64; single cells, where two candidates for the last place are as good as one another to rounding,
may differ much.  With triton also: how many groups of 4 cells of a query are scored again in float32 (top_k at the
least), and the time of the search in each tile shape, and of each kernel.  Features are made, smooth in space and time,
or, with --davis, those of frames in an untrained ResNet-18 of stride 8.
"""

import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from benchmarks import timing, workload
from core import devices
from core.errors import UserError, reported
from labelprop import backends
from labelprop.walk import Group

CALLS = 10  # on a GPU: calls that are timed together


def on_cpu(frames, labels, cfg, repeats, threads):
    """{way: [(Run, added MiB)]} of processes that take turns, and the dense masks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tensors.pt"
        torch.save((frames, labels), path)
        works = {way: partial(alone, way, path, cfg, threads) for way in ("dense", "windowed", "int8")}
        runs = timing.alternated(works, repeats, in_a_process)
    return runs, runs["dense"][0][0].result


def in_a_process(work):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work).result()


def alone(way, path, cfg, threads):
    """In a process of its own: one timed Run, its result an array, and the memory that a first one added, in MiB."""
    torch.set_num_threads(threads)
    frames, labels = torch.load(path, weights_only=True)
    torch.mm(torch.randn(512, 512), torch.randn(512, 512))  # threads and libraries stand before the clock starts
    propagate = workload.propagation(way, frames[:-1], cfg)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status_mib("VmRSS")
    propagate(frames[-1], labels)
    peak = status_mib("VmHWM") - before
    run = timing.timed(lambda: propagate(frames[-1], labels))
    return run._replace(result=run.result.numpy()), peak


def status_mib(key):
    """A memory figure of this process as Linux keeps it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def on_gpu(frames, labels, cfg, repeats):
    """{way: [(Run, added MiB)]} in this process, and masks in float64."""
    device, keys, query, works = frames.device, frames[:-1], frames[-1], {}
    for name, way, dtype in (
        ("dense, float32", "dense", torch.float32), ("dense, float16", "dense", torch.float16),
        ("windowed", "windowed", torch.float32), ("triton", "triton", torch.float32),
    ):  # fmt: skip
        try:
            works[name] = partial(workload.propagation(way, keys.to(dtype), cfg), query.to(dtype), labels.to(dtype))
        except UserError as error:
            print(f"left out: {error}\n")
    added = {name: added_mib(work, device) for name, work in works.items()}  # it also compiles, tunes, fills caches
    runs = timing.alternated(works, repeats, lambda work: timing.timed(work, device, CALLS))
    truth = workload.propagation("windowed", keys.double(), cfg)(query.double(), labels.double())
    return {name: [(run, added[name]) for run in runs[name]] for name in runs}, truth


def added_mib(work, device):
    """Memory at its highest in the second of two calls, above what was taken before."""
    work()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def report(name, runs, truth):
    """The rows of one geometry; the first way is what others are compared with."""
    clocks = {way: [timing.median((run for run, _ in each), c) for c in ("wall", "cpu")] for way, each in runs.items()}
    slow, slow_cpu = next(iter(clocks.values()))
    truth = torch.as_tensor(truth)
    for way, each in runs.items():
        (wall, cpu), fastest = clocks[way], min(run.wall for run, _ in each)
        error = (torch.as_tensor(each[-1][0].result).to(truth) - truth).abs().amax(1)
        small = error <= 1e-5
        timing.row(
            name, way, f"{1e3 * wall:.3f}", f"{1e3 * fastest:.3f}", f"{slow / wall:.1f}", f"{1e3 * cpu:.3f}",
            f"{slow_cpu / cpu:.1f}", f"{statistics.median(added for _, added in each):.0f}",
            f"{error.mean():.1e}", int((~small).sum()), f"{(error * small).max():.1e}",
        )  # fmt: skip


def search_shapes(frames, cfg, repeats):
    """Prints what the Triton kernels' search scores again in float32, and its time in each tile shape."""
    from labelprop import triton_backend

    device, frames = frames.device, backends.prepared(list(frames), triton_backend)
    search = partial(triton_backend.search, frames[-1], frames[1:-1], [Group(frames[0], len(frames) - 2)], cfg)
    visits, works = search()[2].double(), {}
    shares = ", ".join(f"{(visits > n * cfg.top_k).double().mean():.2%} over {n} top_k" for n in (1, 2, 5, 20))
    print(f"\ngroups scored again: mean {visits.mean():.1f}, most {visits.max():.0f}; queries: {shares}")
    for shape in triton_backend.SHAPES:
        try:
            search(shape=shape)
            works[shape] = partial(search, shape=shape)
        except Exception as error:  # a card without room for it
            print(f"{shape}: {error}")
    for shape, runs in timing.alternated(works, repeats, lambda work: timing.timed(work, device, CALLS)).items():
        print(f"{shape}: {1e3 * timing.median(runs):.3f} ms")
    print(f"taken: {triton_backend.SHAPES if len(triton_backend.SHAPES) == 1 else triton_backend._fastest_known}")


def profile(frames, labels, cfg):
    """Prints the time of each kernel."""
    propagate = partial(workload.propagation("triton", frames[:-1], cfg), frames[-1], labels)
    propagate()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
        timing.timed(propagate, frames.device, CALLS)
    print(f"\nkernels of {CALLS} frames\n" + profiled.key_averages().table(sort_by="cuda_time_total", row_limit=14))


@reported
@torch.no_grad()
def main(argv=None):
    parser = timing.arguments(__doc__, repeats=1)
    workload.add_arguments(parser)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    device = devices.pick(args.device)
    torch.set_num_threads(args.threads)
    features = f"frames of {args.davis}" if args.davis else "made features"
    print(f"{timing.machine(device)}; {features}; medians of {args.repeats} alternated runs\n")
    timing.head("geometry", "way", "ms a frame", "fastest", "ratio", "CPU ms", "ratio", "added MiB", "mean difference",
                "cells > 1e-5", "others at most")  # fmt: skip
    for name, frames, labels, cfg in workload.chosen(args, device):
        if device.type == "cpu":
            runs, truth = on_cpu(frames, labels, cfg, args.repeats, args.threads)
        else:
            runs, truth = on_gpu(frames, labels, cfg, args.repeats)
        report(name, runs, truth)
        if "triton" in runs:
            search_shapes(frames, cfg, args.repeats)
            profile(frames, labels, cfg)


if __name__ == "__main__":
    main()
