"""Validation between steps: the loss on clips of the validation sequences, and J&F of each layer."""

import dataclasses
import shutil
from collections import ChainMap
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from core import distributed, protocols
from core.devices import autocast, enough_memory
from core.errors import UserError
from core.evaluation import davis
from core.palette import write_indexed
from core.schema import as_plain
from datasets import vos_sequences
from datasets.clip import ClipDataset, ClipLoader
from labelprop import Tracker, runner
from training.pictures import shown, validation_sheet
from training.stop import Stopped


@contextmanager
def aside(run):
    """Inside, the method is in evaluation mode, random draws are the same every time, and there is no other rank.

    The block leaves no trace in the run: every step seeds its own random draws (Run.reseed).
    """
    run.method.eval()
    with distributed.alone():
        torch.manual_seed(run.config.seed)
        yield
    run.method.train()


class Validation:
    """Loss on clips, and J&F by propagation, of sequences in DAVIS layout, which the processes share.

    Without sequences (validation.root = null) nothing is measured.
    """

    CLIPS = 32  # at most; the loss is a curve to look at, J&F chooses the snapshot

    def __init__(self, config, views, device):
        """Raises UserError where a sequence lacks the mask of a frame, or cannot be followed or scored."""
        self.settings, self.sequences = config.validation, []
        if config.validation.root is None:
            return
        root = Path(config.validation.root)
        self.sequences = vos_sequences.davis(root, names=self.settings.sequences or None)
        self.annotations = root / "Annotations" / "480p"
        for sequence in self.sequences:
            if reason := sequence.unscored():
                raise UserError(
                    f"{self.annotations / sequence.name}: validation needs J&F, which cannot be measured: {reason}"
                )
            sequence.given()
        if max(sequence.length for sequence in self.sequences) < config.clip.frames:
            raise UserError(
                f"validation.root = {root}: no sequence has the {config.clip.frames} frames of a clip (clip.frames); "
                "name another set or other validation.sequences, or null for none"
            )
        spread = {"gap": self.settings.clips_gap, "step": config.clip.step or "whole"}
        clip = dataclasses.replace(config.clip, **spread, fps=None, clips_per_video=1)
        clips = ClipDataset(vos_sequences.SequenceReader(self.sequences), clip, views, config.seed)
        size = min(config.data.batch_size // config.data.accumulate, len(clips))
        self.loader = ClipLoader(clips, size, 0, config.data.bad_share, device)
        self.batches = max(1, self.CLIPS // self.loader.batch_size)

    def begin(self, run):
        """Forget the scores of the last validation where they were measured in another way."""
        if self.sequences and run.basis not in (None, self.basis(run.config)):
            run.score = {}

    def measure(self, run, book, stop):
        """Measure, log, and save the network where J&F is the highest so far.

        Returns False where a signal, to any process, ended the validation early.  Then nothing is logged, and it is due
        again.
        """
        run.score = {}  # an earlier one is not of this step
        if self.sequences:
            for buffer in run.method.buffers():  # on CPUs the statistics of batch norm differ between processes
                buffer.copy_(distributed.from_first(buffer))
            shares = distributed.gathered(self.share(run, stop))
            if None in shares:
                book.line("the validation is left out; it comes first when the run goes on")
                return False
            basis = self.basis(run.config)
            if run.best and run.basis not in (None, basis):
                book.line("J&F is measured in another way than before: the best network is chosen anew")
                run.best = {}
            run.basis = basis
            losses, scores, pictures = (dict(ChainMap(*parts)) for parts in zip(*shares))
            for layer in self.settings.layers:
                objects = [one for each in self.sequences for one in scores[layer, each.name]]
                run.score[layer] = 100 * davis.overall(objects).jf_mean
            # Added up in order, so that it is the same for any number of processes.
            means = {name: sum(losses[n][name] for n in range(self.batches)) / self.batches for name in losses[0]}
            values = {f"validation/loss_{name}": value for name, value in means.items()}
            book.scalars(values | {f"validation/J&F_{layer}": score for layer, score in run.score.items()}, run.step)
            book.pictures(pictures, run.step)
            told = "  ".join(f"{layer} {score:.1f}" for layer, score in run.score.items())
            book.line(f"validation at step {run.step}: J&F {told}")
            for layer, score in run.score.items():
                if score > run.best.get(layer, -1):
                    run.save_best(layer, score)
            run.measured = run.step
        return True

    def basis(self, config):
        """What J&F is measured on and by, and the layer that chooses best.pth, as plain values."""
        lengths = {sequence.name: sequence.length for sequence in self.sequences}
        return [lengths, self.settings.layers[0], config.protocol, as_plain(config)["propagation"]]

    def share(self, run, stop):
        """{batch: losses}, {(layer, sequence): scores} and {name: picture} of this process; None after a signal."""
        rank, world, scores, pictures = distributed.rank(), distributed.world_size(), {}, {}
        sequences = runner.dealt(self.sequences, rank, world)
        memory = enough_memory(
            f"validation.root = {self.settings.root}: the validation needs more memory than {run.device} has; name "
            "smaller frames, or null for none"
        )
        try:
            with stop.during("leaving the validation at its next frame, then saving"), aside(run), memory:
                losses = {number: self.losses(run, number, stop) for number in range(rank, self.batches, world)}
                for layer in self.settings.layers:
                    self.follow(run, sequences, layer, scores, pictures, stop)
        except Stopped:
            return None
        return losses, scores, pictures

    @torch.no_grad()
    def losses(self, run, number, stop):
        """The loss terms of batch `number` of the validation clips; clips and random draws are the same every time."""
        stop.check()
        torch.manual_seed(run.config.seed + number)
        (batch,) = self.loader.batches(number, number + 1)
        with autocast(run.device, run.config.optim.precision):
            losses = run.method({name: value.to(run.device) for name, value in batch.items()})
        return {name: value.item() for name, value in {"total": losses.total, **losses.terms}.items()}

    def follow(self, run, sequences, layer, scores, sheets, stop):
        """Propagate the masks of some sequences; add J and F of their objects to scores, a picture each to sheets."""
        # A copy of a network in training would share batch norm with the other processes' copies, of other sequences.
        propagation = dataclasses.replace(protocols.named(run.config.protocol, run.config.propagation), norm_frames=0)
        tracker = Tracker(run.method.extractor, layer, propagation, run.device, precision="fp32")
        for sequence in sequences:
            name, kept, wanted = sequence.name, {}, shown(sequence.length)
            folder = run.folder / "validation" / f"{layer}_vos" / name
            shutil.rmtree(folder, ignore_errors=True)  # it may hold frames that the set no longer has
            with closing(tracker.segment(sequence.frames(), sequence.given(), confidence=True)) as results:
                for t, result in enumerate(results):
                    stop.check()
                    write_indexed(folder / f"{sequence.frame_names[t]}.png", result[0])
                    if t in wanted:
                        kept[t] = result
            scores[layer, name] = davis.evaluate(self.annotations, folder.parent, [name])
            sheets[f"validation_{layer}/{name}"] = validation_sheet(sequence, self.annotations / name, kept, tracker)
