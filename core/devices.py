"""Where a program runs, and in what precision."""

import torch

from core.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick(name):
    """"auto", "cpu" or "cuda" -> torch.device; auto takes CUDA where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device was found; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def autocast(device, precision):
    """Context for a forward pass: "fp32" (none), "bf16" or "fp16"."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")
