"""Label propagation on CPUs that multiply 8-bit integers fast: 8-bit products find candidates, float32 chooses.

The features of a frame are rounded to 8 bits once.  For each tile, an integer product gives the rounded similarities
of its queries to all cells of its halo in all frames, and the best few cells of each query are computed again in
float32.  The largest possible error of a rounded similarity is known; where it could have changed the choice of a
query, every cell in doubt is computed in float32.  The result can differ from that of float32 in ties, and where an
error exceeds its bound, which has a probability of 10^-15 for a pair of cells.

Two steps before rounding make the error small and its size known.  The mean feature of the video's first frame is
subtracted: features share most of it, and the small remainder is rounded finely.  A random rotation mixes the
channels: it changes no similarity, and makes the rounding errors of two cells independent.  The error of a product is
then a sum of many small random terms, normal with a known sigma; DOUBT sigmas are allowed for.

Legend: N frames, A x B positions (rows and columns of a halo), Q queries of a tile, D feature dimensions,
C chosen candidates, k = top_k.  A score is a rounded similarity in units of the query's scale.
"""

import math
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from labelprop import walk

#: the bound of the error, in sigmas; the error of a pair exceeds it with a probability of 10^-15
DOUBT = 8.0
#: how many more than top_k: positions whose scores are compared frame by frame, and candidates computed in float32
POSITIONS, CANDIDATES = 22, 40
#: numbers that are computed at a time, one megabyte
IN_CACHE = 2**18
#: consecutive cells of a whole reference frame that count as one position
TOGETHER = 8


class Frame:
    """The features of a frame, and the same features rounded to 8 bits.

    features [h,w,D]: float32.  mean [D]: the mean feature of the video's first frame.  codes int8 [h,w,D], scales
    [h,w,1]: codes * scales approximate the features after the mean is subtracted and the channels are rotated; norms
    [h,w] are the lengths of these vectors.  offsets [h,w,1]: dot products of the features and the mean.  largest_scale,
    largest_norm: over all cells.  first: the Frame of the video's first frame; None for that frame itself.
    """

    def __init__(self, features_hwD: Tensor, first: "Frame | None"):
        self.features = features_hwD.float()
        self.shape, self.dtype, self.device = self.features.shape, self.features.dtype, self.features.device
        self.mean: Tensor = first.mean if first else self.features.mean((0, 1))
        centred = (self.features - self.mean) @ random_rotation(self.shape[2])
        self.scales = centred.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        self.codes = (centred / self.scales).round_().to(torch.int8)
        self.offsets = (self.features @ self.mean)[..., None]
        self.norms = centred.norm(dim=-1)
        self.largest_scale, self.largest_norm = float(self.scales.max()), float(self.norms.max())
        self.keys = self.codes, self.scales, self.offsets


#: the engine's prepare(features, first)
prepare = Frame


@lru_cache
def random_rotation(D):
    """An orthogonal matrix [D,D], the same every time."""
    rng = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(D, D, generator=rng))[0]


class Queries:
    """The queries of a tile: codes int8 [D,Q], features [D,Q], scale, norm and shift [Q].

    score * scale + shift approximates a similarity.
    """

    def __init__(self, frame, tile):
        cut = lambda values: values[tile.queries].flatten(0, 1)
        self.codes, self.features = cut(frame.codes).T, cut(frame.features).T
        self.scale, self.norm = cut(frame.scales)[:, 0], cut(frame.norms)
        self.shift = cut(frame.offsets)[:, 0] - frame.mean.square().sum()

    def doubt(self, frames):
        """The largest error [Q] of a rounded similarity to any cell of these frames."""
        key_scale = max(frame.largest_scale for frame in frames)
        key_norm = max(frame.largest_norm for frame in frames)
        # Both vectors' roundings are uniform over one step: variance step^2 / 12 a channel.
        both = len(self.codes) * (self.scale * key_scale) ** 2 / 144
        variance = (self.scale * key_norm) ** 2 / 12 + (key_scale * self.norm) ** 2 / 12 + both
        return DOUBT * variance.sqrt() + 1e-6


@dataclass(frozen=True)
class Source:
    """Scores [A,N,B,Q] from which candidates are selected; only the frames from `first` on count.

    cells [A,N-first,B]: flat indices into a group's list of frames; the cells of one n belong to one frame.
    outside bool [A*B,Q]: whether a position is outside the window of a query; None: no window.
    """

    scores: Tensor
    first: int
    cells: Tensor
    outside: Tensor | None


class Int8:
    """Scorer of labelprop/walk.py with rounded scores; `best` computes every cell in doubt again in float32."""

    BY_COLUMN = True  # all tiles of a column share the frames that `_side_by_side` lays out

    def __init__(self, query, slots, cfg):
        self.query, self.slots, self.cfg = query, slots, cfg
        self.memory = {}  # {name: flat tensor}, see _room
        self.columns, self.bands = None, {}  # a halo's columns (a slice), and the keys of frames there

    @staticmethod
    def side(device, cfg):
        return 12

    def begin(self, tile):
        self.tile = tile
        self.queries = Queries(self.query, tile)
        self.outside = walk.outside_window(tile, self.cfg)
        if self.columns != tile.halo[1]:
            self.columns, self.bands = tile.halo[1], {}
        rows, columns = tile.halo_shape
        self.scores = self._room("near", (rows, self.slots, columns, len(self.queries.scale)))

    def near(self, frames, slot):
        if frames:
            keys = [part[self.tile.halo[0]] for part in self._side_by_side(frames)]
            self._score(keys, self.scores[:, slot : slot + len(frames)])

    def best(self, frames, slot):
        sources = [] if self.cfg.window_reference else [self._whole(frames[0])]
        if slot < self.slots:
            sources.append(Source(self.scores, slot, self._cells(self.slots - slot), self.outside))
        features = [frame.features.flatten(0, 1) for frame in frames]
        return select(sources, self.queries, self.queries.doubt(frames), features, self.cfg.top_k)

    def _side_by_side(self, frames):
        """Codes [h,N,B,D], scales and offsets [h,N,B,1] of the halo's columns in consecutive frames of one video.

        The frames lie side by side, so that any rows of the halo are one matrix.
        """
        which = id(frames[0]), len(frames)
        if which not in self.bands:
            parts = zip(*(frame.keys for frame in frames))
            self.bands[which] = [torch.stack([each[:, self.columns] for each in part], dim=1) for part in parts]
        return self.bands[which]

    def _cells(self, N):
        """Flat indices [A,N,B] of the halo's cells in the last N frames of a group's list."""
        h, w, _ = self.query.shape
        first = 0 if self.cfg.window_reference else 1
        y, x = (torch.arange(cut.start, cut.stop) for cut in self.tile.halo)
        return (torch.arange(first, first + N)[:, None] * h + y[:, None, None]) * w + x

    def _whole(self, frame):
        """A whole frame as a Source: TOGETHER consecutive cells are one position, as if in TOGETHER frames."""
        keys = [part.flatten(0, 1)[:, None, None] for part in frame.keys]
        count, blocks = len(keys[0]), -(-len(keys[0]) // TOGETHER)
        scores = self._room("whole", (blocks * TOGETHER, 1, 1, len(self.queries.scale)))
        self._score(keys, scores[:count])
        scores[count:] = -torch.inf  # the last block may reach past the frame
        cells = torch.arange(len(scores)).clamp(max=count - 1)
        return Source(scores.view(blocks, TOGETHER, 1, -1), 0, cells.view(blocks, TOGETHER, 1), None)

    def _score(self, keys, out):
        """Write the scores of the queries with keys to `out` [A,N,B,Q].

        keys: codes [A,N,B,D], scales [A,N,B,1] and offsets [A,N,B,1].
        """
        A, N, B, Q = out.shape
        inverse = 1 / self.queries.scale
        # A few rows at a time: the products are still in the core's cache when they are scaled.
        rows = max(1, IN_CACHE // (N * B * Q))
        for first in range(0, A, rows):
            codes, scales, offsets, scores = (part[first : first + rows] for part in (*keys, out))
            products = self._room("products", scores.shape, torch.int32)
            torch._int_mm(codes.flatten(0, 2), self.queries.codes, out=products.view(-1, Q))
            torch.mul(products, scales, out=scores).addcmul_(offsets, inverse)

    def _room(self, name, shape, dtype=torch.float32):
        """An uninitialised tensor of a shape, in memory that is kept under a name from tile to tile."""
        size = math.prod(shape)
        if name not in self.memory or self.memory[name].numel() < size:
            self.memory[name] = torch.empty(size, dtype=dtype)
        return self.memory[name][:size].view(shape)


#: the engine's match(query, context, groups, cfg), of Frames
match = partial(walk.match, Int8)


def select(sources, queries, doubt, frames, k):
    """The k most similar cells of each query: similarities in float32 and cells, both [<=k,Q], best first.

    doubt [Q]: as from Queries.doubt.  frames: the features [hw,D] of each frame; cells are flat indices into this list.
    """
    values, cells, bounds = zip(*(_shortlist(source, k + POSITIONS) for source in sources))
    values, cells = torch.cat(values), torch.cat(cells)
    values, order, bound = _largest(values, k + CANDIDATES)
    cells = cells.gather(0, order)
    exact = _exact(cells, queries, frames).masked_fill_(values == -torch.inf, -torch.inf)
    exact, order = exact.topk(min(k, len(exact)), dim=0)
    cells = cells.gather(0, order)
    # The highest similarity that a cell may have which was not computed in float32.
    bound = torch.stack([bound, *bounds]).amax(0) * queries.scale + queries.shift + doubt
    unsure = (bound > exact[-1]).nonzero()[:, 0]
    if len(unsure):
        least = (exact[-1] - queries.shift - doubt) / queries.scale  # a cell of a lower score is not among the k best
        exact[:, unsure], cells[:, unsure] = _all_in_doubt(sources, queries, frames, least, unsure, k)
    return exact, cells


def _largest(values, count):
    """The largest `count` values of each column, their rows, and the largest of the other values (-inf: none)."""
    best, row = values.topk(min(count + 1, len(values)), dim=0)
    if len(values) <= count:
        return best, row, values.new_full(values.shape[1:], -torch.inf)
    return best[:-1], row[:-1], best[-1]


def _shortlist(source, count):
    """The scores of all frames at the best positions of each query, and the best score elsewhere.

    A position counts as its best frame.  Returns scores and cells at `count` positions, both [count*N,Q], and the best
    score at the other positions [Q].
    """
    A, N, B, Q = source.scores.shape
    best = source.scores[:, source.first :].amax(1).flatten(0, 1)
    if source.outside is not None:
        best.masked_fill_(source.outside, -torch.inf)
    best, position, bound = _largest(best, count)
    row, column = position // B, position % B
    n = torch.arange(N - source.first)[:, None, None]
    place = (row * N + source.first + n) * B + column
    values = source.scores.flatten().take(place * Q + torch.arange(Q))
    values = values.masked_fill_(best == -torch.inf, -torch.inf)
    cells = source.cells.flatten().take((row * len(n) + n) * B + column)
    return values.flatten(0, 1), cells.flatten(0, 1), bound


def _exact(cells, queries, frames):
    """Similarities [C,Q] in float32 of each query to its cells [C,Q]."""
    # Queries of a tile mostly want the same cells: each cell is fetched from its frame once.
    wanted, where = cells.unique(return_inverse=True)
    size = len(frames[0])
    edges = torch.searchsorted(wanted, torch.arange(len(frames) + 1) * size).tolist()
    keys = queries.features.new_empty(len(wanted), len(queries.features))
    for n, (a, b) in enumerate(zip(edges, edges[1:])):
        if a < b:
            torch.index_select(frames[n], 0, wanted[a:b] - n * size, out=keys[a:b])
    # A few queries at a time, so that their rows are still in the core's cache when they are multiplied.
    C, D = len(cells), len(queries.features)
    some, products = max(1, IN_CACHE // (C * D)), []
    for places, features in zip(where.T.split(some), queries.features.T.split(some)):
        rows = keys.index_select(0, places.flatten()).view(-1, C, D)
        products.append(torch.bmm(rows, features[..., None])[..., 0])
    return torch.cat(products).T.contiguous()


def _all_in_doubt(sources, queries, frames, least, unsure, k):
    """The k best cells of the queries `unsure` (indices), found among all cells whose score is `least` [Q] or more.

    Returns similarities in float32 and cells, both [k,len(unsure)].
    """
    features, size, least = queries.features[:, unsure], len(frames[0]), least[unsure]
    values, cells = [], []
    for source in sources:
        wanted = source.scores[:, source.first :].index_select(3, unsure) >= least
        if source.outside is not None:
            inside = ~source.outside.index_select(1, unsure)
            wanted &= inside.view(len(wanted), 1, -1, len(unsure))
        by_any = wanted.any(3)  # a cell that one of the queries wants is computed for all of them
        for n in range(wanted.shape[1]):
            chosen = by_any[:, n]
            cell = source.cells[:, n][chosen]
            keys = frames[source.cells[0, n, 0] // size].index_select(0, cell % size)
            values.append((keys @ features).masked_fill_(~wanted[:, n][chosen], -torch.inf))
            cells.append(cell)
    values, row = torch.cat(values).topk(k, dim=0)
    return values, torch.cat(cells)[row]
