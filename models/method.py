"""The contract of a method: what train.py and infer_vos.py ask of it, and nothing else.

A method is one module in models/methods/ with three names:

    Config    frozen dataclass: the keys of the YAML's `method` section, `name` and `backbone` among them
    Views     Views(config), picklable; runs in the loader's workers
    Method    Method(config), an nn.Module

One that serves inference alone has no Views, and its configuration none of the sections about training.

Legend: B clips, T frames, D channels, h w feature cells.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.augment import IMAGENET_MEAN, IMAGENET_STD, normalise
from core.devices import autocast
from core.errors import UserError


@dataclass(frozen=True)
class Losses:
    """The scalar to minimise, with gradient, and its named parts, detached, for the log."""

    total: Tensor
    terms: dict[str, Tensor]


class Views:
    """Turns one clip into one training sample, in a worker process."""

    def __call__(self, frames, rng) -> dict[str, Tensor]:
        """frames: T uint8 RGB arrays [H,W,3] of one video; rng: numpy Generator, the only source of chance.

        Returns tensors without a batch dimension; the loader stacks them.
        """
        raise NotImplementedError


class Method(nn.Module):
    """A network with the loss that trains it.  Subclasses override what they need."""

    #: names that `features` accepts, the default of inference first
    keys: tuple[str, ...] = ()
    #: what extractor normalises frames by
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    #: cells are stride x stride pixels, where all layers agree
    stride: int = 8

    def forward(self, batch, progress) -> Losses:
        """The paper's loss of a batch as Views make it, stacked; progress: core.schedule.Progress."""
        raise NotImplementedError

    def before_step(self, progress) -> None:
        """Called between backward and the optimiser's step (INO freezes its last layer here)."""

    def after_step(self, progress) -> None:
        """Called after the optimiser's step (INO moves its teacher here)."""

    def features(self, frames, key) -> Tensor:
        """frames [B,3,H,W], normalised -> [B,D,h,w], unit norm over D.  No autograd, evaluation mode."""
        raise NotImplementedError

    def cell_px(self, key) -> int:
        """Pixels per side of a cell of features(..., key)."""
        return self.stride

    def extractor(self, key, precision="fp32", compiled=False):
        """What labelprop calls: frames [B,3,H,W], RGB in [0,1] -> features(key), float32.

        precision: of the network, as core.devices.autocast has it.  compiled: by torch.compile.  UserError for an
        unknown key, and from a compiled one where compiling does not work.
        """
        if key not in self.keys:
            raise UserError(f"key {key!r}: must be one of {', '.join(self.keys)} for this network")

        def extract(frames):
            # Channels last is what convolutions are fastest with, and what propagation reads.
            frames = normalise(frames, self.mean, self.std).contiguous(memory_format=torch.channels_last)
            with autocast(frames.device, precision):
                return self.features(frames, key).float()

        return _compiled(extract) if compiled else extract

    @torch.no_grad()
    def pictures(self, batch) -> dict[str, Tensor]:
        """name -> uint8 RGB [3,H,W]: what TensorBoard shows of a batch."""
        return {}


def _compiled(extract):
    """What torch.compile makes of it; it compiles as sizes of frames come."""
    fast = torch.compile(extract)

    def call(frames):
        try:
            return fast(frames)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"--compile: does not work here ({reason}); leave it out") from error

    return call
