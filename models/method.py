"""The contract of a method: a recipe that trains an extractor.  train.py asks this of it, and nothing else.

A method is one module in models/methods with three names, and one line in the table of models/methods/__init__.py:

    Config    core.schema.Section: the keys of the YAML's `method` section, `name` among them
    Views     Views(config), picklable; runs in the loader's workers
    Method    Method(config), an nn.Module

Legend: B clips, T frames.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from core.schedule import Progress
from models.extractor import Extractor


@dataclass(frozen=True)
class Losses:
    """The scalar to minimise, with gradient, and its named parts, detached, for the log."""

    total: Tensor
    terms: dict[str, Tensor]


class Views:
    """Turns one clip into one training sample, in a worker process."""

    def __call__(self, frames: list[np.ndarray], rng: np.random.Generator) -> dict[str, Tensor]:
        """frames: T uint8 RGB arrays [H,W,3] of one video; rng: the only source of chance.

        Returns tensors without a batch dimension, pictures as uint8; the loader stacks them.
        """
        raise NotImplementedError


class Method(nn.Module):
    """A network with the loss that trains it.  Subclasses override what they need."""

    #: what tracking uses
    extractor: Extractor
    #: why a batch cannot be computed in parts (data.accumulate); "" where the loss is the mean of the parts' losses
    undivided = ""

    def forward(self, batch: dict[str, Tensor]) -> Losses:
        """The paper's loss of a batch as Views make it, stacked, on the method's device; pictures are still uint8."""
        raise NotImplementedError

    def prepare(self, parts: list[dict[str, Tensor]], progress: Progress) -> list[dict[str, Tensor]]:
        """The parts of a training batch, each with all that it must know of the others and of the run.

        parts: of equal size, mostly one; each goes through `forward` on its own afterwards.  INO draws its mask and
        asks its teacher here.
        """
        return parts

    def before_step(self, progress: Progress) -> None:
        """Called between backward and the optimiser's step (INO freezes its last layer here)."""

    def after_step(self, progress: Progress) -> None:
        """Called after the optimiser's step (INO moves its teacher here)."""

    @torch.no_grad()
    def pictures(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """name -> uint8 RGB [3,H,W]: what TensorBoard shows of a batch."""
        return {}
