"""Network and loss by torch.compile."""

import logging

import torch
from torch._functorch import config as functorch

from core.errors import UserError

log = logging.getLogger(__name__)


def compile_forward(method: torch.nn.Module) -> None:
    """Compile the training steps of a method, at the first of them; where that fails, warn once and run it as it is."""
    plain = method.forward
    fast = torch.compile(plain, options={"fallback_random": True})  # draws as a run that is not compiled

    def forward(batch):
        if not method.training:  # a validation is too short to pay
            return plain(batch)
        try:
            # The backward pass, too, is compiled now: later its failure would end the run.
            with functorch.patch(force_non_lazy_backward_lowering=True):
                return fast(batch)
        except UserError:
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.warning("optim.compile: torch.compile fails here, and training goes on without it (%s)", reason)
            method.forward = plain
            return plain(batch)

    method.forward = forward  # type: ignore[method-assign]
