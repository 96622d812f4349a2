"""What a run tells: plain lines for the terminal and the log file, curves and pictures for TensorBoard."""

import time

from tensorboardX import SummaryWriter


class Logbook:
    """Writes lines to stdout, scalars and pictures to <folder>; a silent one (folder None) for ranks > 0."""

    def __init__(self, folder, last_step=0):
        """last_step: the steps that the run has taken; TensorBoard hides (purges) what was written of later ones."""
        self.writer = SummaryWriter(str(folder), purge_step=last_step + 1) if folder else None
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


class Meter:
    """Means over the steps since the last report: losses, seconds waited for data, clips a second."""

    def __init__(self):
        self.clear()

    def clear(self):
        self.sums, self.steps, self.clips, self.wait = {}, 0, 0, 0.0
        self.started = time.perf_counter()

    def fetch(self, batches):
        """The next batch; the wait for it is measured."""
        before = time.perf_counter()
        batch = next(batches)
        self.wait += time.perf_counter() - before
        return batch

    def add(self, numbers, clips):
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps, self.clips = self.steps + 1, self.clips + clips

    def means(self):
        """{"loss/<term>", "speed/clips_per_second", "speed/data_wait_share"} and starts anew."""
        seconds = time.perf_counter() - self.started
        values = {f"loss/{name}": total / self.steps for name, total in self.sums.items()}
        values["speed/clips_per_second"] = self.clips / seconds
        values["speed/data_wait_share"] = self.wait / seconds
        self.clear()
        return values


def report(book, meter, run, progress, end, lr):
    """A line and the curves of the steps since the last report."""
    values = meter.means()
    losses = "  ".join(f"{name[5:]} {value:.4f}" for name, value in values.items() if name.startswith("loss/"))
    speed, wait = values["speed/clips_per_second"], values["speed/data_wait_share"]
    book.line(
        f"step {run.step}/{end}  epoch {progress.epoch}  {losses}  lr {lr:.3g}  "
        f"{speed:.2f} clips/s  waiting for data {wait:.0%}"
    )
    values |= {"schedule/lr": lr, "schedule/epoch": progress.epoch, "data/bad_clips": run.bad_clips}
    book.scalars(values, run.step)


def _clock(seconds):
    return f"{int(seconds) // 3600:d}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
