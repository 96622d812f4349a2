"""Label propagation as it is defined: dense, readable, in any dtype.  In float64 it is the truth of the tests.

Legend: N frames (0 = the reference), M channels, D feature dimensions, h w cells of the feature grid.
"""

import torch


def inside_window(h, w, cfg, device=None):
    """Which cells lie in the window around which.  Returns bool [hw (query), hw (key)]; cut at the border."""
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    dy, dx = (c.reshape(-1, 1) - c.reshape(1, -1) for c in (y, x))
    if cfg.window == "disc":
        return dy**2 + dx**2 < cfg.radius**2
    if cfg.window == "closed_disc":
        return dy**2 + dx**2 <= cfg.radius**2
    return (dy.abs() <= cfg.radius) & (dx.abs() <= cfg.radius)


def propagate(query_Dhw, keys_NDhw, labels_NMhw, cfg):
    """Soft masks of the query frame, by the top_k most similar cells of all frames.  Returns [M,h,w].

    The whole affinity stands in memory, N * (hw)^2 numbers: for small grids.
    """
    N, D, h, w = keys_NDhw.shape
    similarity = torch.einsum("dp,ndq->pnq", query_Dhw.flatten(1), keys_NDhw.flatten(2)) / cfg.temperature
    outside = ~inside_window(h, w, cfg, query_Dhw.device)[:, None].repeat(1, N, 1)
    if not cfg.window_reference:
        outside[:, 0] = False
    similarity = similarity.masked_fill(outside, -torch.inf).flatten(1)
    best, where = similarity.topk(min(cfg.top_k, N * h * w), dim=1)
    labels = labels_NMhw.transpose(0, 1).flatten(1)
    return (labels[:, where] * best.softmax(dim=1)).sum(-1).view(-1, h, w)
