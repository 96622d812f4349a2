"""Start the programs in new processes, quickly: these are forks of a server process that has imported the programs.

The server computes nothing: on a machine with a GPU, torch cannot compute gradients in a fork of a process that has.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import time
from pathlib import Path

from models.backbones import resnet

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
# The first optimiser of a process imports torch._dynamo.
CONTEXT.set_forkserver_preload(["train", "infer_vos", "torch.distributed.run", "torch._dynamo"])


class Program:
    """A running program.  name: "train" or "infer_vos".  folder: gets its output, as the files stdout and stderr.

    processes: if more than 1, torchrun's agent starts them, as `torchrun --standalone` does.
    """

    def __init__(self, folder, name, *arguments, processes=1):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        words = [name, *map(str, arguments)]
        self.process = CONTEXT.Process(target=_run, args=(self.folder, words, {**os.environ}, resnet.WIDTHS, processes))
        self.process.start()
        self.pid = self.process.pid

    def until(self, true, seconds=300):
        """Wait until `true` returns True; if `true` is a text, until the program has printed it."""
        found = true if callable(true) else lambda: true in self.printed()[0]
        end = time.monotonic() + seconds
        while not found():
            assert self.process.is_alive() and time.monotonic() < end, self.printed()
            time.sleep(0.02)

    def signal(self, number):
        os.kill(self.pid, number)

    def ended(self, seconds=300):
        """Wait for the end -> (exit code, stdout, stderr).  The exit code is -N if signal N ended the program."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"still runs after {seconds} s: {self.printed()}")
        return self.process.exitcode, *self.printed()

    def printed(self):
        """(stdout, stderr) so far."""
        paths = (self.folder / name for name in ("stdout", "stderr"))
        return tuple(path.read_text() if path.exists() else "" for path in paths)


def _run(folder, words, environment, widths, processes):
    """Set up the new process, then run the program in it, or in several."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment | {"OMP_NUM_THREADS": "1"})
    os.chdir(ROOT)
    resnet.WIDTHS = widths
    if processes == 1:
        return _program(words)
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    one_machine = dict(min_nodes=1, max_nodes=1, rdzv_backend="c10d", rdzv_endpoint="localhost:0")
    agent = LaunchConfig(**one_machine, nproc_per_node=processes, max_restarts=0, start_method="fork")
    return elastic_launch(agent, _program)(words)


def _program(words):
    """Run the program as `python NAME.py ...` does."""
    import torch

    torch.set_num_threads(1)  # so that sums always have the same order
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__")
