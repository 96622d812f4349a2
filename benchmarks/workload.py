"""What the benchmarks of label propagation have in common: geometries, features, masks, the dense computation.

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

GEOMETRIES = {  # at 480x854, in steady state: name -> (h, w, D, N, configuration)
    "dul": (60, 107, 512, 21, Propagation("disc", 12, False, 0.05, 10, 20, True)),
    "ino": (60, 106, 384, 11, Propagation("square", 40, True, 0.1, 5, 10, False)),
}
CHUNK = {"cpu": 64, "cuda": 512}  # queries of the dense computation at a time


def add_arguments(parser):
    parser.add_argument("--geometry", nargs="+", choices=GEOMETRIES, default=list(GEOMETRIES))
    parser.add_argument("--cells", nargs=2, type=int, metavar=("H", "W"), help="another grid, 8x8 or more")
    parser.add_argument("--davis", metavar="DIR", help="features of its first sequence (DAVIS layout), not made ones")


def chosen(args, device):
    """For each geometry asked for: name, frames [N+1,h,w,D] (the query last), labels [N,h,w,M], configuration."""
    for name in args.geometry:
        h, w, D, N, cfg = GEOMETRIES[name]
        h, w = args.cells or (h, w)
        if min(h, w) < 8:
            raise UserError(f"--cells {h} {w}: must be 8 or more each")
        frames = real_features(N + 1, h, w, D, args.davis) if args.davis else made_features(N + 1, h, w, D)
        yield name, frames.contiguous().to(device), made_labels(N, h, w).to(device), cfg


def dense(query_hwD, keys_NhwD, labels_NhwM, cfg):
    """Masks [hw,M] by comparing every cell with every cell, some queries at a time, in the precision of the input.

    The affinity of all candidates is in memory, the window is added as 0 or -inf.
    """
    (h, w, D), N, chunk = query_hwD.shape, len(keys_NhwD), CHUNK[query_hwD.device.type]
    keys, labels = keys_NhwD.reshape(-1, D), labels_NhwM.reshape(N * h * w, -1)
    out = []
    for first in range(0, h * w, chunk):
        queries = query_hwD.reshape(-1, D)[first : first + chunk]
        # A CPU is faster where the queries lie side by side in memory, a GPU where the candidates do.
        affinity = (keys @ queries.T).T if keys.device.type == "cpu" else queries @ keys.T
        by_frame = affinity.unflatten(1, (N, h * w))
        outside = outside_window(torch.arange(first, first + len(queries), device=keys.device), h, w, cfg)
        by_frame[:, 0 if cfg.window_reference else 1 :] += torch.zeros_like(by_frame[:, :1]).masked_fill_(
            outside[:, None], -torch.inf
        )
        best, where = affinity.topk(cfg.top_k, dim=1)
        out.append((labels[where] * (best / cfg.temperature).softmax(1)[..., None]).sum(1))
    return torch.cat(out)


def outside_window(queries, h, w, cfg):
    """Which cells lie outside the windows of some queries, given by their numbers [n]: bool [n,hw]."""
    cells = torch.arange(h * w, device=queries.device)
    dy, dx = (queries[:, None] // w - cells // w).abs(), (queries[:, None] % w - cells % w).abs()
    return dy**2 + dx**2 >= cfg.radius**2 if cfg.window == "disc" else torch.maximum(dy, dx) > cfg.radius


def propagation(way, keys_NhwD, cfg):
    """A function of query [h,w,D] and labels [N,h,w,M] -> masks [hw,M], as a video uses it: the keys are prepared.

    way: "dense", or a backend of labelprop.  Raises UserError for a backend that cannot run.
    """
    if way == "dense":
        return lambda query, labels: dense(query, keys_NhwD, labels, cfg)
    module = backends.choose(way, keys_NhwD)
    reference, *context = backends.prepared(list(keys_NhwD), module)

    def propagate(query_hwD, labels_NhwM):
        query, groups = module.prepare(query_hwD, reference), [Group(reference, len(context))]
        labels = [labels.flatten(0, 1) for labels in labels_NhwM]
        return backends.propagate_groups(query, context, groups, [labels], cfg, module)[0]

    return propagate


def made_features(count, h, w, D):
    """Smooth random features that drift a cell every few frames, with some noise: unit [count,h,w,D]."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, D, h // 4, (w + count) // 4, generator=rng)
    ground = F.interpolate(coarse, (h, w + count), mode="bilinear")[0].permute(1, 2, 0)
    frames = [ground[:, t // 3 : t // 3 + w] + 0.3 * torch.randn(h, w, D, generator=rng) for t in range(count)]
    return F.normalize(torch.stack(frames), dim=-1)


@torch.no_grad()
def real_features(count, h, w, D, davis):
    """Frames through an untrained ResNet-18 of stride 8, its 512 channels mixed down to D: unit [count,h,w,D]."""
    (sequence, *_) = vos_sequences.davis(davis)
    if sequence.length < count:
        raise UserError(f"--davis {davis}: {sequence.name} has {sequence.length} frames; {count} or more are needed")
    torch.manual_seed(0)
    net = Backbone().train()  # batch norm of the frame: untrained statistics are not
    mix = torch.randn(512, D) / 512**0.5 if D != 512 else torch.eye(512)
    features = []
    for frame in islice(sequence.frames(), count):
        frame = F.interpolate(torch.from_numpy(frame).permute(2, 0, 1)[None] / 255, (8 * h, 8 * w), mode="bilinear")
        cells = net((frame - 0.45) / 0.225)["res4"][0].permute(1, 2, 0)
        features.append(F.normalize((cells - cells.mean((0, 1))) @ mix, dim=-1))
    return torch.stack(features)


def made_labels(N, h, w, M=3):
    """Soft masks of M channels, smooth: [N,h,w,M]."""
    rng = torch.Generator().manual_seed(1)
    coarse = 4 * torch.randn(N, M, h // 8, w // 8, generator=rng)
    return F.interpolate(coarse, (h, w), mode="bilinear").softmax(1).permute(0, 2, 3, 1).contiguous()
