"""torch.compile for network and loss."""

import logging

import torch
from torch._functorch import config as functorch

from core.devices import scarce
from core.errors import UserError

log = logging.getLogger(__name__)


def compile_forward(method: torch.nn.Module) -> None:
    """Compile the forward pass of a method at its first training step; where that fails, warn and do not compile."""
    plain = method.forward
    fast = torch.compile(plain, options={"fallback_random": True})  # the random draws are those of `plain`
    compiled = False

    def forward(batch):
        nonlocal compiled
        if not method.training:  # a validation is too short to be worth compiling
            return plain(batch)
        try:
            # Compile the backward pass now, too: if it failed later, the run would end.
            with functorch.patch(force_non_lazy_backward_lowering=True):
                losses = fast(batch)
            compiled = True
            return losses
        except UserError:
            raise
        except Exception as error:
            if compiled or scarce(error):  # once it has worked, random numbers may be drawn already
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.warning("optim.compile: torch.compile fails here, and training goes on without it (%s)", reason)
            method.forward = plain
            return plain(batch)

    method.forward = forward  # type: ignore[method-assign]
