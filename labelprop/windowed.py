"""Label propagation that runs: exact, on CPU and GPU, and never the dense affinity.

The queries are cut into tiles.  A tile's similarities to the cells that any of its queries can reach (its
halo) are small enough to stay near the processor: one product a frame, then the exact selection in two
steps.  The k best positions by their maximum over frames contain a top-k, so the window is cut out once per
position and only k positions are looked at frame by frame.

Features lie channels last, [h,w,D]: the rows of a halo are then contiguous and no product needs a copy.
Legend: N frames, P positions of a halo, Q queries of a tile, D feature dimensions, k = top_k, M channels.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F

#: similarities of one tile in memory, at most (numbers, not bytes)
TILE_SCORES = {"cpu": 2**24, "cuda": 2**28}
#: channels whose labels are laid side by side at a time
CHANNELS = 32


@dataclass(frozen=True)
class Group:
    """Whose masks vote: a reference frame and the last `frames` frames of the context.

    reference: as the backend prepares frames.  copies: how often the oldest of the others counts, as if it
    stood so often in the list.
    """

    reference: object
    frames: int
    copies: int = 1


def prepare(features_hwD, first):
    """Frames need no preparation here."""
    return features_hwD


@torch.no_grad()
def match(query, context, groups, cfg):
    """The top_k candidates of every query cell and their weights, for every group.

    query [h,w,D]; context: features [h,w,D] of the frames before, oldest first, shared by all groups; groups:
    the one with most frames first.  Returns for each group (weights [hw,k], rows sum to 1; cells [hw,k], flat
    indices into the list of its reference, then its context frames).  k = top_k; missing candidates weigh 0.
    """
    h, w, _ = query.shape
    assert all(a.frames >= b.frames for a, b in zip(groups, groups[1:])) and groups[0].frames <= len(context)
    context = context[len(context) - groups[0].frames :]
    tiles = _tiles(h, w, len(context) + 1, query.device.type, cfg)
    found = [
        (query.new_zeros(h, w, cfg.top_k), torch.zeros(h, w, cfg.top_k, dtype=torch.long, device=query.device))
        for _ in groups
    ]

    def work(queue):
        scratch = query.new_empty(0)
        for tile in queue:
            scratch = _match_tile(query, context, groups, cfg, tile, found, scratch)

    on_all_cores(work, tiles, query.device)
    return [(weights.flatten(0, 1), cells.flatten(0, 1)) for weights, cells in found]


def vote(weights, cells, labels):
    """Weighted mean of the labels at the chosen cells.  labels: a list of [hw,M].  Returns [hw,M].

    Channels are taken a few at a time, so that many objects cost no more memory than their masks.
    """
    out = labels[0].new_empty(weights.shape[0], labels[0].shape[1])
    for first in range(0, out.shape[1], CHANNELS):
        table = torch.cat([frame[:, first : first + CHANNELS] for frame in labels])
        out[:, first : first + CHANNELS] = F.embedding_bag(
            cells, table, per_sample_weights=weights.to(table.dtype), mode="sum"
        )
    return out


def _match_tile(query, context, groups, cfg, tile, found, scratch):
    """Fills the rows of `found` that belong to one tile.  Returns the scratch memory, grown if need be."""
    h, w, D = query.shape
    (top, bottom), (left, right) = tile
    far = reach(cfg)
    y0, y1 = max(0, top - far), min(h, bottom + far)
    x0, x1 = max(0, left - far), min(w, right + far)
    queries_DQ = query[top:bottom, left:right].reshape(-1, D).T
    outside_PQ = outside_window(tile, (y0, y1), (x0, x1), cfg, query.device)
    slots, size = len(context) + 1, (y1 - y0) * (x1 - x0) * queries_DQ.shape[1]
    if scratch.numel() < slots * size:
        scratch = query.new_empty(slots * size)
    scores = scratch[: slots * size].view(slots, y1 - y0, x1 - x0, -1)

    def score(frame, slot):
        halo = frame[y0:y1, x0:x1]
        torch.bmm(halo, queries_DQ.expand(len(halo), -1, -1), out=scores[slot])

    for slot, frame in enumerate(context, start=1):
        score(frame, slot)
    for group, (weights, cells) in zip(groups, found):
        # A group's reference takes the slot before its oldest frame: only older groups, already done, used that.
        first = slots - group.frames - 1
        chosen = []
        if cfg.window_reference:
            score(group.reference, first)
        else:
            open_hwQ = (group.reference.flatten(0, 1) @ queries_DQ).view(h, w, -1)
            best, y, x = _select(open_hwQ, None, cfg.top_k)
            chosen.append((best, y * w + x))
            first += 1
        if first < slots:
            best, frame, position = _select(scores[first:].flatten(1, 2), outside_PQ, cfg.top_k)
            frame = frame + (0 if cfg.window_reference else 1)
            y, x = y0 + position // (x1 - x0), x0 + position % (x1 - x0)
            chosen.append((best, (frame * h + y) * w + x))
        best, cell = _merge(chosen, cfg.top_k)
        shape = (bottom - top, right - left, -1)
        weight = weights_of(best, cell // (h * w) == 1, group.copies, cfg)
        weights[top:bottom, left:right, : len(best)] = weight.T.reshape(shape)
        cells[top:bottom, left:right, : len(best)] = cell.T.reshape(shape)
    return scratch


def _select(scores_NPQ, outside_PQ, k):
    """The k largest of all N * P scores of each query, outside ones excepted: values, n, p, each [<=k,Q], sorted."""
    best = scores_NPQ.amax(0)
    if outside_PQ is not None:
        best.masked_fill_(outside_PQ, -torch.inf)
    best, position = best.topk(min(k, len(best)), dim=0)
    candidates = scores_NPQ.gather(1, position.expand(len(scores_NPQ), -1, -1))
    candidates = candidates.masked_fill_(best == -torch.inf, -torch.inf).flatten(0, 1)
    values, flat = candidates.topk(min(k, len(candidates)), dim=0)
    return values, flat // len(position), position.gather(0, flat % len(position))


def _merge(chosen, k):
    """The k best of several (values, cells), sorted."""
    if len(chosen) == 1:
        return chosen[0]
    values, cells = (torch.cat(parts) for parts in zip(*chosen))
    values, order = values.topk(min(k, len(values)), dim=0)
    return values, cells.gather(0, order)


def weights_of(values_kQ, is_oldest_kQ, copies, cfg):
    """Softmax over the kept similarities, sorted downwards; copies of the oldest frame fill places of the top_k."""
    weights = ((values_kQ - values_kQ[:1]) / cfg.temperature).exp()
    if copies > 1:
        count = torch.where(is_oldest_kQ, copies, 1)
        before = count.cumsum(0) - count
        weights = weights * torch.minimum((cfg.top_k - before).clamp(min=0), count)
    return weights / weights.sum(0)


def reach(cfg):
    """Cells between a query and the farthest key of its window, along one axis."""
    return cfg.radius - 1 if cfg.window == "disc" else cfg.radius


def outside_window(tile, rows, columns, cfg, device=None):
    """Which positions of a halo lie outside the window of which query: bool [P,Q]."""
    (dy, dx) = (
        torch.arange(*halo, device=device)[:, None] - torch.arange(*queries, device=device)
        for halo, queries in zip((rows, columns), tile)
    )
    dy, dx = dy[:, None, :, None], dx[None, :, None, :]
    if cfg.window == "square":
        outside = (dy.abs() > cfg.radius) | (dx.abs() > cfg.radius)
    else:
        outside = dy**2 + dx**2 > cfg.radius**2 - (cfg.window == "disc")
    return outside.flatten(2).flatten(0, 1)


def _tiles(h, w, frames, device, cfg):
    """Cuts the grid into tiles ((top, bottom), (left, right)) of nearly the same size."""
    # Measured on two CPU cores: 8 for DUL's disc, 12 for INO's square.  A GPU wants fewer, larger products.
    side = tile_side(16 if device != "cpu" else 8 if reach(cfg) <= 20 else 12, h, w, frames, device, cfg)
    return [(rows, columns) for rows in cuts(h, side) for columns in cuts(w, side)]


def tile_side(side, h, w, frames, device, cfg):
    """The side of a tile in cells, as wanted or smaller where its scores would take more memory than TILE_SCORES."""
    budget = TILE_SCORES.get(device, TILE_SCORES["cuda"])
    halo = lambda side: min(h, side + 2 * reach(cfg)) * min(w, side + 2 * reach(cfg))
    while side > 1 and max(frames * halo(side), 0 if cfg.window_reference else h * w) * side**2 > budget:
        side -= 1
    return side


def cuts(length, side):
    parts = -(-length // side)
    edges = [length * i // parts for i in range(parts + 1)]
    return list(zip(edges, edges[1:]))


def on_all_cores(work, items, device):
    """work(queue) in one Python thread a core, all taking from one queue of items.

    Torch's own threads inside one small product give half the speed of one product per core side by side.
    """
    queue = iter(items)  # next() on a list's iterator is atomic
    cores = torch.get_num_threads()
    threads = min(cores, len(items))
    if device.type != "cpu" or threads == 1:
        work(queue)
        return

    inference = torch.is_inference_mode_enabled()  # modes belong to a thread

    def alone():
        with torch.inference_mode(inference), torch.no_grad():
            work(queue)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for job in [pool.submit(alone) for _ in range(threads)]:
                job.result()
    finally:
        # What a worker set for itself is also what threads started later would begin with.
        torch.set_num_threads(cores)
