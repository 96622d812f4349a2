"""One call, several ways to compute it.

Legend: N frames (0 = the reference), M channels, D feature dimensions, h w cells of the feature grid.
"""

import torch

from core.errors import UserError
from labelprop import reference, windowed

BACKENDS = {"auto": windowed, "reference": reference, "windowed": windowed}


def choose(backend):
    """The module that computes it.  Raises UserError for an unknown name."""
    if backend not in BACKENDS:
        raise UserError(f"backend = {backend!r}: must be one of {', '.join(sorted(BACKENDS))}")
    return BACKENDS[backend]


@torch.no_grad()
def propagate(query_Dhw, keys_NDhw, labels_NMhw, cfg, backend="auto"):
    """Soft masks of a frame from those of other frames.

    query [D,h,w], keys [N,D,h,w]: features, unit norm over D; keys[0] is the reference frame.  labels
    [N,M,h,w]: soft masks of the same frames.  cfg: core.schema.Propagation.  backend: "auto", "windowed" or
    "reference" (dense, for small grids).  Returns [M,h,w].  Raises UserError for an unknown backend.
    """
    module = choose(backend)
    (D, h, w), N, M = query_Dhw.shape, len(keys_NDhw), labels_NMhw.shape[1]
    if keys_NDhw.shape != (N, D, h, w) or labels_NMhw.shape != (N, M, h, w) or N == 0:
        shapes = [tuple(x.shape) for x in (query_Dhw, keys_NDhw, labels_NMhw)]
        raise ValueError(f"query, keys, labels of shapes {shapes}: must be [D,h,w], [N,D,h,w], [N,M,h,w]")
    return module.propagate(query_Dhw, keys_NDhw, labels_NMhw, cfg)


@torch.no_grad()
def propagate_groups(query, context, groups, labels, cfg, backend="auto"):
    """Soft masks of a frame for several groups of objects that share the context's features.

    query [h,w,D]; context: features [h,w,D], oldest first; groups: windowed.Group, the one with most frames
    first; labels: for each group the soft masks [hw,M] of its reference, then of its context frames, M its own.
    Returns a list of [hw,M].
    """
    if choose(backend) is not reference:
        matches = choose(backend).match(query, context, groups, cfg)
        return [windowed.vote(*match, masks) for match, masks in zip(matches, labels)]
    out = []
    for group, masks in zip(groups, labels):
        frames = [group.reference, *context[len(context) - group.frames :]]
        # the definition knows no copies: they are written out
        order = [0, *([1] * (group.copies - 1) if group.frames else []), *range(1, len(frames))]
        keys = torch.stack([frames[n] for n in order]).permute(0, 3, 1, 2)
        masks = torch.stack([masks[n].T.reshape(-1, *query.shape[:2]) for n in order])
        out.append(reference.propagate(query.permute(2, 0, 1), keys, masks, cfg).flatten(1).T)
    return out
