"""One call, several engines that compute it.

Legend: N frames (0 = the reference), M channels, D feature dimensions, h w cells of the feature grid.
"""

import warnings

import torch

from core.devices import fast_int8
from core.errors import UserError
from labelprop import int8, reference, walk, windowed

BACKENDS = {"int8": int8, "reference": reference, "windowed": windowed}


def choose(backend, features):
    """The engine for such features, a module.  Raises UserError for a backend that is unknown or cannot run.

    An engine has two functions: prepare(features [h,w,D], first) -> the frame in the form that the engine works on,
    where `first` is the prepared first frame of the video (None for that one); and match(query, context, groups, cfg)
    of prepared frames, as walk.match returns it.
    """
    if backend in BACKENDS:
        return BACKENDS[backend]
    if backend not in ("auto", "triton"):
        raise UserError(f"backend = {backend!r}: must be one of auto, {', '.join(sorted([*BACKENDS, 'triton']))}")
    device, suits = features.device, features.dtype == torch.float32
    if backend == "auto" and (device.type == "cpu" or not suits):
        return int8 if suits and fast_int8(device) else windowed
    kernels, obstacle = _triton(device)
    if obstacle is None:
        return kernels
    if backend == "triton":
        raise UserError(f"backend = 'triton' on {device}: {obstacle}; 'auto' takes what runs")
    warnings.warn(f"label propagation goes the slower way on {device}: {obstacle}", stacklevel=2)
    return windowed


def _triton(device):
    """The engine of the Triton kernels, and why it cannot run on a device (None: it can)."""
    try:
        from labelprop import triton_backend
    except ImportError as error:
        return None, f"it needs the package triton ({error})"
    return triton_backend, triton_backend.obstacle(device)


@torch.no_grad()
def propagate(query_Dhw, keys_NDhw, labels_NMhw, cfg, backend="auto"):
    """Soft masks of a frame from those of other frames.

    query [D,h,w], keys [N,D,h,w]: features, unit norm over D; keys[0] is the reference frame.  labels
    [N,M,h,w]: soft masks of the same frames.  cfg: core.schema.Propagation.  backend: "auto" (the fastest here), "int8"
    (float32, CPU), "triton" (float32, GPU of compute capability 8.0 or higher), "windowed" (any) or "reference" (dense,
    for small grids).  Returns [M,h,w].  Raises UserError for a backend that is unknown or cannot run.
    """
    engine = choose(backend, query_Dhw)
    (D, h, w), N, M = query_Dhw.shape, len(keys_NDhw), labels_NMhw.shape[1]
    if keys_NDhw.shape != (N, D, h, w) or labels_NMhw.shape != (N, M, h, w) or N == 0:
        shapes = [tuple(x.shape) for x in (query_Dhw, keys_NDhw, labels_NMhw)]
        raise ValueError(f"query, keys, labels of shapes {shapes}: must be [D,h,w], [N,D,h,w], [N,M,h,w]")
    frames = prepared([f.permute(1, 2, 0).contiguous() for f in (*keys_NDhw, query_Dhw)], engine)
    labels = [frame.flatten(1).T for frame in labels_NMhw]
    groups = [walk.Group(frames[0], N - 1)]
    (masks,) = propagate_groups(frames[-1], frames[1:-1], groups, [labels], cfg, engine)
    return masks.T.reshape(-1, h, w)


def prepared(features, engine):
    """The frames of a video as an engine prepares them, from their features [h,w,D]."""
    first = engine.prepare(features[0], None)
    return [first, *(engine.prepare(frame, first) for frame in features[1:])]


@torch.no_grad()
def propagate_groups(query, context, groups, labels, cfg, engine):
    """Soft masks of a frame for several groups of objects that share the context's features.

    query; context: frames as the engine prepares them, oldest first; groups: walk.Group, the one with most frames
    first; labels: for each group the soft masks [hw,M] of its reference, then of its context frames.  Returns for
    each group [hw,M]; each has its own M.
    """
    matches = engine.match(query, context, groups, cfg)
    return [walk.vote(*match, masks) for match, masks in zip(matches, labels)]
