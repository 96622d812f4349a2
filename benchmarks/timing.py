"""How the benchmarks measure: ways that take turns, medians of the repeats, seconds of the clock and of the CPU."""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Run(NamedTuple):
    """One measurement.  wall: seconds of the clock; cpu: CPU seconds of all threads; result: of the work."""

    wall: float
    cpu: float
    result: Any


def timed(work: Callable[[], Any], device: torch.device | None = None, calls: int = 1) -> Run:
    """The mean of `calls` calls of work() in a row; on a GPU from an empty queue to an empty queue."""
    wait = torch.cuda.synchronize if device is not None and device.type == "cuda" else lambda: None
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        result = work()
    wait()
    return Run((time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls, result)


def alternated(works: dict, repeats: int, measure: Callable[[Any], Any] = timed, warm: int = 0) -> dict[Any, list]:
    """{name: work} -> {name: [measure(work)] of each repeat}; the works take turns, `warm` turns first do not count."""
    runs = {name: [] for name in works}
    for turn in range(warm + repeats):
        for name, work in works.items():
            run = measure(work)
            if turn >= warm:
                runs[name].append(run)
    return runs


def median(runs: Iterable[Run], clock: str = "wall") -> float:
    """Seconds.  clock: "wall" or "cpu"."""
    return statistics.median(getattr(run, clock) for run in runs)


def head(*columns: str) -> None:
    """The head of a table in Markdown."""
    row(*columns)
    print("|---" * len(columns) + "|")


def row(*cells) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def processor() -> str:
    """The CPU's name as Linux has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine(device: torch.device) -> str:
    """The GPU's name, or that of the CPU and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def arguments(doc: str, repeats: int) -> argparse.ArgumentParser:
    """A parser that shows a benchmark's docstring and knows --repeats."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="runs of each way (default: %(default)s)")
    return parser
