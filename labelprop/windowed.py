"""Label propagation that runs anywhere: exact, in the precision of the features, without the dense affinity.

A tile's similarities to its halo are small enough to stay near the processor.  They take one product a frame, and the
selection has two steps: the k positions whose best similarity over all frames is highest contain the k best cells, so
the window is applied once per position, and only k positions are compared frame by frame.

Features lie channels last, [h,w,D]: the rows of a halo are then contiguous and no product needs a copy.
Legend: N frames, P positions of a halo, Q queries of a tile, D feature dimensions, k = top_k.
"""

import math
from functools import partial

import torch

from labelprop import walk


def prepare(features_hwD, first):
    """Frames need no preparation here."""
    return features_hwD


class Float32:
    """Scorer of labelprop/walk.py in the precision of the features.  query [h,w,D]; slots: frames scored at a time."""

    BY_COLUMN = False

    def __init__(self, query, slots, cfg):
        self.query, self.slots, self.cfg = query, slots, cfg
        self.memory = query.new_empty(0)

    @staticmethod
    def side(device, cfg):
        # Measured on two CPU cores: 8 for DUL's disc, 12 for INO's square.  A GPU wants fewer, larger products.
        if device != "cpu":
            return 16
        return 8 if walk.reach(cfg) <= 20 else 12

    def begin(self, tile):
        self.tile = tile
        self.queries_DQ = self.query[tile.queries].flatten(0, 1).T
        self.outside_PQ = walk.outside_window(tile, self.cfg, self.query.device)
        shape = self.slots, *tile.halo_shape, self.queries_DQ.shape[1]
        if self.memory.numel() < math.prod(shape):
            self.memory = self.query.new_empty(math.prod(shape))
        self.scores = self.memory[: math.prod(shape)].view(shape)

    def near(self, frames, slot):
        for scores, frame in zip(self.scores[slot:], frames):
            halo = frame[self.tile.halo]
            torch.bmm(halo, self.queries_DQ.expand(len(halo), -1, -1), out=scores)

    def best(self, frames, slot):
        chosen = [] if self.cfg.window_reference else [self._best_anywhere(frames[0])]
        if slot < self.slots:
            chosen.append(self._best_near(slot))
        if len(chosen) == 1:
            return chosen[0]
        values, cells = (torch.cat(parts) for parts in zip(*chosen))
        values, order = values.topk(min(self.cfg.top_k, len(values)), dim=0)
        return values, cells.gather(0, order)

    def _best_anywhere(self, reference):
        """The best cells of the whole reference; `_select` takes each of its rows for a frame."""
        h, w, _ = reference.shape
        scores = (reference.flatten(0, 1) @ self.queries_DQ).view(h, w, -1)
        values, y, x = _select(scores, None, self.cfg.top_k)
        return values, y * w + x

    def _best_near(self, slot):
        """The best cells of the halo in all slots from `slot` on."""
        h, w, _ = self.query.shape
        y0, x0 = (cut.start for cut in self.tile.halo)
        columns = self.tile.halo_shape[1]
        values, n, position = _select(self.scores[slot:].flatten(1, 2), self.outside_PQ, self.cfg.top_k)
        if not self.cfg.window_reference:
            n = n + 1  # the list begins with the reference, which has no slot
        y, x = y0 + position // columns, x0 + position % columns
        return values, (n * h + y) * w + x


#: the engine's match(query, context, groups, cfg), of frames [h,w,D]
match = partial(walk.match, Float32)


def _select(scores_NPQ, outside_PQ, k):
    """The k largest scores of each query inside its window: values, n and p, each [<=k,Q], largest first."""
    best = scores_NPQ.amax(0)
    if outside_PQ is not None:
        best.masked_fill_(outside_PQ, -torch.inf)
    best, position = best.topk(min(k, len(best)), dim=0)
    candidates = scores_NPQ.gather(1, position.expand(len(scores_NPQ), -1, -1))
    candidates = candidates.masked_fill_(best == -torch.inf, -torch.inf).flatten(0, 1)
    values, flat = candidates.topk(min(k, len(candidates)), dim=0)
    return values, flat // len(position), position.gather(0, flat % len(position))
