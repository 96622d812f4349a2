"""How does the time to propagate one frame grow along a video, and with the resolution?

    python -m benchmarks.scaling [--ways dense windowed] [--threads 2] [--repeats 1] [--out docs]

DUL's geometry (D 512, reference and 20 frames, disc 12, open reference, top 10), made features, one object and the
background:
    length      frames 1..60 of one video at 60x107 cells; the time to prepare each frame counts.  The dense way always
                takes 21 frames, copies of the first if there are fewer, so that its time does not change
    resolution  one frame in steady state at 240p, 360p, 480p and 720p, one cell for 8x8 pixels
The ways take turns.  Writes OUT/scaling.json (medians, machine, command) and the plot OUT/benchmarks.png.
"""

import datetime
import json
import shlex
import sys
from functools import partial
from pathlib import Path

import torch

from benchmarks import timing, workload
from core.atomic import replacing
from core.errors import reported
from labelprop.context import Context

H, W, D, N, CFG = workload.GEOMETRIES["dul"]
GRIDS = {240: (30, 53), 360: (45, 80), 480: (H, W), 720: (90, 160)}  # height in pixels -> cells
WAYS = {  # colours are distinct for colour-blind readers too
    "dense": ("dense", "#d55e00"),
    "windowed": ("windowed (this project)", "#0072b2"),
    "int8": ("windowed, 8-bit candidates (this project)", "#009e73"),
}
MADE = 24  # different frames; the video plays them forwards and backwards


def length_costs(ways, length, repeats):
    """{way: {t: [Run]}} of frames 1..length of a video."""
    frames_NDhw = workload.made_features(MADE, H, W, D).permute(0, 3, 1, 2).contiguous()
    labels_Mhw = workload.made_labels(1, H, W, 2)[0].permute(2, 0, 1)
    frame = lambda t: frames_NDhw[min(t % (2 * MADE - 2), -t % (2 * MADE - 2))]

    def along(way):
        context = Context(CFG, way)
        context.step(frame(0), labels_Mhw)
        return [timing.timed(partial(context.step, frame(t))) for t in range(1, length + 1)]

    videos = timing.alternated({way: way for way in ways if way != "dense"}, repeats, along)
    return {way: dict(enumerate(zip(*runs), 1)) for way, runs in videos.items()}


def resolution_costs(ways, heights, repeats):
    """{way: {height: [Run]}} of one frame in steady state."""
    costs = {way: {} for way in ways}
    for height in heights:
        h, w = GRIDS[height]
        frames, labels = workload.made_features(N + 1, h, w, D).contiguous(), workload.made_labels(N, h, w, 2)
        works = {way: partial(workload.propagation(way, frames[:-1], CFG), frames[-1], labels) for way in ways}
        for way, runs in timing.alternated(works, repeats).items():
            costs[way][height] = runs
    return costs


def medians(title, costs):
    """Print {way: {x: [Run]}} as a table.  Returns {way: {"x": [...], "wall_s": [...], "cpu_s": [...]}}."""
    print()
    timing.head(title, "way", "s", "CPU s")
    table = {}
    for way, points in costs.items():
        wall, cpu = ([timing.median(runs, clock) for runs in points.values()] for clock in ("wall", "cpu"))
        table[way] = {"x": list(points), "wall_s": wall, "cpu_s": cpu}
        for x, *seconds in zip(points, wall, cpu):
            timing.row(x, way, *(f"{each:.2f}" for each in seconds))
    return table


def draw(numbers, path):
    """Draw two panels of seconds on a logarithmic scale into a PNG.  numbers: as in scaling.json."""
    with timing.figure(path, 12, 5.2) as figure:
        length, resolution = figure.subplots(1, 2, sharey=True)
        places = {int(height): place for place, height in enumerate(numbers["cells"])}
        for way, costs in numbers["resolution"].items():
            style = dict(zip(("label", "color"), WAYS[way]), linewidth=2)
            resolution.plot([places[x] for x in costs["x"]], costs["wall_s"], marker="o", **style)
            along = numbers["length"].get(way)
            if along:
                length.plot(along["x"], along["wall_s"], marker=".", **style)
            elif 480 in costs["x"]:
                length.axhline(costs["wall_s"][costs["x"].index(480)], **style)
        length.set(xlabel="frame of the video, 480p (60x107 cells)", yscale="log", ylabel="seconds for one frame")
        resolution.set(xlabel="height of the video and its cells, 21 frames of context")
        resolution.set_xticks([*places.values()], [f"{height}p\n{cells}" for height, cells in numbers["cells"].items()])
        for panel in (length, resolution):
            panel.grid(axis="y", which="both", color="#dddddd")
        resolution.legend()
        figure.suptitle("Label propagation in DUL's geometry")
        figure.supxlabel(f"{numbers['machine']}, medians of {numbers['repeats']} runs, {numbers['date']}", fontsize=9)


@reported
@torch.no_grad()
def main(argv=None):
    parser = timing.arguments(__doc__, repeats=1)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["dense", "windowed"])
    parser.add_argument("--threads", type=timing.count, default=2)
    parser.add_argument("--length", type=timing.count, default=60, help="frames of the video")
    parser.add_argument("--heights", type=timing.count, nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--out", default="docs", metavar="DIR")
    args = parser.parse_args(argv)
    timing.require_matplotlib()
    torch.set_num_threads(args.threads)
    resolution_costs(args.ways, [min(GRIDS)], 1)  # starts threads and loads libraries
    numbers = {
        "date": datetime.date.today().isoformat(),
        "machine": timing.machine(torch.device("cpu")),
        "repeats": args.repeats,
        "torch": torch.__version__,
        "command": shlex.join(["python", "-m", "benchmarks.scaling", *sys.argv[1:]]),
        "cells": {str(height): "x".join(map(str, GRIDS[height])) for height in args.heights},
        "length": medians("frame of the video", length_costs(args.ways, args.length, args.repeats)),
        "resolution": medians("height in pixels", resolution_costs(args.ways, args.heights, args.repeats)),
    }
    with replacing(Path(args.out, "scaling.json")) as part:
        part.write_text(json.dumps(numbers, indent=1) + "\n")
    draw(numbers, Path(args.out, "benchmarks.png"))
    print(f"\nwritten: {args.out}/scaling.json, {args.out}/benchmarks.png")


if __name__ == "__main__":
    main()
