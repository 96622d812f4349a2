"""Label propagation by the kernels of labelprop/triton_kernel.py: the tables they work from, and their launch.

Legend: D feature dimensions, h w cells of the feature grid, k = top_k.
"""

import itertools
import statistics
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from labelprop import triton_kernel, walk

CELLS, BLOCK = triton_kernel.CELLS.value, triton_kernel.BLOCK.value
SCRATCH = 2**26  # maxima in memory at a time, about


@dataclass(frozen=True)
class Frame:
    """Features as the kernels want them.

    full [h,w,D] fp32; half [h,w,D'] fp16, padded with zeros to a multiple of BLOCK; lost: length of the longest vector
    that rounding to half took from a cell, a tensor of one number.
    """

    full: Tensor
    half: Tensor
    lost: Tensor


@dataclass(frozen=True)
class Shape:
    """A tile of Q queries times a chunk of P cells, and how it is run."""

    Q: int
    P: int
    warps: int
    stages: int
    registers: int | None = None  # a thread's at most, where that puts two tiles on a multiprocessor


#: what _fastest chooses from, the safest first
SHAPES = (Shape(128, 128, 8, 3, 128), Shape(128, 128, 8, 4), Shape(64, 128, 4, 3), Shape(128, 256, 8, 3))


@dataclass(frozen=True)
class Plan:
    """A grid cut into tiles, as int32 tensors.

    queries [tiles,Q]: the cells of a tile, -1 behind them.  near [tiles,chunks*P/CELLS]: the groups of cells that its
    windows touch, one past the grid behind them; filled [tiles]: how many chunks that makes.
    """

    queries: Tensor
    near: Tensor
    filled: Tensor


@lru_cache
def obstacle(device):
    """Why the kernels cannot run on a device, or None."""
    from triton import knobs, runtime

    if device.type == "cpu":
        return None if knobs.runtime.interpret else "it needs a GPU, or Triton's interpreter (TRITON_INTERPRET=1)"
    if device.type != "cuda" or torch.version.cuda is None:
        return f"it needs an NVIDIA GPU, not {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):  # copies that the product need not wait for begin there
        return f"{torch.cuda.get_device_name(device)} is too old: its compute capability must be 8.0 or higher"
    try:
        runtime.driver.active.get_current_device()
    except Exception as error:  # whatever keeps it from starting, a missing C compiler for example
        return f"Triton does not start here: {error}"
    return None


def prepare(features_hwD, first):
    """Features of unit norm over D -> Frame."""
    full = features_hwD.float().contiguous()
    half = full.half()
    lost = (full - half).norm(dim=-1).amax()
    extra = -full.shape[-1] % BLOCK
    return Frame(full, F.pad(half, (0, extra)) if extra else half, lost)


@torch.no_grad()
def match(query, context, groups, cfg):
    """As walk.match, on frames from `prepare`."""
    hw = query.full.shape[0] * query.full.shape[1]
    scores, cells, _ = search(query, context, groups, cfg)
    return [
        (walk.weights_of(values, where // hw == 1, group.copies, cfg).T, where.T)
        for group, values, where in zip(groups, scores, cells)
    ]


def search(query, context, groups, cfg, shape=None):
    """The top_k candidates of every query cell: scores fp32 and cells int64, [groups,k,hw], sorted.

    Arguments as for match.  Cells are flat indices into the list of a group's reference, then its frames; missing ones
    score -inf.  The third result, int32 [groups,hw]: how many groups of cells were scored in fp32.
    """
    D, device = query.full.shape[-1], query.full.device
    context = context[len(context) - groups[0].frames :]
    frames = [query, *context, *(group.reference for group in groups)]
    own = [group.frames for group in groups]
    table = [[f.half.data_ptr() for f in frames], [f.full.data_ptr() for f in frames], own + [0] * (1 + len(context))]
    # Memory that is pinned: the host need not wait for the copy.
    table = torch.tensor(table, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    # What rounding took from two vectors (1% for norms that are not quite 1), and from the sums of their products.
    slack = 2.02 * torch.stack([f.lost for f in frames]).amax() + D * 2**-23
    work = (query, table, slack, len(context), len(groups), cfg)
    with torch.cuda.device_of(query.full):
        return _run(shape or _fastest(*work), *work)


def _run(shape, query, table, slack, frames, groups, cfg):
    (h, w, D), device = query.full.shape, query.full.device
    hw, (halves, fulls, own_frames), members = h * w, table, shape.P // CELLS
    plan = _plan(h, w, cfg, shape.Q, shape.P, device)
    near_slots, open_slots = (frames + groups, 0) if cfg.window_reference else (frames, groups)
    near_chunks, open_chunks = plan.near.shape[1] // members, -(-hw // shape.P) if open_slots else 0
    columns = near_slots * near_chunks + open_slots * open_chunks
    chunks = _power_of_2((open_chunks or near_chunks) + frames * near_chunks)
    step = max(1, min(len(plan.queries), SCRATCH // (shape.Q * columns * members)))
    tops = torch.empty(step * shape.Q, columns, device=device)
    maxima = torch.empty(step * shape.Q, columns, members, device=device)
    scores = torch.empty(groups, cfg.top_k, hw, device=device)
    cells = torch.empty(groups, cfg.top_k, hw, dtype=torch.long, device=device)
    visits = torch.empty(groups, hw, dtype=torch.int32, device=device)
    limit = cfg.radius if cfg.window == "square" else cfg.radius**2 - (cfg.window == "disc")
    same = {"Q": shape.Q, "P": shape.P, "ROUND": cfg.window != "square", "LIMIT": limit}
    for first in range(0, len(plan.queries), step):
        tiles = min(step, len(plan.queries) - first)
        triton_kernel.bound[(tiles * (near_chunks + open_chunks),)](
            halves, plan.queries, plan.near, plan.filled, maxima, tops,
            first, tiles, near_slots, open_slots, near_chunks, open_chunks, hw, w, D=query.half.shape[-1], **same,
            num_warps=shape.warps, num_stages=shape.stages, maxnreg=shape.registers,
        )  # fmt: skip
        triton_kernel.search[(tiles * shape.Q, groups)](
            fulls, plan.queries, plan.near, plan.filled, maxima, tops, own_frames, slack, scores, cells, visits,
            first, frames, open_slots, near_chunks, open_chunks, hw, w, D=D, **same,
            CHUNKS=chunks, BITS=max(8, (chunks * members - 1).bit_length()),
            TOP_K=cfg.top_k, K=_power_of_2(cfg.top_k), TAKE=4,
            # a warp a query, as many as fit, while what it keeps of the chunks leaves it the registers
            **({"num_warps": 1, "maxnreg": 128} if chunks <= 512 else {"num_warps": 4}),
        )  # fmt: skip
    return scores, cells, visits


def _power_of_2(n):
    return 1 << (n - 1).bit_length()


_fastest_known = {}


def _fastest(query, table, slack, frames, groups, cfg):
    """The shape that does this work soonest, tried out when the context is half full; until then the first."""
    key = (query.full.shape, query.full.device, cfg)
    if key not in _fastest_known:
        if query.full.device.type == "cpu" or 2 * frames < cfg.context:
            return SHAPES[0]
        from triton import OutOfResources

        times = {}
        for shape in SHAPES:
            with suppress(OutOfResources):  # the card has no room for it
                work = lambda shape=shape: _run(shape, query, table, slack, frames, groups, cfg)
                times[shape] = _milliseconds(work)
        _fastest_known[key] = min(times, key=times.get)
    return _fastest_known[key]


def _milliseconds(work, repeats=5):
    """The median time of several calls, by the GPU's clock, after two that do not count."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 3)]
    for mark in marks[:-1]:
        mark.record()
        work()
    marks[-1].record()
    marks[-1].synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in zip(marks[2:], marks[3:]))


@lru_cache(maxsize=64)
def _plan(h, w, cfg, Q, P, device):
    """The Plan of the tiles, of Q cells at most, that together have the fewest candidates."""
    cells = torch.arange(h * w).view(h, w)
    queries, near = [], []
    for tile in _tiles(h, w, cfg, Q):
        inside = ~walk.outside_window(tile, cfg).all(1)
        queries.append(cells[tile.area].flatten())
        near.append((cells[tile.halo].flatten()[inside] // CELLS).unique())
    chunks = [-(-len(groups) * CELLS // P) for groups in near]
    padded = lambda lists, size, value: torch.stack([F.pad(x, (0, size - len(x)), value=value) for x in lists])
    tables = padded(queries, Q, -1), padded(near, max(chunks) * P // CELLS, h * w), torch.tensor(chunks)
    return Plan(*(table.to(device, torch.int32) for table in tables))


def _tiles(h, w, cfg, Q):
    """Cuts the grid into tiles of Q cells at most, as high as makes the halos of all tiles together smallest."""
    length = lambda cut: cut[1] - cut[0]
    best = None
    for high in range(1, min(h, Q) + 1):
        rows, columns = walk.cuts(h, high), walk.cuts(w, min(w, Q // high))
        tiles = [walk.tile_at(r, c, h, w, cfg) for r, c in itertools.product(rows, columns)]
        area = sum(length(tile.halo_rows) * length(tile.halo_columns) for tile in tiles)
        if best is None or area < best[0]:
            best = area, tiles
    return best[1]
