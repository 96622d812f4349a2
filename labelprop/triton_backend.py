"""Label propagation by the kernels of labelprop/triton_kernel.py: their tables and their launch.

Legend: D feature dimensions, h w cells of the feature grid, k = top_k.
"""

import itertools
import math
import statistics
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from core.schema import Propagation
from labelprop import triton_kernel, walk

CELLS, BLOCK = triton_kernel.CELLS.value, triton_kernel.BLOCK.value
SCRATCH = 2**26  # maxima that are in memory at a time, about


class Frame:
    """Features of unit norm over D in fp32 and in fp16.

    full [h,w,D]: fp32.  half [h,w,D']: fp16, padded with zeros to a multiple of BLOCK.  lost: the norm of the largest
    rounding error, full - half, of all cells; a tensor of one number.
    """

    def __init__(self, features_hwD: Tensor, first: "Frame | None"):
        self.full = features_hwD.float().contiguous()
        half = self.full.half()
        self.lost = (self.full - half).norm(dim=-1).amax()
        extra = -self.full.shape[-1] % BLOCK
        self.half = F.pad(half, (0, extra)) if extra else half


#: the engine's prepare(features, first)
prepare = Frame


@dataclass(frozen=True)
class Shape:
    """A tile of Q queries times a chunk of P cells, and how it is run."""

    Q: int
    P: int
    warps: int
    stages: int
    registers: int | None = None  # at most, for each thread; so few let a multiprocessor run two tiles at a time


#: the shapes that _fastest chooses from, the safest first
SHAPES = (Shape(128, 128, 8, 3, 128), Shape(128, 128, 8, 4), Shape(64, 128, 4, 3), Shape(128, 256, 8, 3))


class Plan:
    """The tiles of a grid as int32 tensors: Q cells at most each, cut so that all tiles together have few candidates.

    queries [tiles,Q]: the cells of a tile, filled up with -1.  near [tiles,chunks*P/CELLS]: the groups of CELLS cells
    that the windows of a tile touch, filled up with numbers past the grid.  filled [tiles]: how many chunks of a tile
    hold a group.
    """

    def __init__(self, h: int, w: int, cfg: Propagation, Q: int, P: int, device: torch.device):
        cells = torch.arange(h * w).view(h, w)
        queries, near = [], []
        for tile in _tiles(h, w, cfg, Q):
            inside = ~walk.outside_window(tile, cfg).all(1)
            queries.append(cells[tile.queries].flatten())
            near.append((cells[tile.halo].flatten()[inside] // CELLS).unique())
        chunks = [-(-len(groups) * CELLS // P) for groups in near]
        filled_up = lambda lists, size, value: torch.stack([F.pad(x, (0, size - len(x)), value=value) for x in lists])
        tables = filled_up(queries, Q, -1), filled_up(near, max(chunks) * P // CELLS, h * w), torch.tensor(chunks)
        self.queries, self.near, self.filled = (table.to(device, torch.int32) for table in tables)


_plan = lru_cache(maxsize=64)(Plan)


class Work:
    """The search for one frame.

    halves, fulls: memory addresses of the fp16 and of the fp32 features of the query, then of the context frames, then
    of each group's reference.  own_frames: how many of the last context frames each group has.  slack: the largest
    error of a score in fp16, a tensor of one number.  frames, groups: the number of context frames and of groups.
    """

    def __init__(self, query: Frame, context: list[Frame], groups: list[walk.Group], cfg: Propagation):
        self.query, self.cfg = query, cfg
        self.frames, self.groups = len(context), len(groups)
        D, device = query.full.shape[-1], query.full.device
        frames = [query, *context, *(group.reference for group in groups)]
        halves, fulls = ([getattr(frame, name).data_ptr() for frame in frames] for name in ("half", "full"))
        own_frames = [group.frames for group in groups]
        table = torch.tensor(
            [halves, fulls, own_frames + [0] * (len(frames) - len(groups))], pin_memory=device.type == "cuda"
        )
        # The table is in pinned memory: the host need not wait for the copy.
        self.halves, self.fulls, self.own_frames = table.to(device, non_blocking=True)
        # Rounding changes both vectors of a product (1% more for norms that are not quite 1), and the sums of products.
        self.slack = 2.02 * torch.stack([frame.lost for frame in frames]).amax() + D * 2**-23


@lru_cache
def obstacle(device):
    """Why the kernels cannot run on a device, or None."""
    from triton import knobs, runtime

    if device.type == "cpu":
        return None if knobs.runtime.interpret else "it needs a GPU, or Triton's interpreter (TRITON_INTERPRET=1)"
    if device.type != "cuda" or torch.version.cuda is None:
        return f"it needs an NVIDIA GPU, not {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):  # older GPUs have no asynchronous copies
        return f"{torch.cuda.get_device_name(device)} is too old: its compute capability must be 8.0 or higher"
    try:
        runtime.driver.active.get_current_device()
    except Exception as error:  # anything may keep Triton from starting, a missing C compiler for example
        return f"Triton does not start here: {error}"
    return None


@torch.no_grad()
def match(query, context, groups, cfg):
    """As walk.match, for frames from `prepare`."""
    hw = query.full.shape[0] * query.full.shape[1]
    scores, cells, _ = search(query, context, groups, cfg)
    return [
        (walk.weights_of(values, where // hw == 1, group.copies, cfg).T, where.T)
        for group, values, where in zip(groups, scores, cells)
    ]


def search(query, context, groups, cfg, shape=None):
    """The top_k candidates of every query cell: scores fp32 and cells int64, both [groups,k,hw], best first.

    The arguments are those of match; shape: None = the fastest.  Cells are flat indices into the list of a group's
    reference, then its context frames; missing candidates score -inf.  The third result, int32 [groups,hw], is how
    many groups of cells were scored in fp32.
    """
    work = Work(query, context[len(context) - groups[0].frames :], groups, cfg)
    with torch.cuda.device_of(query.full):
        return _run(shape or _fastest(work), work)


def _run(shape, work):
    """The three results of search, computed with one shape for as many tiles at a time as SCRATCH has room for."""
    from triton import next_power_of_2

    (h, w, D), cfg, device = work.query.full.shape, work.cfg, work.query.full.device
    plan = _plan(h, w, cfg, shape.Q, shape.P, device)
    # A slot is a context frame or a group's reference.  Near slots are searched inside the window only, open slots
    # everywhere.  A query has a column of maxima for each chunk of each slot; the columns of open slots come last.
    near_chunks, open_chunks = plan.near.shape[1] * CELLS // shape.P, -(-h * w // shape.P)
    near_slots, open_slots = work.frames, work.groups
    if cfg.window_reference:
        near_slots, open_slots, open_chunks = work.frames + work.groups, 0, 0
    columns = near_slots * near_chunks + open_slots * open_chunks
    chunks = next_power_of_2((open_chunks or near_chunks) + work.frames * near_chunks)
    members = shape.P // CELLS
    step = max(1, min(len(plan.queries), SCRATCH // (shape.Q * columns * members)))
    tops = torch.empty(step * shape.Q, columns, device=device)
    maxima = torch.empty(step * shape.Q, columns, members, device=device)
    tables = plan.queries, plan.near, plan.filled, maxima, tops
    scores = torch.empty(work.groups, cfg.top_k, h * w, device=device)
    found = scores, torch.empty_like(scores, dtype=torch.long), torch.empty_like(scores[:, 0], dtype=torch.int32)
    # LIMIT: the largest distance inside the window; of ROUND windows, the squared distance
    limit = {"square": cfg.radius, "disc": cfg.radius**2 - 1, "closed_disc": cfg.radius**2}[cfg.window]
    constants = {"Q": shape.Q, "P": shape.P, "ROUND": cfg.window != "square", "LIMIT": limit}
    for first in range(0, len(plan.queries), step):
        tiles = min(step, len(plan.queries) - first)
        triton_kernel.bound[(tiles * (near_chunks + open_chunks),)](
            work.halves, *tables, first, tiles, near_slots, open_slots, near_chunks, open_chunks, h * w, w,
            D=work.query.half.shape[-1], **constants,
            num_warps=shape.warps, num_stages=shape.stages, maxnreg=shape.registers,
        )  # fmt: skip
        triton_kernel.search[(tiles * shape.Q, work.groups)](
            work.fulls, *tables, work.own_frames, work.slack, *found,
            first, work.frames, open_slots, near_chunks, open_chunks, h * w, w,
            D=D, **constants, CHUNKS=chunks, BITS=max(8, (chunks * members - 1).bit_length()),
            TOP_K=cfg.top_k, K=next_power_of_2(cfg.top_k), TAKE=4,
            # One warp a query, with so few registers that many warps fit.  The maxima of many chunks need four warps.
            **({"num_warps": 1, "maxnreg": 128} if chunks <= 512 else {"num_warps": 4}),
        )  # fmt: skip
    return found


_fastest_known: dict = {}


def _fastest(work):
    """The fastest shape for this work, measured once the context is half full; until then the first shape."""
    key = work.query.full.shape, work.query.full.device, work.cfg
    if key not in _fastest_known:
        if work.query.full.device.type == "cpu" or 2 * work.frames < work.cfg.context:
            return SHAPES[0]
        from triton import OutOfResources

        times = {}
        for shape in SHAPES:
            with suppress(OutOfResources):  # the GPU has too little shared memory for this shape
                times[shape] = _milliseconds(partial(_run, shape, work))
        _fastest_known[key] = min(times, key=times.get)
    return _fastest_known[key]


def _milliseconds(work):
    """The median time of five calls, by the GPU's clock, after two calls that do not count."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2 + 5 + 1)]
    for mark in marks[:-1]:
        mark.record()
        work()
    marks[-1].record()
    marks[-1].synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in zip(marks[2:], marks[3:]))


def _tiles(h, w, cfg, Q):
    """Cut the grid into tiles of Q cells at most; their height is the one for which all halos together are smallest."""

    def tiles(high):
        rows, columns = walk.cuts(h, high), walk.cuts(w, min(w, Q // high))
        return [walk.tile_at(r, c, h, w, cfg) for r, c in itertools.product(rows, columns)]

    area = lambda tiles: sum(math.prod(tile.halo_shape) for tile in tiles)
    return min(map(tiles, range(1, min(h, Q) + 1)), key=area)
