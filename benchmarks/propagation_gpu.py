"""How fast is label propagation on a GPU, and how exact is it?

    python benchmarks/propagation_gpu.py [--device cuda] [--davis data/sample] [--repeats 7] [--geometry dul ino]

One frame in steady state, in the geometries of benchmarks/propagation.py, from features on the device to soft masks on
it; preparing the frame counts.  The ways take turns in one process; times are medians by the GPU's clock:
    dense     every cell against every cell in chunks of queries, in float32 and, on a GPU, in float16
    windowed  the engine in plain torch
    triton    the engine by the Triton kernels
The error is that of the masks against the engine in float64; it is large in single cells where two candidates for the
last place are as good as one another to rounding.  Then, for the Triton kernels: how many groups of 4 cells
of a query are scored again in float32 (top_k at the least), and the time of each tile shape and of each kernel.
--device cpu is a dry run, without them.
"""

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.propagation import GEOMETRIES, engine, made_features, made_labels, real_features  # noqa: E402
from core import devices  # noqa: E402
from core.errors import UserError, reported  # noqa: E402
from labelprop import backends, reference, walk  # noqa: E402

CHUNK = 512  # queries of the dense computation at a time


def dense(keys_NhwD, cfg, query_hwD, labels_NhwM):
    """Masks [hw,M] in the precision of what is given; the affinity [chunk, N*hw] in memory."""
    (h, w, D), keys, labels = query_hwD.shape, keys_NhwD.flatten(0, 2), labels_NhwM.flatten(0, 2)
    out = []
    for queries, inside in zip(
        query_hwD.view(-1, D).split(CHUNK), reference.inside_window(h, w, cfg, keys.device).split(CHUNK)
    ):
        affinity = (queries @ keys.T).unflatten(1, (-1, h * w))
        affinity[:, 0 if cfg.window_reference else 1 :].masked_fill_(~inside[:, None], -torch.inf)
        best, where = affinity.flatten(1).topk(cfg.top_k, dim=1)
        out.append((labels[where] * (best / cfg.temperature).softmax(1)[..., None]).sum(1))
    return torch.cat(out)


def milliseconds(work, device, calls=1):
    """Time of one of several calls in a row, and the last result."""
    if device.type != "cuda":
        before = time.perf_counter()
        results = [work() for _ in range(calls)]
        return 1000 * (time.perf_counter() - before) / calls, results[-1]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    torch.cuda.synchronize(device)
    marks[0].record()
    for _ in range(calls):
        result = work()
    marks[1].record()
    torch.cuda.synchronize(device)
    return marks[0].elapsed_time(marks[1]) / calls, result


def added_mib(work, device):
    """Memory at its highest during work, above what was taken before."""
    if device.type != "cuda":
        return float("nan")
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def ways(keys, query, labels, cfg):
    """name -> (calls in a row that are timed together, the work)."""
    works = {
        "dense, float32": (1, partial(dense, keys, cfg, query, labels)),
        "windowed": (1, partial(engine("windowed", keys, cfg), query, labels)),
    }
    if keys.device.type == "cuda":  # a CPU takes minutes
        works["dense, float16"] = 1, partial(dense, keys.half(), cfg, query.half(), labels.half())
    try:
        works["triton"] = (10, partial(engine("triton", keys, cfg), query, labels))
    except UserError as error:
        print(f"left out: {error}\n")
    return works


def compare(name, frames, labels, cfg, repeats):
    """Prints the ways, one row each."""
    device, (keys, query) = frames.device, (frames[:-1], frames[-1])
    works = ways(keys, query, labels, cfg)
    exact = engine("windowed", keys.double(), cfg)(query.double(), labels.double())
    for _, work in works.values():  # compiles, tunes, fills caches
        work()
    runs = {way: [] for way in works}
    for _ in range(repeats):
        for way, (calls, work) in works.items():
            runs[way].append(milliseconds(work, device, calls))
    print("| geometry | way | ms a frame | fastest | ratio | added MiB | mean error | cells > 1e-5 | others at most |")
    print("|---|---|---|---|---|---|---|---|---|")
    times = {way: [ms for ms, _ in results] for way, results in runs.items()}
    slow = statistics.median(times["dense, float32"])
    for way, (_, work) in works.items():
        error, typical = (runs[way][-1][1].double() - exact).abs().amax(1), statistics.median(times[way])
        small = error <= 1e-5
        print(
            f"| {name} | {way} | {typical:.3f} | {min(times[way]):.3f} | {slow / typical:.1f} "
            f"| {added_mib(work, device):.0f} | {error.mean():.1e} | {(~small).sum()} | {error[small].max():.1e} |",
            flush=True,
        )


def look_inside(frames, labels, cfg, repeats):
    """Prints what the Triton kernels did, and how long each took."""
    from labelprop import triton_backend

    frames, device = backends.prepared(list(frames), triton_backend), frames.device
    group = walk.Group(frames[0], len(frames) - 2)
    search = partial(triton_backend.search, frames[-1], frames[1:-1], [group], cfg)
    visits = search()[2].double()
    shares = ", ".join(f"{(visits > n * cfg.top_k).double().mean():.2%} over {n} top_k" for n in (1, 2, 5, 20))
    print(f"\ngroups scored again: mean {visits.mean():.1f}, most {visits.max():.0f}; queries: {shares}")
    for shape in triton_backend.SHAPES:
        try:
            search(shape=shape)
        except Exception as error:  # a card without room for it
            print(f"{shape}: {error}")
            continue
        times = [milliseconds(partial(search, shape=shape), device, 10)[0] for _ in range(repeats)]
        print(f"{shape}: {statistics.median(times):.3f} ms")
    print(f"taken: {triton_backend.SHAPES if len(triton_backend.SHAPES) == 1 else triton_backend._fastest_known}")
    propagate = engine("triton", torch.stack([f.full for f in frames[:-1]]), cfg)
    propagate(frames[-1].full, labels)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(10):
            propagate(frames[-1].full, labels)
        torch.cuda.synchronize(device)
    print("\nkernels of 10 frames\n" + profile.key_averages().table(sort_by="cuda_time_total", row_limit=14))


@reported
@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--davis", help="data in DAVIS layout; its first sequence is used, instead of made features")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--geometry", nargs="+", choices=GEOMETRIES, default=list(GEOMETRIES))
    args = parser.parse_args()
    device = devices.pick(args.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{where}, {f'frames of {args.davis}' if args.davis else 'made features'}, {args.repeats} alternated runs\n")
    for name in args.geometry:
        h, w, D, N, cfg = GEOMETRIES[name]
        frames = real_features(N + 1, h, w, D, args.davis) if args.davis else made_features(N + 1, h, w, D)
        frames, labels = frames.contiguous().to(device), made_labels(N, h, w).to(device)
        compare(name, frames, labels, cfg, args.repeats)
        if device.type == "cuda":
            look_inside(frames, labels, cfg, args.repeats)
        print()


if __name__ == "__main__":
    main()
