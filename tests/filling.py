"""Weights and images of the reference values, computed by a rule, so that they need not be stored."""

import numpy as np
import torch


def uniform(count, entry):
    """float64 [count], numbers in [-1, 1): each is a hash of its index and of `entry`."""
    with np.errstate(over="ignore"):
        h = np.arange(count, dtype=np.uint32) + np.uint32(entry * 0x9E3779B9 & 0xFFFFFFFF)
        h ^= h >> np.uint32(16)
        h *= np.uint32(0x85EBCA6B)
        h ^= h >> np.uint32(13)
        h *= np.uint32(0xC2B2AE35)
        h ^= h >> np.uint32(16)
    return 2 * h.astype(np.float64) / 2**32 - 1


def value(name, shape, entry):
    """The tensor of the state_dict key `name`.  entry: the index of the key among all sorted keys."""
    count = int(np.prod(shape))
    last, s = name.rsplit(".", 1)[-1], uniform(count, entry)
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if last == "running_var":
        s = 1 + 0.1 * np.abs(s)
    elif last == "running_mean":
        s = 0.1 * s
    elif last in ("cls_token", "mask_token", "pos_embed"):
        s = 0.5 * s
    elif last == "bias":
        s = 0.05 * s
    elif len(shape) == 1 or last == "weight_g":
        s = 1 + 0.1 * s
    else:
        s = s * np.sqrt(6 / (count / shape[0]))
    return torch.from_numpy(s.astype(np.float32)).reshape(shape)


def state(shapes):
    """{name: shape} -> {name: filled tensor}.  The rule sorts by these names."""
    return {name: value(name, tuple(shape), entry) for entry, (name, shape) in enumerate(sorted(shapes.items()))}


def fill(module, names=lambda name: name):
    """Fill a module and return it.  names: a function from its state_dict keys to the names that the rule sorts by."""
    own = module.state_dict()
    filled = state({names(name): tensor.shape for name, tensor in own.items()})
    module.load_state_dict({name: filled[names(name)] for name in own})
    return module


def images(shape, entry):
    """Images, or inputs of a head: twice `uniform`.  entry: 1000, 1001 or 1002 in the reference values."""
    return torch.from_numpy((2 * uniform(int(np.prod(shape)), entry)).astype(np.float32)).reshape(shape)
