"""The two GPU kernels of label propagation: fp16 products find candidates, fp32 chooses.  The result is exact.

The kernel `bound` computes the scores of tiles of queries and the cells of all frames in fp16.  CELLS neighbouring
cells are a group.  `bound` stores only the largest score of each group, a quarter of the affinity.
The kernel `search` visits the groups of one query, the one with the largest score first, and computes the scores of
their cells again in fp32.  An fp16 score is wrong by `slack` at most.  So the search ends when no remaining group can
hold a cell that is better than the k-th best.  Most queries need little more than k groups.  A query whose scores
differ by less than the slack needs more, in the worst case all of them.  The host never waits.

Legend: D feature dimensions, h w cells of the feature grid.  A slot is a context frame or a reference.  A chunk is P
cells of one slot, which one product takes together; its groups have consecutive cells of the grid, read row by row.
labelprop/triton_backend.py makes the tables of queries and groups.
"""

import triton
import triton.language as tl

CELLS = tl.constexpr(4)  # in a group; smaller groups: more maxima are written, larger ones: more cells computed again
BLOCK = tl.constexpr(64)  # features multiplied at a time; fp16 features are padded to a multiple of it
OUTSIDE = tl.constexpr(-4.0)  # the score of a group without a candidate
LEAST = tl.constexpr(-2.0)  # lower than every real score
NONE = tl.constexpr(-(2**31))  # lower than every real rank and key
#: arguments that change from frame to frame; Triton must not compile the kernels again for new values
SIZES = ["first_tile", "tiles", "frames", "near_slots", "open_slots", "near_chunks", "open_chunks", "hw", "w"]
ADDRESSES = ["halves", "fulls", "own_frames"]


@triton.jit
def _rank(score):
    """fp32 -> int32 in the same order: a GPU finds the largest integer of a warp in one instruction."""
    bits = score.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _score(rank):
    """int32 from `_rank` -> the fp32 score."""
    return (rank ^ ((rank >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _inside(query, cell, hw, w, ROUND: tl.constexpr, LIMIT: tl.constexpr):
    """Whether cells lie on the grid and inside the queries' window.  query, cell: flat indices, broadcast."""
    dy, dx = query // w - cell // w, query % w - cell % w
    distance = dy * dy + dx * dx if ROUND else tl.maximum(tl.abs(dy), tl.abs(dx))
    return (cell < hw) & (distance <= LIMIT)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=ADDRESSES)
def bound(
    halves, queries, near, filled, maxima, tops,
    first_tile, tiles, near_slots, open_slots, near_chunks, open_chunks, hw, w,
    D: tl.constexpr, Q: tl.constexpr, P: tl.constexpr, ROUND: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """The largest scores of one chunk for one tile of queries, in every slot.

    Near slots are searched inside the window only, open slots everywhere.  halves: addresses of the fp16 features of
    the query, then of the near slots, then of the open slots.  Writes the largest scores of the groups to maxima
    [rows,columns*GROUPS], of the chunks to tops [rows,columns]: a row is a query of a tile, a column is a chunk of a
    slot; the open slots come last.
    """
    GROUPS: tl.constexpr = P // CELLS
    program = tl.program_id(0)
    is_open = program >= tiles * near_chunks
    if is_open:
        program -= tiles * near_chunks
        chunks, slots, first_slot, first_column = open_chunks, open_slots, near_slots, near_slots * near_chunks
    else:
        chunks, slots, first_slot, first_column = near_chunks, near_slots, 0, 0
    row = program // chunks * Q + tl.arange(0, Q)
    tile, chunk = first_tile + program // chunks, program % chunks
    group = chunk * GROUPS + tl.arange(0, GROUPS)
    if not is_open:
        if chunk >= tl.load(filled + tile):
            return
        group = tl.load(near + tile * near_chunks * GROUPS + group)
    query = tl.maximum(tl.load(queries + tile * Q + tl.arange(0, Q)), 0)
    # A group counts if any of its cells does; `search` looks at each cell.
    first = group * CELLS
    counts = (first[None, :] < hw) & is_open
    for member in tl.static_range(CELLS):
        counts |= _inside(query[:, None], first[None, :] + member, hw, w, ROUND, LIMIT)

    # The cells of a group stand GROUPS apart in the product, so that one thread has all of them.
    cell = tl.minimum(tl.reshape(first[None, :] + tl.arange(0, CELLS)[:, None], (P,)), hw - 1)
    d = tl.arange(0, BLOCK)
    query_at = tl.multiple_of(tl.load(halves).to(tl.pointer_type(tl.float16)), 16)
    query_at += query.to(tl.int64)[:, None] * D + d[None, :]
    cell_at = cell.to(tl.int64)[None, :] * D + d[:, None]
    columns = near_slots * near_chunks + open_slots * open_chunks
    tops_at = tops + row.to(tl.int64) * columns
    maxima_at = maxima + row.to(tl.int64)[:, None] * columns * GROUPS + tl.arange(0, GROUPS)[None, :]
    for slot in range(slots):
        frame = tl.multiple_of(tl.load(halves + 1 + first_slot + slot).to(tl.pointer_type(tl.float16)), 16)
        scores = tl.zeros((Q, P), tl.float32)
        for part in range(0, D, BLOCK):
            scores = tl.dot(tl.load(query_at + part), tl.load(frame + part + cell_at), scores)
        best = tl.where(counts, tl.max(tl.reshape(scores, (Q, CELLS, GROUPS)), 1), OUTSIDE)
        column = first_column + slot * chunks + chunk
        tl.store(maxima_at + column * GROUPS, best)
        tl.store(tops_at + column, tl.max(best, 1))


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=ADDRESSES)
def search(
    fulls, queries, near, filled, maxima, tops, own_frames, slack, scores_out, cells_out, visits_out,
    first_tile, frames, open_slots, near_chunks, open_chunks, hw, w,
    D: tl.constexpr, Q: tl.constexpr, P: tl.constexpr, ROUND: tl.constexpr, LIMIT: tl.constexpr,
    CHUNKS: tl.constexpr, BITS: tl.constexpr, TOP_K: tl.constexpr, K: tl.constexpr, TAKE: tl.constexpr,
):  # fmt: skip
    """The TOP_K best cells of one query for one group of objects.

    fulls: addresses of the fp32 features of the query, the frames and the references.  own_frames [groups]: how many
    of the last frames the group of objects has.  Here chunks are numbered from the reference on, then frame by frame.
    Writes scores and cells [groups,TOP_K,hw], best first, -inf for missing ones, and how many groups of cells were
    computed in fp32 [groups,hw].
    """
    GROUPS: tl.constexpr = P // CELLS
    SCALE: tl.constexpr = 2.0 ** (30 - BITS)
    STEP: tl.constexpr = 2.0 ** (BITS - 30)
    row, who = tl.program_id(0), tl.program_id(1)
    query = tl.load(queries + first_tile * Q + row)
    if query < 0:
        return
    tile = first_tile + row // Q
    near += tile * near_chunks * GROUPS
    own = tl.load(own_frames + who).to(tl.int32)
    is_open = open_slots > 0
    near_slots = frames
    reference_chunks, reference_column = open_chunks, frames * near_chunks + who * open_chunks
    if not is_open:
        near_slots = frames + tl.num_programs(1)
        reference_chunks, reference_column = near_chunks, (frames + who) * near_chunks
    columns = near_slots * near_chunks + open_slots * open_chunks
    tops += row.to(tl.int64) * columns
    maxima += row.to(tl.int64) * columns * GROUPS
    first_frame_column = (frames - own) * near_chunks - reference_chunks

    # A key holds a score, rounded up, in its high bits and the number of a group in its low bits: the largest key
    # names the best group.  `waiting` has one key for each chunk: of its best group that was not visited yet.  In the
    # first keys the group is not known, and its number is the last of the chunk.
    chunk, member = tl.arange(0, CHUNKS), tl.arange(0, GROUPS)
    of_reference = chunk < reference_chunks
    place = tl.where(of_reference, chunk, (chunk - reference_chunks) % near_chunks)
    exists = (of_reference & is_open) | (place < tl.load(filled + tile))
    exists &= chunk < reference_chunks + own * near_chunks
    column = chunk + tl.where(of_reference, reference_column, first_frame_column)
    score = tl.load(tops + column, mask=exists, other=OUTSIDE)
    key = tl.ceil(score * SCALE).to(tl.int32) << BITS | chunk * GROUPS + GROUPS - 1
    waiting = tl.where(score > LEAST, key, NONE)

    place = tl.arange(0, K)
    best = tl.where(place < TOP_K, NONE, ~NONE)  # a place past TOP_K is never the lowest
    cells = tl.zeros((K,), tl.int32)
    margin = tl.load(slack)
    visits = 0
    top, lowest = tl.max(waiting), NONE
    while (top > NONE) & (_rank((top >> BITS) * STEP + margin) >= lowest):
        taken = tl.full((TAKE,), -1, tl.int32)
        for turn in tl.static_range(TAKE):
            of = (top & (1 << BITS) - 1) // GROUPS
            of_column = of + tl.where(of < reference_chunks, reference_column, first_frame_column)
            maximum = tl.load(maxima + of_column * GROUPS + member)
            keys = tl.ceil(maximum * SCALE).to(tl.int32) << BITS | of * GROUPS + member
            keys = tl.where(maximum > LEAST, keys, NONE)
            group = tl.max(tl.where(keys <= top, keys, NONE))
            waiting = tl.where(chunk == of, tl.max(tl.where(keys < group, keys, NONE)), waiting)
            taken = tl.where((tl.arange(0, TAKE) == turn) & (group > NONE), group & (1 << BITS) - 1, taken)
            top = tl.max(waiting)
        visits += tl.sum((taken >= 0).to(tl.int32))
        fresh, of_fresh = _exact(
            taken, fulls, near, query, who, frames, own, is_open, reference_chunks, near_chunks, hw, w,
            D, GROUPS, ROUND, LIMIT, TAKE,
        )  # fmt: skip
        high = tl.max(fresh)
        while high > lowest:
            from_place = tl.min(tl.where(fresh == high, tl.arange(0, TAKE * CELLS), TAKE * CELLS))
            is_it = tl.arange(0, TAKE * CELLS) == from_place
            to_place = tl.min(tl.where(best == lowest, place, K))
            cells = tl.where(place == to_place, tl.max(tl.where(is_it, of_fresh, 0)), cells)
            best = tl.where(place == to_place, high, best)
            fresh = tl.where(is_it, NONE, fresh)
            high, lowest = tl.max(fresh), tl.min(best)

    tl.store(visits_out + who * hw + query, visits)
    best = tl.where(place < TOP_K, best, NONE)
    at = who.to(tl.int64) * TOP_K * hw + query
    for _ in range(TOP_K):
        high = tl.max(best)
        is_it = place == tl.min(tl.where(best == high, place, K))
        tl.store(scores_out + at, tl.where(high > NONE, _score(high), float("-inf")))
        tl.store(cells_out + at, tl.max(tl.where(is_it, cells, 0)).to(tl.int64))
        best = tl.where(is_it, NONE, best)
        at += hw


@triton.jit
def _exact(
    taken, fulls, near, query, who, frames, own, is_open, reference_chunks, near_chunks, hw, w,
    D: tl.constexpr, GROUPS: tl.constexpr, ROUND: tl.constexpr, LIMIT: tl.constexpr, TAKE: tl.constexpr,
):  # fmt: skip
    """Ranks and flat indices [TAKE*CELLS] of the cells of groups.  taken [TAKE]: groups as in `search`, -1 = none."""
    chunk, member = tl.maximum(taken, 0) // GROUPS, tl.maximum(taken, 0) % GROUPS
    of_reference = chunk < reference_chunks
    past = tl.maximum(chunk - reference_chunks, 0)
    n = tl.where(of_reference, 0, 1 + past // near_chunks)
    place = tl.where(of_reference, chunk, past % near_chunks) * GROUPS + member
    anywhere = of_reference & is_open
    group = tl.where(anywhere, place, tl.load(near + place, mask=anywhere == 0, other=0))
    cell = group[:, None] * CELLS + tl.arange(0, CELLS)[None, :]
    counts = (anywhere[:, None] & (cell < hw)) | _inside(query, cell, hw, w, ROUND, LIMIT)
    counts &= (taken >= 0)[:, None]
    cell = tl.minimum(cell, hw - 1)

    frame = tl.load(fulls + tl.where(of_reference, 1 + frames + who, frames - own + n))
    row = tl.reshape(frame[:, None] + cell.to(tl.int64) * (4 * D), (TAKE * CELLS,)).to(tl.pointer_type(tl.float32))
    own_row = tl.load(fulls).to(tl.pointer_type(tl.float32)) + query.to(tl.int64) * D
    if D % 4 == 0:
        row, own_row = tl.multiple_of(row, 16), tl.multiple_of(own_row, 16)
    products = tl.zeros((TAKE * CELLS, BLOCK), tl.float32)
    for part in range(0, D, BLOCK):
        d = part + tl.arange(0, BLOCK)
        features = tl.load(own_row + d, mask=d < D, other=0.0)
        products += features[None, :] * tl.load(row[:, None] + d[None, :], mask=(d < D)[None, :], other=0.0)
    score = tl.sum(products, 1)
    counts = tl.reshape(counts, (TAKE * CELLS,)) & (score > LEAST)
    return tl.where(counts, _rank(score), NONE), tl.reshape(n[:, None] * hw + cell, (TAKE * CELLS,))
