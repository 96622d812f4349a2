"""Signals that end a program in order: what is under way is finished and saved first."""

import os
import signal
import time
from contextlib import contextmanager


class Stopped(BaseException):
    """A signal ends what is under way; no Exception, since nothing in between may take it for its own."""


class Stop:
    """with Stop() as stop: SIGNALS are remembered until the step is done; a second one ends the program.

    echo: seconds in which a second one is the same news again: torchrun passes on what a terminal or a cluster sends
    to every process, too.  signal: the number of the first, or None.
    """

    #: SIGUSR1 is how clusters announce that a job's time ends
    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, echo=0.0):
        self.signal, self._told, self._at_once = None, "saving after this step", False
        self._echo, self._since = echo, 0.0

    def __enter__(self):
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.signal is not None:
            if time.monotonic() - self._since > self._echo:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.signal, self._since = number, time.monotonic()
        if not self._echo:  # the default needs no Python, which may hang
            for each in self._before:
                signal.signal(each, signal.SIG_DFL)
        os.write(2, f"{self._told}; once more ends at once\n".encode())  # print may be what was interrupted
        if self._at_once:
            raise Stopped

    def check(self):
        """Raises Stopped after a signal."""
        if self.signal is not None:
            raise Stopped

    @contextmanager
    def during(self, told, at_once=False):
        """What a signal is answered by in a block that is no step; at_once: it raises Stopped there and then."""
        before, self._told, self._at_once = self._told, told, at_once
        try:
            if at_once:
                self.check()
            yield
        finally:
            self._told, self._at_once = before, False
