"""Learning rate, weight decay and other values as functions of the global step."""

import math
from dataclasses import dataclass

from core.schema import Schedule


@dataclass(frozen=True)
class Progress:
    """How far a run is.  step: optimiser steps already done, from 0; total_steps: steps of the whole run."""

    step: int
    steps_per_epoch: int
    total_steps: int

    @property
    def epoch(self):
        """Epochs completed, from 0."""
        return self.step // self.steps_per_epoch


def cosine(step, base, final, total_steps, warmup_steps=0):
    """Linear from 0 to base over warmup_steps, then half a cosine to final at total_steps.

    step counts from 0; after total_steps the value stays at final.
    """
    if step < warmup_steps:
        return base * step / max(warmup_steps - 1, 1)
    done = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * done))


def learning_rate(schedule: Schedule, base, progress: Progress):
    """The learning rate of the step that comes next."""
    if schedule.kind == "step":
        return base * schedule.factor ** (progress.epoch // schedule.every_epochs)
    warmup = round(schedule.warmup_epochs * progress.steps_per_epoch)
    return cosine(progress.step, base, schedule.final_lr, progress.total_steps, warmup)


def weight_decay(schedule: Schedule, base, progress: Progress):
    """The weight decay of the step that comes next; constant unless schedule.final_weight_decay is given."""
    if schedule.final_weight_decay is None:
        return base
    return cosine(progress.step, base, schedule.final_weight_decay, progress.total_steps)
