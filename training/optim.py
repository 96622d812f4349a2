"""Optimiser and parameter groups from the configuration."""

import torch
from torch import nn

from core.schema import Optim

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(model, optim: Optim):
    """Two groups: decayed weights at lr, and biases (never decayed) at lr * bias_lr_factor.

    Weights of normalisation layers, and other parameters of one dimension, belong to the first group if
    optim.decay_norm_weights, else to a third group at lr without decay.  Each group has `lr_factor` and `decays`, which
    `set_rates` reads.
    """
    norm_weights = {id(m.weight) for m in model.modules() if isinstance(m, _NORMS) and m.weight is not None}
    weights, biases, plain = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith("bias"):
            biases.append(parameter)
        elif optim.decay_norm_weights or (id(parameter) not in norm_weights and parameter.ndim > 1):
            weights.append(parameter)
        else:
            plain.append(parameter)
    groups = [
        {"params": weights, "lr_factor": 1.0, "decays": True},
        {"params": biases, "lr_factor": optim.bias_lr_factor, "decays": False},
        {"params": plain, "lr_factor": 1.0, "decays": False},
    ]
    return [g for g in groups if g["params"]]


def build(model, optim: Optim, fused: bool | None = None):
    """The optimiser of parameter_groups(model); set_rates sets its rates before every step.

    fused: one kernel for all parameters instead of a loop over them; None = on a GPU.
    """
    groups = parameter_groups(model, optim)
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    own = {"momentum": optim.momentum} if optim.name == "sgd" else {"betas": optim.betas}
    fused = groups[0]["params"][0].device.type == "cuda" if fused is None else fused
    optimiser = kinds[optim.name](groups, lr=optim.lr, fused=fused, **own)
    set_rates(optimiser, optim.lr, optim.weight_decay)
    return optimiser


def set_rates(optimiser, lr, weight_decay):
    """Give every group its learning rate and weight decay."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_factor"]
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def clip_each(parameters, norm):
    """Scale every parameter's gradient on its own to a norm of at most `norm`."""
    for parameter in parameters:
        if parameter.grad is not None:
            torch.nn.utils.clip_grad_norm_([parameter], norm)
