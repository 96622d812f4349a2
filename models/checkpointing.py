"""Networks that compute activations twice instead of keeping them: less memory in training, the same gradients."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from models.backbones import resnet, vit


def recompute(network: nn.Module) -> None:
    """From now on keep only the input of every block of a network; the backward pass computes its activations again.

    The second time random draws are the same, and the statistics of batch norm do not move.
    """
    for module in network.modules():
        if isinstance(module, (resnet.Block, vit.Block)):
            module.forward = _twice(module.forward, module, [*module.modules()])  # type: ignore[method-assign]
        elif isinstance(module, resnet.Backbone):
            module.stem = _twice(module.stem, module, [module.bn1])  # type: ignore[method-assign]


def _twice(function: Callable, module: nn.Module, parts: list[nn.Module]) -> Callable:
    """A function of a module, changed so that the backward pass calls it again; parts: the modules that it runs."""
    norms = [part for part in parts if isinstance(part, _BatchNorm)]

    def call(x: Any) -> Any:
        if not module.training:
            return function(x)
        return checkpoint(function, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _still(norms)))

    return call


@contextmanager
def _still(norms: list[_BatchNorm]) -> Iterator[None]:
    """Inside, batch norm normalises as in training, but its statistics do not move."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, torch.zeros((), dtype=torch.long)
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, count
