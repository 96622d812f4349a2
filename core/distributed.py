"""One process or several (torchrun): start, rank, gathering with gradients, agreement."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather

from core.errors import UserError


def start(device: torch.device) -> torch.device:
    """Join the process group that torchrun describes, if any.  Returns the device of this process, see `own`."""
    device = own(device)
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized():
        patience = timedelta(hours=6)  # a process that has validated its share waits for the others
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
        _hosts.set(dist.new_group(backend="gloo", timeout=patience))
    return device


def own(device: torch.device) -> torch.device:
    """The device of this process: each process has its own GPU.  Raises UserError where there are too few GPUs."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device.type == "cuda" and local >= torch.cuda.device_count():
        raise UserError(
            f"{torch.cuda.device_count()} GPUs for process {local + 1} on this machine: start as many as there are GPUs"
        )
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    return device


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
        _hosts.set(None)


def rank() -> int:
    """The number of this process; 0 without a process group, and inside `alone`."""
    return dist.get_rank() if dist.is_initialized() and not _alone.get() else 0


def world_size() -> int:
    """The number of processes; 1 without a process group, and inside `alone`."""
    return dist.get_world_size() if dist.is_initialized() and not _alone.get() else 1


_alone: ContextVar[bool] = ContextVar("alone", default=False)
#: a second group of all processes, for values on the CPU: its calls wait for no GPU.  None = the default group
_hosts: ContextVar[Any] = ContextVar("hosts", default=None)


@contextmanager
def alone() -> Iterator[None]:
    """Inside, rank() is 0 and world_size() is 1: for work that the other processes do not take part in."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@contextmanager
def peers() -> Iterator[None]:
    """Inside, the loss of another process is a UserError."""
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"another process was lost; started again, all go on from what is saved ({reason})") from error


def averaged(module, device):
    """The module, wrapped so that the backward pass averages its gradients over all ranks."""
    devices = [device] if device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(module, device_ids=devices)


def gather(rows: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, [world * n, ...] in rank order, with gradient to every rank's rows.

    With one process, rows unchanged.  rows must have the same shape on every rank.
    """
    return torch.cat(all_gather(rows)) if world_size() > 1 else rows


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean over all ranks, without gradient."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def from_first(values: torch.Tensor) -> torch.Tensor:
    """The values of rank 0, on every rank; values must have the same shape and dtype on every rank.

    Values on the CPU wait for no GPU.
    """
    if world_size() > 1:
        values = values.clone()
        dist.broadcast(values, 0, group=_hosts.get() if values.device.type == "cpu" else None)
    return values


def gathered(value: Any) -> list[Any]:
    """The values of all ranks, in rank order, on every rank.  value: anything that can be pickled, on the CPU."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value, group=_hosts.get())
    return values


class Agreement:
    """A flag that any process may raise; all processes learn of it at the same call of `any`, the one after.

    So a call never waits for a device; it waits only until every process has made the call before.
    """

    def __init__(self):
        self._said = None

    def any(self, flag: bool) -> bool:
        """Raise the flag or not.  Returns whether any process raised it at the call before; with one process, flag."""
        if world_size() == 1:
            return flag
        before, total = self.last(), torch.tensor(float(flag))
        self._said = dist.all_reduce(total, group=_hosts.get(), async_op=True), total
        return before

    def last(self) -> bool:
        """Whether any process raised the flag at the last call of `any`."""
        if self._said is None:
            return False
        (work, total), self._said = self._said, None
        work.wait()
        return bool(total > 0)


def barrier() -> None:
    """Wait until every process has come here."""
    if dist.is_initialized():
        dist.barrier()
