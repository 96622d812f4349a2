"""One process or several (torchrun): start, rank, gathering with gradients."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather

from core.errors import UserError


def start(device: torch.device) -> torch.device:
    """Join the process group that torchrun describes, if any.  Returns the device of this process, see `own`."""
    device = own(device)
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized():
        # The others wait while the first process validates.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=6))
    return device


def own(device: torch.device) -> torch.device:
    """The device of this process: of several GPUs, one each.  UserError where there are fewer GPUs than processes."""
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


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() and not _alone.get() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() and not _alone.get() else 1


_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is the only one: for the work of one rank while the others wait, or would wait for ever."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def averaged(module, device):
    """The module, whose gradients become the means over all ranks in the backward pass."""
    devices = [device] if device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(module, device_ids=devices)


def gather(rows: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, [world * n, ...] in rank order, with gradient to every rank's rows.

    With one process the rows themselves.  Every rank must bring the same shape.
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
    """The values of rank 0, on every rank; all ranks bring the same shape and type."""
    if world_size() > 1:
        values = values.clone()
        dist.broadcast(values, 0)
    return values


def any_rank(flag: bool, device: torch.device) -> bool:
    """True where any rank says so, so that all ranks stop at the same step."""
    if world_size() == 1:
        return flag
    total = torch.tensor(float(flag), device=device)
    dist.all_reduce(total)
    return bool(total.item() > 0)


def barrier() -> None:
    """Wait until every process has come here."""
    if dist.is_initialized():
        dist.barrier()
