"""What a run tells: plain lines for the terminal and the log file, curves and pictures for TensorBoard."""

import sys
import time

from tensorboardX import SummaryWriter


class Logbook:
    """Writes lines to stdout, scalars and pictures to <folder>; a silent one (folder None) for ranks > 0."""

    def __init__(self, folder, first_step=0):
        """first_step: events of an interrupted run at later steps are hidden (purged) by TensorBoard."""
        self.writer = SummaryWriter(str(folder), purge_step=first_step or None) if folder else None
        self.started = time.monotonic()

    def line(self, text):
        """One line with the time since the start, flushed at once."""
        if self.writer:
            print(f"[{_clock(time.monotonic() - self.started)}] {text}", flush=True)

    def warn(self, text):
        if self.writer:
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def scalars(self, values, step):
        """values: name -> number."""
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, float(value), step)

    def pictures(self, images, step):
        """images: name -> uint8 RGB [3,H,W]."""
        if self.writer:
            for name, image in images.items():
                self.writer.add_image(name, image, step)
            self.writer.flush()

    def text(self, name, text, step=0):
        if self.writer:
            self.writer.add_text(name, text, step)

    def close(self):
        if self.writer:
            self.writer.close()


def _clock(seconds):
    return f"{int(seconds) // 3600:d}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
