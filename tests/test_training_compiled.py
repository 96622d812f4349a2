"""optim.compile: equal losses; if the compiler fails, one warning and the network without it."""

import os

import pytest
import torch

from core.errors import UserError
from models.methods import dul
from tests.small import dul_config
from training.compiled import compile_forward


def losses(method, count=3):
    """The losses of `count` batches, with backward passes, but without changes of the weights."""
    shape = (2, 3, 3, 64, 64)
    theta = torch.tensor([[0.7, 0.0, 0.2], [0.0, 0.7, -0.1]]).expand(2, 3, 2, 3).contiguous()
    totals = []
    for seed in range(count):
        torch.manual_seed(seed)
        plain, transformed = (torch.randint(256, shape, dtype=torch.uint8) for _ in range(2))
        total = method({"plain": plain, "transformed": transformed, "theta": theta}).total
        total.backward()
        totals.append(total.item())
    return totals


def made():
    torch.manual_seed(0)
    return dul.Method(dul_config()).train()


def test_where_the_compiler_fails_there_is_one_warning(monkeypatch, caplog):
    def failing(function, **_):
        def call(batch):
            raise RuntimeError("no C++ compiler\nwith more lines")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    method = made()
    compile_forward(method)
    assert losses(method) == losses(made())
    (record,) = caplog.records
    assert "no C++ compiler" in record.getMessage() and "more lines" not in record.getMessage()


def test_a_mistake_of_the_user_is_no_failure_of_the_compiler(monkeypatch, caplog):
    method = made()
    monkeypatch.setattr(method, "forward", lambda batch: (_ for _ in ()).throw(UserError("clip.frames")))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    compile_forward(method)
    with pytest.raises(UserError, match="clip.frames"):
        method({})
    assert not [record for record in caplog.records if record.name == "training.compiled"]


def test_an_error_after_a_step_that_was_compiled_is_no_failure_of_the_compiler(monkeypatch):
    calls = []

    def once(function, **_):
        def call(batch):
            calls.append(1)
            if len(calls) > 1:
                raise RuntimeError("of the loss")
            return function(batch)

        return call

    monkeypatch.setattr(torch, "compile", once)
    method = made()
    compile_forward(method)
    with pytest.raises(RuntimeError, match="of the loss"):
        losses(method)
    assert len(calls) == 2


@pytest.mark.skipif("SLOW" not in os.environ, reason="takes minutes: SLOW=1")
def test_losses_by_the_compiler_are_equal_to_rounding(caplog):
    method = made()
    compile_forward(method)
    torch.testing.assert_close(losses(method), losses(made()), rtol=1e-4, atol=0)
    assert not [record for record in caplog.records if record.name == "training.compiled"]
