"""What is measured between steps on the validation sequences: the loss on clips, and J&F by layer."""

import dataclasses
from contextlib import contextmanager
from pathlib import Path

import torch

from core import distributed, protocols
from core.devices import autocast
from core.errors import UserError
from core.evaluation import davis
from datasets import vos_sequences
from datasets.clip import ClipDataset, ClipLoader
from labelprop import Tracker, runner
from training.pictures import Watched, validation_sheet
from training.stop import Stopped


@contextmanager
def aside(run):
    """Evaluation mode, random draws of one's own, no other rank: what happens inside leaves no trace in the run."""
    run.method.eval()
    with distributed.alone(), torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(run.config.seed)
        yield
    run.method.train()


class Validation:
    """Loss on clips, and J&F by propagation, of sequences in DAVIS layout.  The first process measures alone.

    Without sequences (root null) nothing is measured.
    """

    CLIPS = 32  # at most; the loss is a curve to look at, J&F chooses the snapshot

    def __init__(self, config, views, device):
        """Raises UserError where a sequence lacks the mask of a frame."""
        self.settings, self.sequences = config.validation, []
        if config.validation.root is None:
            return
        root = Path(config.validation.root)
        self.sequences = vos_sequences.davis(root, names=self.settings.sequences or None)
        self.annotations = root / "Annotations" / "480p"
        for sequence in self.sequences:
            if sequence.annotations is None:
                raise UserError(f"{self.annotations / sequence.name}: validation needs a mask of every frame")
        spread = {"gap": self.settings.clips_gap, "step": config.clip.step or "whole"}
        clip = dataclasses.replace(config.clip, **spread, fps=None, clips_per_video=1)
        clips = ClipDataset(vos_sequences.SequenceReader(self.sequences), clip, views, config.seed)
        size = min(config.data.batch_size // config.data.accumulate, len(clips))
        self.loader = ClipLoader(clips, size, 0, config.data.bad_share, device)

    def measure(self, run, book, stop):
        """Log everything and keep the best network.  A signal ends it and nothing of it counts: it is due again."""
        if self.sequences and distributed.rank() == 0:
            scores, pictures = {}, {}
            try:
                with stop.during("leaving the validation at its next frame, then saving"), aside(run):
                    values = self.losses(run, stop)
                    for layer in self.settings.layers:
                        scores[layer] = self.j_and_f(run, layer, pictures, stop)
            except Stopped:
                book.line("the validation is left out; it comes first when the run goes on")
                return
            book.scalars(values | {f"validation/J&F_{layer}": score for layer, score in scores.items()}, run.step)
            book.pictures(pictures, run.step)
            told = "  ".join(f"{layer} {score:.1f}" for layer, score in scores.items())
            book.line(f"validation at step {run.step}: J&F {told}")
            run.score = scores
            for layer, score in scores.items():
                if score > run.best.get(layer, -1):
                    run.save_best(layer, score)
        run.measured = run.step

    @torch.no_grad()
    def losses(self, run, stop):
        """Means of the loss terms over clips of the validation sequences; the same clips every time."""
        count, sums = max(1, self.CLIPS // self.loader.batch_size), {}
        for batch in self.loader.batches(0, count):
            stop.check()
            with autocast(run.device, run.config.optim.precision):
                losses = run.method({name: value.to(run.device) for name, value in batch.items()})
            for name, value in {"total": losses.total, **losses.terms}.items():
                sums[name] = sums.get(name, 0.0) + value.item() / count
        return {f"validation/loss_{name}": value for name, value in sums.items()}

    def j_and_f(self, run, layer, pictures, stop):
        """J&F of one feature layer, in percent; a sheet of each sequence is added to pictures."""
        out = run.folder / "validation"
        propagation = protocols.named(run.config.protocol, run.config.propagation)
        tracker = Tracker(run.method.extractor, layer, propagation, run.device, precision="fp32")
        quietly, scores = {"overwrite": True, "visuals": False, "quiet": True, "after_frame": stop.check}, []
        for sequence in self.sequences:
            watched = Watched(tracker, sequence)
            masks = runner.run([sequence], watched, out, **quietly)
            stop.check()
            name = sequence.name
            scores += davis.evaluate(self.annotations, masks, [name])
            sheet = validation_sheet(sequence, self.annotations / name, masks / name, watched)
            pictures[f"validation_{layer}/{name}"] = sheet
        return 100 * davis.overall(scores).jf_mean
