"""Soft masks of one frame from those of other frames, by one of several engines.

An engine is a module with two functions:
    prepare(features_hwD, first)        a frame in the form that the engine works on; first: the prepared first
                                        frame of the video, None for that frame itself
    match(query, context, groups, cfg)  as walk.match, for prepared frames
Legend: N frames (0 = the reference), M channels, D feature dimensions, h w cells of the feature grid.
"""

import warnings
from types import ModuleType

import torch
from torch import Tensor

from core.devices import fast_int8
from core.errors import UserError
from core.schema import Propagation
from labelprop import int8, walk, windowed

BACKENDS = {"int8": int8, "windowed": windowed}


def choose(backend: str, features: Tensor) -> ModuleType:
    """The engine for features of this device and dtype.  Raises UserError for a backend unknown or unable to run."""
    if backend in BACKENDS:
        return BACKENDS[backend]
    if backend not in ("auto", "triton"):
        raise UserError(f"backend = {backend!r}: must be one of auto, {', '.join(sorted([*BACKENDS, 'triton']))}")
    device, is_float32 = features.device, features.dtype == torch.float32
    if backend == "auto" and (device.type == "cpu" or not is_float32):
        return int8 if is_float32 and fast_int8(device) else windowed
    try:
        from labelprop import triton_backend

        obstacle = triton_backend.obstacle(device)
    except ImportError as error:
        obstacle = f"it needs the package triton ({error})"
    if obstacle is None:
        return triton_backend
    if backend == "triton":
        raise UserError(f"backend = 'triton' on {device}: {obstacle}; 'auto' takes what runs")
    warnings.warn(f"label propagation goes the slower way on {device}: {obstacle}", stacklevel=2)
    return windowed


@torch.no_grad()
def propagate(
    query_Dhw: Tensor, keys_NDhw: Tensor, labels_NMhw: Tensor, cfg: Propagation, backend: str = "auto"
) -> Tensor:
    """Soft masks [M,h,w] of a frame from those of other frames.

    query [D,h,w], keys [N,D,h,w]: features, unit norm over D; keys[0] is the reference frame.  labels [N,M,h,w]: soft
    masks of the key frames.  backend: "auto" (the fastest here), "int8" (float32, CPU), "triton" (float32, GPU of
    compute capability 8.0 or higher) or "windowed" (any).  Raises UserError for a backend that is unknown or cannot
    run, ValueError for shapes that do not fit together.
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
    """Soft masks [hw,M] of a frame for each group of objects; groups may differ in M.

    query, context, groups: as for walk.match.  labels: for each group the soft masks [hw,M] of its reference, then of
    its context frames.
    """
    matches = engine.match(query, context, groups, cfg)
    return [walk.vote(*match, masks) for match, masks in zip(matches, labels)]
