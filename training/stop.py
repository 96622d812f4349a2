"""Signals that end a program in order: it first finishes the present step and saves."""

import os
import signal
import time
from contextlib import contextmanager


class Stopped(BaseException):
    """A signal ends the present work.  It is no Exception, so that no `except Exception` catches it."""


class Stop:
    """with Stop() as stop: the first of SIGNALS is remembered until the step is done; a second ends the program.

    echo: for so many seconds after the first signal others are ignored, since torchrun passes on signals that a
    terminal or a cluster also sends to every process.  signal: the number of the first signal, or None.
    """

    #: clusters send SIGUSR1 before the time of a job ends
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
        if not self._echo:  # the second signal then ends the program by the default, even where Python hangs
            for each in self._before:
                signal.signal(each, signal.SIG_DFL)
        os.write(2, f"{self._told}; once more ends at once\n".encode())  # print may have been interrupted
        if self._at_once:
            raise Stopped

    def check(self):
        """Raises Stopped after a signal."""
        if self.signal is not None:
            raise Stopped

    @contextmanager
    def during(self, told, at_once=False):
        """Inside, a signal prints `told`; at_once: it also raises Stopped immediately."""
        before, self._told, self._at_once = self._told, told, at_once
        try:
            if at_once:
                self.check()
            yield
        finally:
            self._told, self._at_once = before, False
