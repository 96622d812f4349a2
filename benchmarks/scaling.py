"""What does one propagated frame cost along a video, and at other resolutions?  Measures, writes numbers and a plot.

    python benchmarks/scaling.py [--ways dense windowed] [--threads 2] [--repeats 1] [--out docs]

DUL's geometry (D 512, reference and 20 frames, disc 12, open reference, top 10), made features, one object and the
background, as benchmarks/propagation.py has them.
    length      frames 1..60 of one video at 60x107 cells, each as segment_video propagates it: preparing the frame
                counts.  The dense way always takes 21 frames, copies of the first where there are fewer, so that
                it is measured at a few frames only
    resolution  one frame in steady state at 240p, 360p, 480p and 720p, one cell for 8x8 pixels
The ways take turns.  Writes OUT/scaling.json (medians, machine, command) and OUT/benchmarks.png.
"""

import argparse
import datetime
import json
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.plot import draw  # noqa: E402
from benchmarks.propagation import GEOMETRIES, WAYS, dense, engine, made_features, made_labels  # noqa: E402
from core.atomic import replacing  # noqa: E402
from core.errors import UserError, reported  # noqa: E402
from labelprop.context import Context  # noqa: E402

H, W, D, N, CFG = GEOMETRIES["dul"]
GRIDS = {240: (30, 53), 360: (45, 80), 480: (H, W), 720: (90, 160)}  # height in pixels -> cells
DENSE_AT = (1, 10, 20, 40, 60)
MADE = 24  # different frames; a video goes to and fro among them


def timed(work):
    """Seconds of the clock and of the CPU, all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def frame_of(t):
    """Which of the made frames is frame t of the video."""
    return min(t % (2 * MADE - 2), -t % (2 * MADE - 2))


def along_video(way, frames_NDhw, masks_Mhw, length):
    """{t: seconds} of frames 1..length."""
    context, costs = Context(CFG, way), {}
    context.step(frames_NDhw[0], masks_Mhw)
    for t in range(1, length + 1):
        costs[t] = timed(lambda t=t: context.step(frames_NDhw[frame_of(t)]))
    return costs


def dense_along_video(frames_NDhw, masks_Mhw, length):
    """The same at some frames, as code goes that keeps a list of 21 frames from the start."""
    labels = masks_Mhw.permute(1, 2, 0).expand(N, -1, -1, -1).contiguous()
    costs = {}
    for t in (t for t in DENSE_AT if t <= length):
        context = [0, *(max(0, past) for past in range(t - N + 1, t))]
        keys_NhwD = frames_NDhw[[frame_of(past) for past in context]].permute(0, 2, 3, 1).contiguous()
        query_hwD = frames_NDhw[frame_of(t)].permute(1, 2, 0).contiguous()
        costs[t] = timed(lambda q=query_hwD, k=keys_NhwD: dense(q, k, labels, CFG))
    return costs


def length_costs(ways, length):
    """{way: {t: seconds}} along one video."""
    frames_NDhw = made_features(MADE, H, W, D).permute(0, 3, 1, 2).contiguous()
    masks_Mhw = made_labels(1, H, W, 2)[0].permute(2, 0, 1)
    return {
        way: dense_along_video(frames_NDhw, masks_Mhw, length)
        if way == "dense"
        else along_video(way, frames_NDhw, masks_Mhw, length)
        for way in ways
    }


def resolution_costs(ways, heights):
    """{way: {height: seconds}} of one frame in steady state."""
    costs = {way: {} for way in ways}
    for height in heights:
        h, w = GRIDS[height]
        frames, labels = made_features(N + 1, h, w, D).contiguous(), made_labels(N, h, w, 2)
        for way in ways:
            propagate = engine(way, frames[:-1], CFG)
            costs[way][height] = timed(lambda p=propagate, f=frames, m=labels: p(f[-1], m))
    return costs


def medians(runs):
    """A list of {way: {x: (wall, cpu)}} -> {way: {"x": [...], "wall_s": [...], "cpu_s": [...]}}."""
    table = {}
    for way, costs in runs[0].items():
        of = lambda clock, way=way, costs=costs: [statistics.median(run[way][x][clock] for run in runs) for x in costs]
        table[way] = {"x": list(costs), "wall_s": of(0), "cpu_s": of(1)}
    return table


def processor():
    """The CPU's name as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(title, table):
    """One panel's numbers as a table."""
    print(f"\n| {title} | " + " | ".join(f"{way}, s | CPU s" for way in table) + " |")
    print("|---|" + "---|---|" * len(table))
    for x in sorted({x for row in table.values() for x in row["x"]}):
        cells = []
        for row in table.values():
            at = row["x"].index(x) if x in row["x"] else None
            cells += ["", ""] if at is None else [f"{row['wall_s'][at]:.2f}", f"{row['cpu_s'][at]:.2f}"]
        print(f"| {x} | " + " | ".join(cells) + " |")


@reported
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["dense", "windowed"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--length", type=int, default=60, help="frames of the video")
    parser.add_argument("--heights", type=int, nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--out", default="docs", metavar="DIR")
    parser.add_argument("--redraw", action="store_true", help="only draw DIR/scaling.json again")
    args = parser.parse_args()
    out = Path(args.out)
    if args.redraw:
        if not (out / "scaling.json").exists():
            raise UserError(f"{out / 'scaling.json'}: nothing has been measured there; leave out --redraw")
    else:
        with replacing(out / "scaling.json") as part:
            part.write_text(json.dumps(measured(args), indent=1) + "\n")
    draw(json.loads((out / "scaling.json").read_text()), out / "benchmarks.png")
    print(f"\nwritten: {out}/{{scaling.json,benchmarks.png}}")


def measured(args):
    """All numbers and how they came about."""
    torch.set_num_threads(args.threads)
    with torch.no_grad():
        resolution_costs(args.ways, [min(GRIDS)])  # threads and libraries stand before the clock starts
        once = lambda: (length_costs(args.ways, args.length), resolution_costs(args.ways, args.heights))
        runs = [once() for _ in range(args.repeats)]
    length, resolution = (medians(list(costs)) for costs in zip(*runs))
    show("frame of the video", length)
    show("height in pixels", resolution)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": processor(),
        "threads": args.threads,
        "repeats": args.repeats,
        "torch": torch.__version__,
        "command": shlex.join(["python", "benchmarks/scaling.py", *sys.argv[1:]]),
        "cells": {height: "x".join(map(str, GRIDS[height])) for height in args.heights},
        "length": length,
        "resolution": resolution,
    }


if __name__ == "__main__":
    main()
