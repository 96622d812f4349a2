"""How much faster is the propagation of one frame than the dense computation, and how different are the masks?

    python -m benchmarks.propagation [--device cpu] [--davis DIR] [--repeats 1] [--geometry dul ino] [--threads 2]

One frame of 480x854 in steady state, from features to soft masks; the time to prepare the frame counts.
Geometries: DUL has 60x107 cells, D 512, 21 frames, disc 12, open reference, top 10; INO has 60x106 cells, D 384,
11 frames, square 40, top 5.  Ways, which take turns:
    dense     every cell against every cell in chunks of queries; on a GPU in float32 and in float16
    windowed  the engine in plain torch, float32
    int8      on a CPU: 8-bit products find the candidates
    triton    on a GPU: the Triton kernels; also prints how many groups of 4 cells a query scores again in float32,
              and the time of the search in each tile shape
Masks are compared with those of the engine in float64.  Single cells may differ much, where two candidates for the
last place are equal up to rounding.  Features are random and smooth in space and time; with --davis they are those of
real frames by an untrained ResNet-18 of stride 8.
"""

from functools import partial

import torch

from benchmarks import timing, workload
from core import devices
from core.errors import UserError, reported
from labelprop import backends
from labelprop.walk import Group

WAYS = {  # device: {name: (way, precision)}
    "cpu": {way: (way, torch.float32) for way in ("dense", "windowed", "int8")},
    "cuda": {
        "dense": ("dense", torch.float32),
        "dense, float16": ("dense", torch.float16),
        "windowed": ("windowed", torch.float32),
        "triton": ("triton", torch.float32),
    },
}
CALLS = {"cpu": 1, "cuda": 10}  # calls that are timed together


def works(frames, labels, cfg):
    """{name: function that propagates one frame} for every way that can run here."""
    found = {}
    for name, (way, dtype) in WAYS[frames.device.type].items():
        try:
            propagate = workload.propagation(way, frames[:-1].to(dtype), cfg)
            found[name] = partial(propagate, frames[-1].to(dtype), labels.to(dtype))
        except UserError as error:
            print(f"left out: {error}\n")
    return found


def report(geometry, runs, added, truth):
    """Print a row for each way.  Ratios are to the dense computation in float32."""
    wall, cpu = ({way: timing.median(each, clock) for way, each in runs.items()} for clock in ("wall", "cpu"))
    for way, each in runs.items():
        error = (each[-1].result.to(truth) - truth).abs().amax(1)
        small = error <= 1e-5
        timing.row(
            geometry, way, f"{1e3 * wall[way]:.3f}", f"{1e3 * min(run.wall for run in each):.3f}",
            f"{wall['dense'] / wall[way]:.1f}", f"{1e3 * cpu[way]:.3f}", f"{cpu['dense'] / cpu[way]:.1f}",
            f"{added[way]:.0f}", f"{error.mean():.1e}", int((~small).sum()), f"{(error * small).max():.1e}",
        )  # fmt: skip


def search_shapes(frames, cfg, timed, repeats):
    """Print how much the search of the Triton kernels scores again in float32, and its time in each tile shape."""
    from labelprop import triton_backend

    frames = backends.prepared(list(frames), triton_backend)
    search = partial(triton_backend.search, frames[-1], frames[1:-1], [Group(frames[0], len(frames) - 2)], cfg)
    visits, shapes = search()[2].double(), {}
    shares = ", ".join(f"{(visits > n * cfg.top_k).double().mean():.2%} over {n} top_k" for n in (1, 2, 5, 20))
    print(f"\ngroups scored again: mean {visits.mean():.1f}, most {visits.max():.0f}; queries: {shares}")
    for shape in triton_backend.SHAPES:
        try:
            search(shape=shape)
            shapes[shape] = partial(search, shape=shape)
        except Exception as error:  # the GPU has too little shared memory for it
            print(f"{shape}: {error}")
    for shape, runs in timing.alternated(shapes, repeats, timed).items():
        print(f"{shape}: {1e3 * timing.median(runs):.3f} ms")
    print(f"taken: {triton_backend.SHAPES if len(triton_backend.SHAPES) == 1 else triton_backend._fastest_known}")


@reported
@torch.no_grad()
def main(argv=None):
    parser = timing.arguments(__doc__, repeats=1)
    add = parser.add_argument
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--geometry", nargs="+", choices=workload.GEOMETRIES, default=list(workload.GEOMETRIES))
    add("--cells", nargs=2, type=int, metavar=("H", "W"), help="another grid, 8x8 or more")
    add("--davis", metavar="DIR", help="use features of the first sequence of this data set (DAVIS layout)")
    add("--threads", type=timing.count, default=2)
    args = parser.parse_args(argv)
    if args.cells and min(args.cells) < 8:
        raise UserError(f"--cells {args.cells[0]} {args.cells[1]}: must be 8 or more each")
    device = devices.pick(args.device)
    torch.set_num_threads(args.threads)
    features = f"frames of {args.davis}" if args.davis else "made features"
    print(f"{timing.machine(device)}; {features}; medians of {args.repeats} alternated runs\n")
    timing.head("geometry", "way", "ms a frame", "fastest", "ratio", "CPU ms", "ratio", "added MiB", "mean difference",
                "cells > 1e-5", "others at most")  # fmt: skip
    timed = lambda work: timing.timed(work, device, CALLS[device.type])
    for geometry in args.geometry:
        h, w, D, N, cfg = workload.GEOMETRIES[geometry]
        h, w = args.cells or (h, w)
        shape = (N + 1, h, w, D)
        frames = workload.real_features(*shape, args.davis) if args.davis else workload.made_features(*shape)
        frames = frames.contiguous().to(device)
        labels = workload.made_labels(N, h, w).to(device)
        ways = works(frames, labels, cfg)
        added = {name: timing.added_mib(work, device) for name, work in ways.items()}
        runs = timing.alternated(ways, args.repeats, timed)
        truth = workload.propagation("windowed", frames[:-1].double(), cfg)(frames[-1].double(), labels.double())
        report(geometry, runs, added, truth)
        if "triton" in ways:
            search_shapes(frames, cfg, timed, args.repeats)


if __name__ == "__main__":
    main()
