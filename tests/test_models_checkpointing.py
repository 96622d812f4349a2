"""optim.checkpointing changes no gradient, statistic or random number, and needs less memory."""

import pytest
import torch

import models
from core.errors import UserError
from core.schema import Optim
from models.methods import METHODS
from tests import small

BATCHES = {  # method -> name of a view -> its shape
    "dul": {"plain": (2, 3, 3, 64, 64), "transformed": (2, 3, 3, 64, 64)},
    "ino": {"global": (2, 4, 3, 32, 32), "local": (2, 4, 2, 3, 16, 16)},
    "crw": {"patches": (2, 4, 4, 3, 16, 16)},
}


def steps(name, checkpointing):
    """Two training steps of a method -> (gradients of each, state after both, bytes kept for the backward pass)."""
    torch.manual_seed(0)
    method = METHODS[name].Method(getattr(small, f"{name}_config")()).train()
    if checkpointing:
        models.recompute(method)
    batch = {view: torch.randint(256, shape, dtype=torch.uint8) for view, shape in BATCHES[name].items()}
    batch["theta"] = torch.tensor([[0.7, 0.0, 0.2], [0.0, 0.7, -0.1]]).expand(2, 3, 2, 3).contiguous()
    gradients, kept = [], {}
    own = {value.data_ptr() for value in method.state_dict().values()}

    def keep(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    for _ in range(2):
        method.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = method(batch).total
        total.backward()
        gradients.append({n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None})
    return gradients, method.state_dict(), sum(kept.values())


@pytest.mark.parametrize("name", METHODS)
def test_gradients_and_statistics_are_equal_and_less_is_kept(name):
    wanted, state, plain = steps(name, False)
    found, again, lean = steps(name, True)
    for one, other in zip([*wanted, state], [*found, again]):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert lean < 0.7 * plain, (lean, plain)


def test_the_compiler_decides_by_itself_what_it_computes_again():
    rest = dict(name="sgd", lr=0.1, weight_decay=0, bias_lr_factor=1, decay_norm_weights=True, momentum=0.9)
    with pytest.raises(UserError, match="optim.checkpointing.*optim.compile"):
        Optim(**rest, compile=True, checkpointing=True)
