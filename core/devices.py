"""The device a program runs on, and its precision."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from core.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick(name: str) -> torch.device:
    """The device "cpu", "cuda" or "auto", which is CUDA where it is found.  UserError for "cuda" where it is not."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device was found; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware.  Without, bfloat16 is many times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def fast_int8(device: torch.device) -> bool:
    """Whether the device is a CPU that multiplies 8-bit integers in hardware, many times faster than float32."""
    able = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(able.get(name, False) for name in ("avx512_vnni", "amx_int8"))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context for a forward pass: "fp32" (none), "bf16", "fp16", or "auto" = bf16 where it is fast, else fp32."""
    if precision == "auto":
        precision = "bf16" if fast_bf16(device) else "fp32"
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


@contextmanager
def enough_memory(told: str) -> Iterator[None]:
    """Inside, too little memory on the device is a UserError that says `told`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if scarce(error):
            raise UserError(told) from None
        raise


def scarce(error: Exception) -> bool:
    """Whether an error says that there is too little memory.  On a CPU it is torch's RuntimeError of this text."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
