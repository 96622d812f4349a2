"""Geometries, features, masks and the dense computation that the benchmarks of label propagation share.

Legend: N frames besides the query (0 = the reference), M channels, D feature dimensions, h w cells.
"""

from itertools import islice

import torch
import torch.nn.functional as F

from core.errors import UserError
from core.schema import Propagation
from datasets import vos_sequences
from labelprop import backends
from labelprop.walk import Group
from models.backbones.resnet import Backbone

GEOMETRIES = {  # 480x854 in steady state: (h, w, D, N, protocol)
    "dul": (60, 107, 512, 21, Propagation("disc", 12, False, 0.05, 10, 20, True)),
    "ino": (60, 106, 384, 11, Propagation("square", 40, True, 0.1, 5, 10, False)),
}
CHUNK = {"cpu": 64, "cuda": 512}  # queries of the dense computation at a time


def dense(query_hwD, keys_NhwD, labels_NhwM, cfg):
    """Masks [hw,M] by comparing every cell with every cell, in the precision of the features.

    For a chunk of queries the affinity to all candidates is in memory; the window is added as 0 or -inf.
    """
    (h, w, D), N, chunk = query_hwD.shape, len(keys_NhwD), CHUNK[query_hwD.device.type]
    keys, labels = keys_NhwD.reshape(-1, D), labels_NhwM.reshape(N * h * w, -1)
    masks = []
    for first, queries in zip(range(0, h * w, chunk), query_hwD.reshape(-1, D).split(chunk)):
        # A CPU is faster if the queries are contiguous in memory, a GPU if the candidates are.
        affinity = (keys @ queries.T).T if keys.device.type == "cpu" else queries @ keys.T
        outside = outside_window(torch.arange(first, first + len(queries), device=keys.device), h, w, cfg)
        by_frame = affinity.unflatten(1, (N, h * w))
        window = torch.zeros_like(by_frame[:, :1]).masked_fill_(outside[:, None], -torch.inf)  # strides of the affinity
        by_frame[:, 0 if cfg.window_reference else 1 :] += window
        best, where = affinity.topk(cfg.top_k, dim=1)
        masks.append((labels[where] * (best / cfg.temperature).softmax(1)[..., None]).sum(1))
    return torch.cat(masks)


def outside_window(queries, h, w, cfg):
    """Which cells lie outside the window of each query: bool [n,hw].  queries: flat indices of cells [n]."""
    cells = torch.arange(h * w, device=queries.device)
    dy, dx = (queries[:, None] // w - cells // w).abs(), (queries[:, None] % w - cells % w).abs()
    return dy**2 + dx**2 >= cfg.radius**2 if cfg.window == "disc" else torch.maximum(dy, dx) > cfg.radius


def propagation(way, keys_NhwD, cfg):
    """A function (query [h,w,D], labels [N,h,w,M]) -> masks [hw,M].  The keys are prepared, as within a video.

    way: "dense", or a backend of labelprop.  Raises UserError for a backend that cannot run.
    """
    if way == "dense":
        return lambda query, labels: dense(query, keys_NhwD, labels, cfg)
    engine = backends.choose(way, keys_NhwD)
    reference, *context = backends.prepared(list(keys_NhwD), engine)

    def propagate(query_hwD, labels_NhwM):
        query, groups = engine.prepare(query_hwD, reference), [Group(reference, len(context))]
        labels = [labels.flatten(0, 1) for labels in labels_NhwM]
        return backends.propagate_groups(query, context, groups, [labels], cfg, engine)[0]

    return propagate


def made_features(count, h, w, D):
    """Random features, smooth, with noise, that move a cell every three frames: [count,h,w,D], unit norm over D."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, D, h // 4, (w + count) // 4, generator=rng)
    ground = F.interpolate(coarse, (h, w + count), mode="bilinear")[0].permute(1, 2, 0)
    frames = [ground[:, t // 3 : t // 3 + w] + 0.3 * torch.randn(h, w, D, generator=rng) for t in range(count)]
    return F.normalize(torch.stack(frames), dim=-1)


@torch.no_grad()
def real_features(count, h, w, D, davis):
    """Features [count,h,w,D] of real frames by an untrained ResNet-18 of stride 8; its 512 channels are mixed to D."""
    (sequence, *_) = vos_sequences.davis(davis)
    if sequence.length < count:
        raise UserError(f"--davis {davis}: {sequence.name} has {sequence.length} frames; {count} or more are needed")
    torch.manual_seed(0)
    net = Backbone().train()  # the running statistics of an untrained batch norm are useless
    mix = torch.randn(512, D) / 512**0.5 if D != 512 else torch.eye(512)
    features = []
    for frame in islice(sequence.frames(), count):
        frame = F.interpolate(torch.from_numpy(frame).permute(2, 0, 1)[None] / 255, (8 * h, 8 * w), mode="bilinear")
        cells = net((frame - 0.45) / 0.225)["res4"][0].permute(1, 2, 0)
        features.append(F.normalize((cells - cells.mean((0, 1))) @ mix, dim=-1))
    return torch.stack(features)


def made_labels(N, h, w, M=3):
    """Smooth soft masks [N,h,w,M]."""
    rng = torch.Generator().manual_seed(1)
    coarse = 4 * torch.randn(N, M, h // 8, w // 8, generator=rng)
    return F.interpolate(coarse, (h, w), mode="bilinear").softmax(1).permute(0, 2, 3, 1).contiguous()
