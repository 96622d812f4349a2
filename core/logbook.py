"""What a run tells: plain lines for the terminal and the log file, curves and pictures for TensorBoard."""

import logging
import sys
import time

log = logging.getLogger(__name__)


def SummaryWriter(folder, **options):
    """tensorboardX's writer; where that package is missing, a warning and a writer that writes nothing."""
    try:
        from tensorboardX import SummaryWriter as Writer
    except ImportError:
        log.warning("no TensorBoard log: tensorboardX is missing (%s -m pip install tensorboardX)", sys.executable)
        return _Silent()
    return Writer(folder, **options)


class _Silent:
    def _nothing(self, *_):
        pass

    add_scalar = add_image = flush = close = _nothing


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
