"""Label propagation on CPUs that multiply 8-bit integers fast: they find the candidates, float32 decides.

Frames are rounded to 8 bits once.  Per tile, one integer product tells roughly how similar all cells of its halo
are in all frames; the best few of each query are computed again from the features.  How far the rounded
similarity may be off is known, so a query whose choice it could have changed is recognised, and for those every
candidate in doubt is computed.  The result is that of the float32 computation, but for one pair in
10^15 and for ties.

Before rounding, the mean feature of the video's first frame is taken away (similar features have most in
common; a small remainder is rounded finely) and channels are mixed by a random rotation, which changes no
similarity, and after which the roundings of a pair of cells are independent of them and of each other: the error
of their product is then a sum of small random terms, normal with a known sigma, and DOUBT sigmas are allowed for.

Legend: N frames, A x B positions, R rows of a product, Q queries of a tile, F unsure ones, D feature dimensions,
C chosen candidates, k = top_k.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from labelprop import windowed

#: sigmas of the rounding error that count as possible: beyond them lies one pair in 10^15
DOUBT = 8.0
#: positions, and candidates in them, that are looked at more closely, beyond top_k
POSITIONS, CANDIDATES = 22, 40
#: queries along one side of a tile, where memory allows
SIDE = 12
#: numbers that are computed at a time, one megabyte
IN_CACHE = 2**18
#: cells of an open reference that are looked at together
TOGETHER = 8


@dataclass(frozen=True)
class Basis:
    """What is done to the features of a video before rounding: mean [D] taken away, rotation [D,D]."""

    mean: Tensor
    rotation: Tensor


@dataclass(frozen=True)
class Frame:
    """One frame.  features [h,w,D].

    codes int8 [h,w,D] * scales [h,w,1] are the features in the basis, nearly; norms [h,w,1] their lengths;
    offsets [h,w,1] the products with the mean.  basis: that of the video.
    """

    features: Tensor
    codes: Tensor
    scales: Tensor
    norms: Tensor
    offsets: Tensor
    basis: Basis

    @property
    def shape(self):
        return self.features.shape


def prepare(features_hwD, first):
    """The frame, rounded in the basis of the video's first frame."""
    features = features_hwD.float()
    basis = first.basis if first else Basis(features.mean((0, 1)), random_rotation(features.shape[2]))
    centred = (features - basis.mean) @ basis.rotation
    scales = centred.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    codes = (centred / scales).round_().to(torch.int8)
    offsets = (features @ basis.mean)[..., None]
    return Frame(features, codes, scales, centred.norm(dim=-1, keepdim=True), offsets, basis)


@lru_cache
def random_rotation(D):
    """An orthogonal matrix [D,D], the same every time."""
    rng = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(D, D, generator=rng))[0]


@dataclass(frozen=True)
class Tile:
    """The queries of a tile, flat: codes int8 [D,Q], scale, features [D,Q].

    shift, doubt [Q]: similarity = score * scale + shift, give or take doubt.
    """

    codes: Tensor
    features: Tensor
    scale: Tensor
    shift: Tensor
    doubt: Tensor


@dataclass(frozen=True)
class Scores:
    """Rounded similarities, in units of each query's scale: values [A,N,B,Q].

    A, B: positions; N: the cells there that are looked at together.  cells [A,N,B]: flat indices into the list of
    frames.  outside bool [A*B,Q]: positions beyond the window; None: none is.
    """

    values: Tensor
    cells: Tensor
    outside: Tensor | None


@torch.no_grad()
def match(query, context, groups, cfg):
    """The top_k candidates of every query cell and their weights, for every group; as windowed.match, of Frames."""
    h, w, _ = query.shape
    context = context[len(context) - groups[0].frames :]
    found = [(torch.zeros(h, w, cfg.top_k), torch.zeros(h, w, cfg.top_k, dtype=torch.long)) for _ in groups]
    # Windowed references take slots before the context's.
    slots = [*(group.reference for group in groups if cfg.window_reference), *context]
    frames = [*context, *(group.reference for group in groups)]
    widest = [max(float(getattr(frame, name).max()) for frame in frames) for name in ("scales", "norms")]
    reach = windowed.reach(cfg)
    side = windowed.tile_side(SIDE, h, w, max(1, len(slots)), "cpu", cfg)

    def work(queue):
        scratch = {}
        for left, right in queue:
            columns = max(0, left - reach), min(w, right + reach)
            band = _stacked(slots, columns) if slots else None
            for top, bottom in windowed.cuts(h, side):
                area = (top, bottom), (left, right)
                rows = max(0, top - reach), min(h, bottom + reach)
                tile = _tile(query, area, widest)
                halo = _halo(band, tile, rows, scratch) if slots else None
                outside = windowed.outside_window(area, rows, columns, cfg)
                for g, group in enumerate(groups):
                    sources = []
                    if not cfg.window_reference:
                        sources.append(_open_reference(group.reference, tile, scratch))
                    chosen = [g] * cfg.window_reference + list(range(len(slots) - group.frames, len(slots)))
                    if chosen:
                        values = halo if len(chosen) == len(slots) else halo[:, chosen]
                        cells = _cells(len(chosen), rows, columns, h, w, first=0 if cfg.window_reference else 1)
                        sources.append(Scores(values, cells, outside))
                    listed = [group.reference, *context[len(context) - group.frames :]]
                    best, cell = _select(sources, tile, [frame.features.flatten(0, 1) for frame in listed], cfg.top_k)
                    weights = windowed.weights_of(best, cell // (h * w) == 1, group.copies, cfg)
                    for out, values in zip(found[g], (weights, cell)):
                        shape = (bottom - top, right - left, -1)
                        out[top:bottom, left:right, : len(values)] = values.T.reshape(shape)

    windowed.on_all_cores(work, windowed.cuts(w, side), query.features.device)
    return [(weights.flatten(0, 1), cells.flatten(0, 1)) for weights, cells in found]


def _tile(query, area, widest):
    """The queries of an area ((top, bottom), (left, right)); widest: largest scale and norm of any key."""
    (top, bottom), (left, right) = area
    cut = lambda values: values[top:bottom, left:right].flatten(0, 1)
    scale, norm = cut(query.scales)[:, 0], cut(query.norms)[:, 0]
    key_scale, key_norm = widest
    D = query.shape[2]
    # Both vectors' roundings are uniform over one step: variance step^2 / 12 a channel.
    variance = (scale * key_norm) ** 2 / 12 + (key_scale * norm) ** 2 / 12 + D * (scale * key_scale) ** 2 / 144
    shift = cut(query.offsets)[:, 0] - query.basis.mean.square().sum()
    return Tile(cut(query.codes).T, cut(query.features).T, scale, shift, DOUBT * variance.sqrt() + 1e-6)


def _stacked(slots, columns):
    """Columns of all frames side by side, so that any rows of them are one matrix: codes, scales, offsets [h,N,B,-]."""
    left, right = columns
    names = "codes", "scales", "offsets"
    return [torch.stack([getattr(frame, name)[:, left:right] for frame in slots], dim=1) for name in names]


def _halo(band, tile, rows, scratch):
    """Scores of some rows of a band [A,N,B,Q]."""
    codes, scales, offsets = (part[slice(*rows)] for part in band)
    parts = (part.flatten(0, 2) for part in (codes, scales, offsets))
    return _product(*parts, tile, scratch, "halo").view(*codes.shape[:3], -1)


def _open_reference(frame, tile, scratch):
    """Scores of a whole frame, a few cells in a row looked at together."""
    parts = [part.flatten(0, 1) for part in (frame.codes, frame.scales, frame.offsets)]
    scores = _product(*parts, tile, scratch, "open", spare=-len(parts[0]) % TOGETHER)
    blocks = len(scores) // TOGETHER
    cells = torch.arange(len(scores)).view(blocks, TOGETHER, 1).clamp(max=len(parts[0]) - 1)
    return Scores(scores.view(blocks, TOGETHER, 1, -1), cells, None)


def _product(codes, scales, offsets, tile, scratch, name, spare=0):
    """Scores of keys codes [R,D], scales and offsets [R,1], with a tile's queries [R+spare,Q]; spare rows are -inf."""
    R, Q = len(codes), tile.codes.shape[1]
    whole = _grown(scratch, "whole", IN_CACHE, torch.int32)
    scores = _grown(scratch, name, (R + spare) * Q, torch.float32).view(-1, Q)
    # A few rows at a time: what the product writes is still in the core's cache when it is scaled.
    some = max(1, IN_CACHE // Q)
    for rows in (slice(first, min(first + some, R)) for first in range(0, R, some)):
        part = whole[: (rows.stop - rows.start) * Q].view(-1, Q)
        torch._int_mm(codes[rows], tile.codes, out=part)
        torch.mul(part, scales[rows], out=scores[rows]).addr_(offsets[rows, 0], 1 / tile.scale)
    scores[R:] = -torch.inf
    return scores


def _grown(scratch, name, size, dtype):
    """Memory for `size` numbers, kept from tile to tile."""
    if name not in scratch or scratch[name].numel() < size:
        scratch[name] = torch.empty(size, dtype=dtype)
    return scratch[name][:size]


def _cells(N, rows, columns, h, w, first):
    """Flat indices [A,N,B] of the cells of a halo in frames first, first+1, ... of the list."""
    y, x = torch.arange(*rows)[:, None, None], torch.arange(*columns)
    return (torch.arange(first, first + N)[:, None] * h + y) * w + x


def _select(sources, tile, frames, k):
    """The k most similar cells of each query: similarities in float32 and cells, [<=k,Q], sorted.

    frames: features [hw,D] of the list that cells are indices of.
    """
    shortlists = [_shortlist(source, k + POSITIONS) for source in sources]
    values, cells, bounds = zip(*shortlists)
    values, cells = torch.cat(values), torch.cat(cells)
    values, order, bound = _largest(values, k + CANDIDATES)
    cells = cells.gather(0, order)
    exact = _exact(cells, tile, frames).masked_fill_(values == -torch.inf, -torch.inf)
    exact, order = exact.topk(min(k, len(exact)), dim=0)
    cells = cells.gather(0, order)
    bound = torch.stack([bound, *bounds]).amax(0) * tile.scale + tile.shift + tile.doubt
    unsure = (bound > exact[-1]).nonzero()[:, 0]
    if len(unsure):
        exact[:, unsure], cells[:, unsure] = _all_in_doubt(sources, tile, frames, exact[-1], unsure, k)
    return exact, cells


def _largest(values, count):
    """The largest `count` of each column of [R,Q], their rows, and the largest of those left out (-inf: none)."""
    best, row = values.topk(min(count + 1, len(values)), dim=0)
    if len(values) <= count:
        return best, row, values.new_full(values.shape[1:], -torch.inf)
    return best[:-1], row[:-1], best[-1]


def _shortlist(source, count):
    """Scores and cells at the `count` best positions, [R,Q], and the best of all other positions [Q]."""
    A, N, B, Q = source.values.shape
    best = source.values.amax(1).flatten(0, 1)
    if source.outside is not None:
        best.masked_fill_(source.outside, -torch.inf)
    best, position, bound = _largest(best, count)
    place = (position // B * N * B + position % B) + torch.arange(0, N * B, B)[:, None, None]
    values = source.values.flatten().take(place * Q + torch.arange(Q))
    values = values.masked_fill_(best == -torch.inf, -torch.inf)
    return values.flatten(0, 1), source.cells.flatten().take(place).flatten(0, 1), bound


def _exact(cells, tile, frames):
    """Similarities in float32 of the queries with their cells [C,Q]."""
    # Queries of a tile mostly want the same cells: each is fetched from its frame once.
    wanted, where = cells.unique(return_inverse=True)
    size = len(frames[0])
    edges = torch.searchsorted(wanted, torch.arange(len(frames) + 1) * size).tolist()
    keys = tile.features.new_empty(len(wanted), len(tile.features))
    for n, (a, b) in enumerate(zip(edges, edges[1:])):
        if a < b:
            torch.index_select(frames[n], 0, wanted[a:b] - n * size, out=keys[a:b])
    # A few queries at a time, so that their rows are still in the core's cache when they are multiplied.
    C, D = len(cells), len(tile.features)
    some, products = max(1, IN_CACHE // (C * D)), []
    for places, queries in zip(where.T.split(some), tile.features.T.split(some)):
        rows = keys.index_select(0, places.flatten()).view(-1, C, D)
        products.append(torch.bmm(rows, queries[..., None])[..., 0])
    return torch.cat(products).T.contiguous()


def _all_in_doubt(sources, tile, frames, least, unsure, k):
    """For the queries `unsure`, everything that may be as similar as `least`, in float32.  Returns [k,F] twice."""
    queries, size = tile.features[:, unsure], len(frames[0])
    least = ((least - tile.shift - tile.doubt) / tile.scale)[unsure]
    values, cells = [], []
    for source in sources:
        wanted = source.values.index_select(3, unsure) >= least
        if source.outside is not None:
            inside = ~source.outside.index_select(1, unsure)
            wanted &= inside.view(len(wanted), 1, -1, len(unsure))
        rows = wanted.any(3)
        for n in range(wanted.shape[1]):  # all cells of one n are of one frame
            cell = source.cells[:, n][rows[:, n]]
            keys = frames[source.cells[0, n, 0] // size].index_select(0, cell % size)
            values.append((keys @ queries).masked_fill_(~wanted[:, n][rows[:, n]], -torch.inf))
            cells.append(cell)
    values, row = torch.cat(values).topk(k, dim=0)
    return values, torch.cat(cells)[row]
