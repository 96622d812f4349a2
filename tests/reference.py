"""Label propagation by its definition, dense, in any dtype.  Tests compare the engines with it in float64.

Importing this file adds it to labelprop as backend="reference".
Legend: h w size of the feature grid in cells, D feature channels.
"""

import sys

import torch

from labelprop import backends


def inside_window(h, w, cfg, device=None):
    """bool [hw (query), hw (key)]: True where the key cell lies in the window of the query cell."""
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    dy, dx = (c.reshape(-1, 1) - c.reshape(1, -1) for c in (y, x))
    if cfg.window == "disc":
        return dy**2 + dx**2 < cfg.radius**2
    if cfg.window == "closed_disc":
        return dy**2 + dx**2 <= cfg.radius**2
    return (dy.abs() <= cfg.radius) & (dx.abs() <= cfg.radius)


def prepare(features_hwD, first):
    """Frames need no preparation here."""
    return features_hwD


def match(query, context, groups, cfg):
    """The weights and cells of the top_k candidates of every query cell, as walk.match returns them.

    Keeps all N * (hw)^2 similarities in memory: only for small grids.
    """
    h, w, _ = query.shape
    inside = inside_window(h, w, cfg, query.device)
    found = []
    for group in groups:
        keys = [group.reference, *context[len(context) - group.frames :]]
        # repeats the oldest context frame `copies` times
        order = [0, *([1] * (group.copies - 1) if group.frames else []), *range(1, len(keys))]
        allowed = inside[:, None].repeat(1, len(order), 1)
        if not cfg.window_reference:
            allowed[:, 0] = True
        similarity = torch.stack([query.flatten(0, 1) @ keys[n].flatten(0, 1).T for n in order], dim=1)
        similarity = (similarity / cfg.temperature).masked_fill(~allowed, -torch.inf).flatten(1)
        best, where = similarity.topk(min(cfg.top_k, similarity.shape[1]), dim=1)
        frame = torch.tensor(order, device=query.device)[where // (h * w)]
        found.append((best.softmax(dim=1), frame * h * w + where % (h * w)))
    return found


backends.BACKENDS["reference"] = sys.modules[__name__]
