"""The walk over a frame that two engines share: it cuts tiles, orders frames into slots and collects the results.

The queries are cut into tiles.  The halo of a tile holds all cells that a window of its queries reaches.  A scorer
compares a tile with its halo in all frames at once and selects the best candidates.  windowed.Float32 and int8.Int8
are scorers; `match` describes the methods of a scorer.

Legend: P positions of a halo, Q queries of a tile, D feature dimensions, k = top_k, M channels.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core.schema import Propagation
from labelprop.pipeline import one_core_threads

#: how many similarities of one tile are in memory at most (numbers, not bytes)
TILE_SCORES = {"cpu": 2**24, "cuda": 2**28}
#: for how many channels the labels of all frames are concatenated at a time
CHANNELS = 32


@dataclass(frozen=True)
class Group:
    """Objects with one reference frame.  Their masks come from it and from the last `frames` frames of the context.

    reference: the frame as the engine prepares it.  copies: how often the oldest of these context frames counts.
    """

    reference: Any
    frames: int
    copies: int = 1


@dataclass(frozen=True)
class Tile:
    """Queries and their halo, both as an index (rows, columns) into [h,w,...]."""

    queries: tuple[slice, slice]
    halo: tuple[slice, slice]

    @property
    def halo_shape(self):
        """Rows and columns of the halo."""
        return tuple(cut.stop - cut.start for cut in self.halo)


@torch.no_grad()
def match(Scorer: Any, query: Any, context: list, groups: list[Group], cfg: Propagation) -> list[tuple[Tensor, Tensor]]:
    """The top_k candidates of every query cell and their weights, for every group.

    query, context: frames as the engine prepares them; context: oldest first, shared by all groups.  groups: the group
    with most frames first.  Returns for each group weights [hw,k], whose rows sum to 1, and cells [hw,k], flat indices
    into the list of the group's reference, then its context frames.  Missing candidates have weight 0.

    Each thread makes one Scorer(query, slots, cfg).  For every tile the walk calls

        begin(tile)           go on to the queries of this tile
        near(frames, slot)    score the halo in these frames; the scores go to slot, slot + 1, ...
        best(frames, slot)    select for one group: frames are its reference and its context frames, its scores begin
                              at `slot`.  Returns similarities and cells, each [<=k,Q], best first.

    Where the window applies to references, a group's reference takes the slot before its oldest context frame.  This
    overwrites the scores of a frame that only groups with more frames need, and these groups come first.  Elsewhere
    `best` scores the whole reference.  Scorer.side(device, cfg): the wanted side of a tile.  Scorer.BY_COLUMN: one
    thread takes all tiles of a column.
    """
    assert all(a.frames >= b.frames for a, b in zip(groups, groups[1:])) and groups[0].frames <= len(context)
    (h, w, _), device = query.shape, query.device
    context = context[len(context) - groups[0].frames :]
    slots = 1 + len(context)
    empty = lambda dtype: torch.zeros(h, w, cfg.top_k, dtype=dtype, device=device)
    found = [(empty(query.dtype), empty(torch.long)) for _ in groups]

    def work(queue):
        scorer = Scorer(query, slots, cfg)
        for tile in chain.from_iterable(queue):
            scorer.begin(tile)
            scorer.near(context, 1)
            for group, place in zip(groups, found):
                own, slot = context[len(context) - group.frames :], slots - group.frames
                if cfg.window_reference:
                    slot -= 1
                    scorer.near([group.reference], slot)
                _put(place, tile, scorer.best([group.reference, *own], slot), group.copies, cfg)

    side = tile_side(Scorer.side(device.type, cfg), h, w, slots, device.type, cfg)
    columns = [[tile_at(r, c, h, w, cfg) for r in cuts(h, side)] for c in cuts(w, side)]
    on_all_cores(work, columns if Scorer.BY_COLUMN else [[tile] for run in columns for tile in run], device)
    return [(weights.flatten(0, 1), cells.flatten(0, 1)) for weights, cells in found]


def _put(place, tile, best, copies, cfg):
    """Write the weights and cells of a tile's candidates into `place`: (weights, cells), each [h,w,k]."""
    weights, cells = place
    similarities, cell = best
    h, w, _ = cells.shape
    weight = weights_of(similarities, cell // (h * w) == 1, copies, cfg)
    for out, values in ((weights, weight), (cells, cell)):
        part = out[tile.queries]
        part[..., : len(values)] = values.T.reshape(*part.shape[:2], -1)


def vote(weights: Tensor, cells: Tensor, labels: list[Tensor]) -> Tensor:
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


def weights_of(values_kQ, is_oldest_kQ, copies, cfg):
    """Softmax over the k kept similarities, largest first.

    Every cell of the oldest frame counts `copies` times, as if the frame stood so often among the candidates: each
    copy takes one of the top_k places.
    """
    weights = ((values_kQ - values_kQ[:1]) / cfg.temperature).exp()
    if copies > 1:
        count = torch.where(is_oldest_kQ, copies, 1)
        before = count.cumsum(0) - count
        weights = weights * torch.minimum((cfg.top_k - before).clamp(min=0), count)
    return weights / weights.sum(0)


def reach(cfg):
    """The distance in cells from a query to the farthest key of its window, along one axis."""
    return cfg.radius - 1 if cfg.window == "disc" else cfg.radius


def tile_at(rows, columns, h, w, cfg):
    """The tile of some rows and columns, both slices; its halo is cut at the border of the grid."""
    far = reach(cfg)
    around = lambda cut, length: slice(max(0, cut.start - far), min(length, cut.stop + far))
    return Tile((rows, columns), (around(rows, h), around(columns, w)))


def outside_window(tile, cfg, device=None):
    """bool [P,Q]: whether the position of the halo lies outside the window of the query."""
    numbers = lambda cut: torch.arange(cut.start, cut.stop, device=device)
    dy, dx = (numbers(halo)[:, None] - numbers(queries) for halo, queries in zip(tile.halo, tile.queries))
    dy, dx = dy[:, None, :, None], dx[None, :, None, :]
    if cfg.window == "square":
        outside = (dy.abs() > cfg.radius) | (dx.abs() > cfg.radius)
    elif cfg.window == "disc":
        outside = dy**2 + dx**2 >= cfg.radius**2
    else:
        outside = dy**2 + dx**2 > cfg.radius**2
    return outside.flatten(2).flatten(0, 1)


def tile_side(side, h, w, frames, device, cfg):
    """The wanted side of a tile in cells, or a smaller one where the tile has more scores than TILE_SCORES."""
    budget = TILE_SCORES.get(device, TILE_SCORES["cuda"])
    halo = lambda side: min(h, side + 2 * reach(cfg)) * min(w, side + 2 * reach(cfg))
    whole_reference = 0 if cfg.window_reference else h * w
    while side > 1 and max(frames * halo(side), whole_reference) * side**2 > budget:
        side -= 1
    return side


def cuts(length, side):
    """Slices that cut a length into parts of nearly the same size, `side` at most."""
    parts = -(-length // side)
    return [slice(length * i // parts, length * (i + 1) // parts) for i in range(parts)]


def on_all_cores(work, items, device):
    """Call work(queue) in one Python thread for each core; all threads take their items from one queue.

    Products this small run twice as fast, one on each core, as one after another on all cores by torch's own threads.
    """
    queue = iter(items)  # next() on a list's iterator is atomic
    threads = min(torch.get_num_threads(), len(items))
    if device.type != "cpu" or threads == 1:
        work(queue)
        return

    inference = torch.is_inference_mode_enabled()  # modes belong to a thread

    def alone():
        with torch.inference_mode(inference), torch.no_grad():
            work(queue)

    with one_core_threads(threads) as pool:
        for job in [pool.submit(alone) for _ in range(threads)]:
            job.result()
