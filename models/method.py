"""The contract of a method, which trains an extractor: train.py uses these members of a method and no others.

A method is one module in models/methods with three names, and one line in the table of models/methods/__init__.py:

    Config    core.strict.Section: the keys of the YAML's `method` section, `name` among them
    Views     Views(config), picklable; views(frames, rng) turns one clip into one training sample in a worker process.
              frames: T uint8 RGB arrays [H,W,3] of one video; rng: a numpy Generator, the only source of chance.
              Returns {name: tensor} without a batch dimension, pictures as uint8; the loader stacks them.
    Method    Method(config), an nn.Module

Legend: B clips, T frames.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.schedule import Progress
from models.extractor import Extractor


@dataclass(frozen=True)
class Losses:
    """total: the scalar to minimise, with gradient.  terms: {name: scalar} for the log, detached."""

    total: Tensor
    terms: dict[str, Tensor]


class Method(nn.Module):
    """A network with the loss that trains it.  Subclasses set `extractor` and override methods."""

    #: the network that tracking uses
    extractor: Extractor
    #: why a batch cannot be computed in parts (data.accumulate); "" where its loss is the mean of the parts' losses
    undivided = ""

    def forward(self, batch: dict[str, Tensor]) -> Losses:
        """The paper's loss of a batch of samples from Views, on the method's device; pictures are still uint8."""
        raise NotImplementedError

    def prepare(self, parts: list[dict[str, Tensor]], progress: Progress) -> list[dict[str, Tensor]]:
        """Add to each part of a training batch the values that depend on the other parts and on the run.

        parts: of equal size, often only one; afterwards each goes through `forward` on its own.  INO draws its mask and
        runs its teacher here.
        """
        return parts

    def before_step(self, progress: Progress) -> None:
        """Called between backward and the optimiser's step (INO freezes its last layer here)."""

    def after_step(self, progress: Progress) -> None:
        """Called after the optimiser's step (INO moves its teacher here)."""

    @torch.no_grad()
    def pictures(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{name: uint8 RGB [3,H,W]}: the pictures of a batch for TensorBoard."""
        return {}
