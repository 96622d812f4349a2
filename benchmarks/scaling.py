"""What does one propagated frame cost along a video, and at other resolutions?  Measures, writes numbers and a plot.

    python -m benchmarks.scaling [--ways dense windowed] [--threads 2] [--repeats 1] [--out docs]

DUL's geometry (D 512, reference and 20 frames, disc 12, open reference, top 10), made features, one object and the
background, as benchmarks.propagation has them.
    length      frames 1..60 of one video at 60x107 cells, each as segment_video propagates it: preparing the frame
                counts.  The dense way always takes 21 frames, copies of the first where there are fewer: it is a line
    resolution  one frame in steady state at 240p, 360p, 480p and 720p, one cell for 8x8 pixels
The ways take turns.  Writes OUT/scaling.json (medians, machine, command) and OUT/benchmarks.png.
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
from core.errors import UserError, reported
from labelprop.context import Context

H, W, D, N, CFG = workload.GEOMETRIES["dul"]
GRIDS = {240: (30, 53), 360: (45, 80), 480: (H, W), 720: (90, 160)}  # height in pixels -> cells
WAYS = {"dense": "dense", "windowed": "windowed (this project)", "int8": "windowed, 8-bit candidates (this project)"}
COLOURS = {"dense": "#d55e00", "windowed": "#0072b2", "int8": "#009e73"}  # told apart by colour-blind eyes too
MADE = 24  # different frames; a video goes to and fro among them


def length_costs(ways, length, repeats):
    """{way: [{t: Run}]} of frames 1..length of a video."""
    frames_NDhw = workload.made_features(MADE, H, W, D).permute(0, 3, 1, 2).contiguous()
    labels_Mhw = workload.made_labels(1, H, W, 2)[0].permute(2, 0, 1)
    frame = lambda t: frames_NDhw[min(t % (2 * MADE - 2), -t % (2 * MADE - 2))]

    def along(way):
        context = Context(CFG, way)
        context.step(frame(0), labels_Mhw)
        return {t: timing.timed(partial(context.step, frame(t))) for t in range(1, length + 1)}

    return timing.alternated({way: way for way in ways if way != "dense"}, repeats, along)


def resolution_costs(ways, heights, repeats):
    """{way: [{height: Run}]} of one frame in steady state."""
    costs = {way: [{} for _ in range(repeats)] for way in ways}
    for height in heights:
        h, w = GRIDS[height]
        frames, labels = workload.made_features(N + 1, h, w, D).contiguous(), workload.made_labels(N, h, w, 2)
        works = {way: partial(workload.propagation(way, frames[:-1], CFG), frames[-1], labels) for way in ways}
        for way, runs in timing.alternated(works, repeats).items():
            for cost, run in zip(costs[way], runs):
                cost[height] = run
    return costs


def medians(title, costs):
    """{way: [{x: Run}]} -> {way: {"x": [...], "wall_s": [...], "cpu_s": [...]}}, also printed as a table."""
    table = {}
    print()
    timing.head(title, "way", "s", "CPU s")
    for way, repeats in costs.items():
        table[way] = {"x": list(repeats[0]), "wall_s": [], "cpu_s": []}
        for x in repeats[0]:
            for clock in ("wall", "cpu"):
                table[way][f"{clock}_s"].append(timing.median((run[x] for run in repeats), clock))
            timing.row(x, way, *(f"{table[way][clock][-1]:.2f}" for clock in ("wall_s", "cpu_s")))
    return table


def draw(numbers, path):
    """A PNG of two panels with one logarithmic scale of seconds.  numbers: as `measured` returns them."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator
    except ImportError:
        raise UserError(
            f"{path}: drawing needs the package matplotlib: {sys.executable} -m pip install matplotlib, then --redraw"
        ) from None
    figure = Figure((12, 5.2), layout="constrained")
    length, resolution = figure.subplots(1, 2, sharey=True, width_ratios=(6, 5))
    places = {height: place for place, height in enumerate(map(int, numbers["cells"]))}
    dense = numbers["resolution"].get("dense", {"x": (), "wall_s": ()})
    for way, columns in numbers["resolution"].items():
        style = {"color": COLOURS[way], "linewidth": 2, "label": WAYS[way]}
        resolution.plot([places[x] for x in columns["x"]], columns["wall_s"], marker="o", **style)
        if way in numbers["length"]:
            length.plot(numbers["length"][way]["x"], numbers["length"][way]["wall_s"], marker=".", **style)
            for x, slow, fast in zip(columns["x"], dense["wall_s"], columns["wall_s"]):
                above = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "color": COLOURS[way]}
                resolution.annotate(f"{slow / fast:.1f}x", (places[x], fast), **above)
        elif 480 in columns["x"]:
            length.axhline(columns["wall_s"][columns["x"].index(480)], **style)
    length.set(xlabel="frame of the video, 480p (60x107 cells)", yscale="log")
    length.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g} s")
    resolution.set(xlabel="height of the video and its cells, 21 frames of context")
    resolution.set_xticks([*places.values()], [f"{height}p\n{cells}" for height, cells in numbers["cells"].items()])
    resolution.margins(x=0.1)
    for panel in (length, resolution):
        panel.minorticks_off()
        panel.grid(axis="y", color="#dddddd")
        panel.spines[["top", "right"]].set_visible(False)
    resolution.legend(frameon=False)
    repeats = f"medians of {numbers['repeats']} runs" if numbers["repeats"] > 1 else "one run"
    figure.suptitle("Label propagation: seconds for one frame, DUL's geometry")
    figure.supxlabel(
        f"{numbers['machine']}, {numbers['threads']} threads, {repeats}, {numbers['date']}.  "
        "Numbers beside points: times faster than dense.", fontsize=9, color="#666666",
    )  # fmt: skip
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=100)


def measured(args):
    """All numbers and how they came about."""
    torch.set_num_threads(args.threads)
    with torch.no_grad():
        resolution_costs(args.ways, [min(GRIDS)], 1)  # threads and libraries stand before the clock starts
        length = medians("frame of the video", length_costs(args.ways, args.length, args.repeats))
        resolution = medians("height in pixels", resolution_costs(args.ways, args.heights, args.repeats))
    return {
        "date": datetime.date.today().isoformat(),
        "machine": timing.processor(),
        "threads": args.threads,
        "repeats": args.repeats,
        "torch": torch.__version__,
        "command": shlex.join(["python", "-m", "benchmarks.scaling", *sys.argv[1:]]),
        "cells": {height: "x".join(map(str, GRIDS[height])) for height in args.heights},
        "length": length,
        "resolution": resolution,
    }


@reported
def main(argv=None):
    parser = timing.arguments(__doc__, repeats=1)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["dense", "windowed"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--length", type=int, default=60, help="frames of the video")
    parser.add_argument("--heights", type=int, nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--out", default="docs", metavar="DIR")
    parser.add_argument("--redraw", action="store_true", help="only draw DIR/scaling.json again")
    args = parser.parse_args(argv)
    numbers, picture = Path(args.out, "scaling.json"), Path(args.out, "benchmarks.png")
    if not args.redraw:
        with replacing(numbers) as part:
            part.write_text(json.dumps(measured(args), indent=1) + "\n")
    elif not numbers.exists():
        raise UserError(f"{numbers}: nothing has been measured there; leave out --redraw")
    draw(json.loads(numbers.read_text()), picture)
    print(f"\nwritten: {numbers}, {picture}")


if __name__ == "__main__":
    main()
