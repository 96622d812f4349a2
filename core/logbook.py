"""What a run tells: plain lines for the terminal and the log file, curves and pictures for TensorBoard."""

import time

from tensorboardX import SummaryWriter


class Logbook:
    """Writes lines to stdout, scalars and pictures to <folder>; a silent one (folder None) for ranks > 0."""

    def __init__(self, folder, first_step=0):
        """first_step: TensorBoard hides (purges) what an interrupted run wrote of this step and later ones."""
        self.writer = SummaryWriter(str(folder), purge_step=first_step) if folder else None
        self.started = time.monotonic()

    def line(self, text):
        """One line with the time since the start, flushed at once."""
        if self.writer:
            print(f"[{_clock(time.monotonic() - self.started)}] {text}", flush=True)

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

    def close(self):
        if self.writer:
            self.writer.close()


def _clock(seconds):
    return f"{int(seconds) // 3600:d}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
