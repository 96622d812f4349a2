"""How the benchmarks measure: ways take turns; the result is the median of wall-clock and of CPU seconds."""

import argparse
import ctypes
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from core.atomic import replacing
from core.errors import UserError


class Run(NamedTuple):
    """One measurement.  wall: seconds; cpu: CPU seconds of all threads; result: what the work returned."""

    wall: float
    cpu: float
    result: Any


def timed(work: Callable[[], Any], device: torch.device | None = None, calls: int = 1) -> Run:
    """The mean over `calls` calls of work(); on a GPU the queue is empty before and after."""
    wait = torch.cuda.synchronize if device is not None and device.type == "cuda" else lambda: None
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        result = work()
    wait()
    return Run((time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls, result)


def alternated(works: dict, repeats: int, measure: Callable[[Any], Any] = timed, warm: int = 0) -> dict[Any, list]:
    """{name: [measure(work) for each repeat]}.  The works take turns; the first `warm` turns are not counted."""
    turns = [{name: measure(work) for name, work in works.items()} for _ in range(warm + repeats)]
    return {name: [turn[name] for turn in turns[warm:]] for name in works}


def median(runs: Iterable[Run], clock: str = "wall") -> float:
    """Median seconds.  clock: "wall" or "cpu"."""
    return statistics.median(getattr(run, clock) for run in runs)


def added_mib(work: Callable[[], Any], device: torch.device) -> float:
    """The peak memory of the second of two calls, above the memory before it."""
    work()  # starts threads, compiles, tunes, fills caches
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # returns freed memory to Linux
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status_mib("VmRSS")
    work()
    return status_mib("VmHWM") - before


def status_mib(key: str) -> float:
    """A memory figure of this process from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def head(*columns: str) -> None:
    """Print the head of a Markdown table."""
    row(*columns)
    print("|---" * len(columns) + "|")


def row(*cells) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def require_matplotlib() -> None:
    """Raise UserError where plots cannot be drawn; for the start, before anything is measured."""
    if find_spec("matplotlib") is None:
        raise UserError(f"the plot needs the package matplotlib: {sys.executable} -m pip install matplotlib")


@contextmanager
def figure(path: Path, width: float, height: float):
    """A figure of so many inches to draw into; then it is written, as the PNG `path`."""
    from matplotlib.figure import Figure

    drawn = Figure((width, height), layout="constrained")
    yield drawn
    with replacing(path) as part:
        drawn.savefig(part, format="png", dpi=100)


def machine(device: torch.device) -> str:
    """The name of the GPU, or of the CPU with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {torch.get_num_threads()} threads"


def arguments(doc: str, repeats: int) -> argparse.ArgumentParser:
    """A parser with the option --repeats that shows the docstring of a benchmark."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=count, default=repeats, help="runs of each way (default: %(default)s)")
    return parser


def count(text: str) -> int:
    """A number for an option: 1 or more."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return number
