"""Propagation of one frame, compared with the published programs and with the definition in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.errors import UserError
from core.schema import Propagation
from labelprop import backends, int8, propagate, walk, windowed
from tests import reference

DISC = {"window": "disc", "window_reference": False, "temperature": 0.05, "top_k": 10, "repeat_reference": True}
SQUARE = {"window": "square", "window_reference": True, "temperature": 0.1, "top_k": 5, "repeat_reference": False}


def protocol(base, **changes):
    return Propagation(**{"radius": 6, "context": 20, **base, **changes})


def made(seed, N, M, D, h, w, dtype=torch.float64):
    """Random query [D,h,w] and keys [N,D,h,w] of unit features, and labels [N,M,h,w]."""
    rng = torch.Generator().manual_seed(seed)
    frames = F.normalize(torch.randn(N + 1, D, h, w, generator=rng, dtype=torch.float64), dim=1)
    labels = torch.randn(N, M, h, w, generator=rng, dtype=torch.float64).softmax(1)
    return [x.to(dtype) for x in (frames[0], frames[1:], labels)]


def replay(arrays, cfg, normalise, backend):
    """Our output and the published one, both [M,cells], for the query cells whose output is stored."""
    query, keys, labels, out = (torch.from_numpy(arrays[k]) for k in ("query", "ctx_feats", "ctx_masks", "out"))
    if normalise:
        query, keys = F.normalize(query, dim=1), F.normalize(keys, dim=1)
    stored = ~out[0, 0].isnan()
    return propagate(query[0], keys, labels, cfg, backend)[:, stored], out[0][:, stored]


def disc_of(arrays):
    return protocol(DISC, radius=int(arrays["radius"]), temperature=float(arrays["temp"]), top_k=int(arrays["topk"]))


def square_of(arrays):
    return protocol(SQUARE, radius=int(arrays["neigh"]), temperature=float(arrays["temp"]), top_k=int(arrays["topk"]))


@pytest.mark.parametrize("backend", ["reference", "windowed", "int8"])
@pytest.mark.parametrize("name", ["rand_c1", "rand_c2", "rand_c5", "real_c3", "dup_context"])
def test_dul_frame_is_the_published_one(golden, name, backend):
    arrays = golden(f"g1_{name}")
    ours, theirs = replay(arrays, disc_of(arrays), False, backend)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("backend", ["reference", "windowed", "int8"])
@pytest.mark.parametrize("name", ["rand_c1", "rand_c3"])
def test_ino_frame_is_the_published_one(golden, name, backend):
    arrays = golden(f"g2_{name}")
    ours, theirs = replay(arrays, square_of(arrays), True, backend)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_full_size_frames_are_the_published_ones(golden):
    dul, ino = golden("g1_full_60x107_c3"), golden("g2_full_60x106_c3")
    for ours, theirs in (
        replay(dul, disc_of(dul), False, "windowed"),
        replay(ino, square_of(ino), True, "windowed"),
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_ties_move_only_what_they_can(golden):
    """Any of the candidates that tie at place k may be kept: the output lies between the two extremes."""
    arrays = golden("g2_ties_c2")
    cfg = square_of(arrays)
    found = [replay(arrays, cfg, True, backend)[0] for backend in ("reference", "windowed", "int8")]
    found = torch.stack(found).flatten(2).double()
    query = F.normalize(torch.from_numpy(arrays["query"][0]).double(), dim=0).flatten(1)
    keys = F.normalize(torch.from_numpy(arrays["ctx_feats"]).double(), dim=1).flatten(2)
    labels = torch.from_numpy(arrays["ctx_masks"]).double().transpose(0, 1).flatten(1)
    inside = reference.inside_window(*arrays["query"].shape[2:], cfg)
    scores = torch.einsum("dp,ndq->pnq", query, keys).masked_fill(~inside[:, None], -torch.inf).flatten(1)
    tied_queries = 0
    for p in range(0, len(scores), 5):
        kth = scores[p].topk(cfg.top_k).values[-1]
        above, tied = scores[p] > kth + 1e-7, (scores[p] - kth).abs() <= 1e-7
        places = cfg.top_k - int(above.sum())
        tied_queries += int(tied.sum()) > places
        weight = ((scores[p] - kth) / cfg.temperature).exp()
        fixed, total = labels[:, above] @ weight[above], weight[above].sum() + places
        ordered = labels[:, tied].sort(dim=1).values
        low, high = ordered[:, :places].sum(1), ordered[:, -places:].sum(1)
        values = found[:, :, p]
        assert ((fixed + low) / total - 2e-6 <= values).all() and (values <= (fixed + high) / total + 2e-6).all()
    assert tied_queries > 0


def test_windows_are_the_published_ones(golden):
    disc = golden("g1_radius_mask")
    h, w = int(disc["h"]), int(disc["w"])
    inside = reference.inside_window(h, w, protocol(DISC, radius=int(disc["radius"]))).numpy()
    np.testing.assert_array_equal(inside[0].reshape(h, w), disc["mask_row0"] > 0)
    np.testing.assert_array_equal(inside.sum(1).reshape(h, w), disc["count"])
    middle = inside.reshape(h * w, h, w)[(inside.reshape(h * w, h, w) == (disc["mask_mid"] > 0)).all((1, 2))]
    assert len(middle) == 1
    square = golden("g2_neighborhood_7x9_r3")["mask"]
    np.testing.assert_array_equal(reference.inside_window(7, 9, protocol(SQUARE, radius=3)).numpy(), square > 0)


def test_the_closed_disc_holds_the_cells_at_its_radius():
    """sqrt(dy^2 + dx^2) <= 5 around the middle of 13 x 13 cells, not < 5."""
    inside = reference.inside_window(13, 13, protocol(DISC, window="closed_disc", radius=5))[84].view(13, 13)
    for dy in range(-6, 7):
        for dx in range(-6, 7):
            assert bool(inside[6 + dy, 6 + dx]) == (np.hypot(dy, dx) <= 5), (dy, dx)
    open_disc = reference.inside_window(13, 13, protocol(DISC, radius=5))[84].view(13, 13)
    assert (inside & ~open_disc).sum() == 12  # (5,0), (4,3), (3,4) and their mirror images


def random_case(seed, dtype):
    """Frames of random size and a random protocol."""
    rng = np.random.default_rng(seed)
    h, w, N, M = (int(rng.integers(1, high)) for high in (30, 34, 6, 7))
    D = int(rng.integers(2, 20))  # in one dimension all unit features tie
    cfg = Propagation(
        window=str(rng.choice(["disc", "closed_disc", "square"])),
        radius=int(rng.integers(1, 14)),
        window_reference=bool(rng.integers(2)),
        temperature=float(rng.uniform(0.03, 0.3)),
        top_k=int(rng.choice([1, 3, 10, 40])),
        context=5,
        repeat_reference=bool(rng.integers(2)),
    )
    return *made(seed, N, M, D, h, w, dtype), cfg


@pytest.mark.parametrize("seed", range(20))
def test_windowed_is_the_definition(seed):
    """In float64, where only a wrong candidate can make a difference."""
    case = random_case(seed, torch.float64)
    ours, truth = propagate(*case, "windowed"), propagate(*case, "reference")
    assert ours.shape == case[2].shape[1:]
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(20, 34))
def test_int8_is_the_definition(seed, monkeypatch):
    """Also without spare positions and candidates: then all cells in doubt are computed in float32."""
    case = random_case(seed, torch.float32)
    truth = propagate(*case, "reference")
    torch.testing.assert_close(propagate(*case, "int8"), truth, rtol=0, atol=5e-6)
    monkeypatch.setattr(int8, "POSITIONS", 0)
    monkeypatch.setattr(int8, "CANDIDATES", 0)
    torch.testing.assert_close(propagate(*case, "int8"), truth, rtol=0, atol=5e-6)


def test_int8_needs_its_doubt(monkeypatch):
    """With a negative DOUBT, candidates are lost to rounding errors: so the test above can fail."""
    case = *made(1, 4, 3, 64, 20, 24, torch.float32), protocol(DISC, radius=5)
    truth = propagate(*case, "reference")
    monkeypatch.setattr(int8, "POSITIONS", 0)
    monkeypatch.setattr(int8, "CANDIDATES", 0)
    torch.testing.assert_close(propagate(*case, "int8"), truth, rtol=0, atol=5e-6)
    monkeypatch.setattr(int8, "DOUBT", -8.0)
    assert (propagate(*case, "int8") - truth).abs().max() > 1e-3


def test_int8_error_is_within_what_it_allows_for():
    """The largest error of all pairs of a tile lies between 2 and DOUBT sigmas."""
    features = F.normalize(torch.randn(2, 40, 50, 96, generator=torch.Generator().manual_seed(0)).relu() ** 2, dim=-1)
    key = int8.prepare(features[0], None)
    scorer = int8.Int8(int8.prepare(features[1], key), 1, protocol(DISC))
    scorer.begin(walk.tile_at(slice(0, 12), slice(0, 12), 40, 50, protocol(DISC)))
    queries, scores = scorer.queries, scorer._whole(key).scores.view(40 * 50, -1)
    error = scores * queries.scale + queries.shift - key.features.flatten(0, 1) @ queries.features
    sigmas = error.abs() / queries.doubt([key]) * int8.DOUBT
    assert 2 < sigmas.max() < int8.DOUBT


@pytest.mark.parametrize("backend", ["windowed", "int8"])
@pytest.mark.parametrize("base", [DISC, SQUARE])
@pytest.mark.parametrize("h, w, N", [(1, 1, 1), (1, 1, 4), (1, 9, 2), (5, 2, 1), (2, 3, 3)])
def test_top_k_above_the_number_of_candidates(base, h, w, N, backend):
    cfg = protocol(base, radius=1, top_k=50)
    arrays = made(3, N, 3, 1, h, w, torch.float32)
    torch.testing.assert_close(propagate(*arrays, cfg, backend), propagate(*arrays, cfg, "reference"))


def test_square_of_radius_0_sees_its_own_place_alone():
    query, keys, labels = made(0, 1, 3, 4, 6, 7)
    ours = propagate(query, keys, labels, protocol(SQUARE, radius=0), "windowed")
    torch.testing.assert_close(ours, labels[0])


@pytest.mark.parametrize("backend", ["windowed", "int8"])
def test_error_of_float32_is_rounding(backend):
    cfg = protocol(DISC, radius=5)
    arrays = made(1, 4, 3, 64, 20, 24)
    truth = propagate(*arrays, cfg, "reference")
    ours = propagate(*(x.float() for x in arrays), cfg, backend)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["windowed", "int8"])
def test_one_and_two_threads_agree_and_leave_the_setting_alone(backend):
    cfg = protocol(DISC, radius=5)
    arrays = made(2, 3, 2, 16, 30, 30, torch.float32)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(propagate(*arrays, cfg, backend))
        assert torch.get_num_threads() == threads
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


def test_runs_inside_inference_mode_and_leaves_no_graph():
    cfg = protocol(DISC, radius=4)
    query, keys, labels = made(2, 2, 2, 8, 20, 20)
    plain = propagate(query.requires_grad_(), keys, labels, cfg)
    assert not plain.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(propagate(query, keys, labels, cfg), plain)


@pytest.mark.parametrize("backend", ["windowed", "int8"])
def test_memory_of_a_tile_is_bounded(backend, monkeypatch):
    cfg = protocol(SQUARE, radius=9)
    arrays = made(4, 3, 2, 8, 21, 23, torch.float32)
    whole = propagate(*arrays, cfg, backend)
    monkeypatch.setitem(walk.TILE_SCORES, "cpu", 3 * 21 * 23 * 4)
    assert walk.tile_side(12, 21, 23, 3, "cpu", cfg) == 2
    tiles, outside_window = [], walk.outside_window
    monkeypatch.setattr(walk, "outside_window", lambda tile, *args: tiles.append(tile) or outside_window(tile, *args))
    torch.testing.assert_close(propagate(*arrays, cfg, backend), whole)
    assert max(outside_window(tile, cfg).shape[1] for tile in tiles) <= 4


@pytest.mark.parametrize("engine", [windowed, int8])
@pytest.mark.parametrize("base", [DISC, SQUARE])
def test_groups_have_their_own_references_frames_and_copies(base, engine):
    cfg = protocol(base, radius=3)
    frames = F.normalize(torch.randn(10, 14, 17, 16, generator=torch.Generator().manual_seed(0)), dim=-1)

    def masks_by(engine):
        prepared = backends.prepared(frames, engine)
        groups = [walk.Group(prepared[n], count, copies) for n, count, copies in ((0, 5, 4), (7, 3, 1), (8, 3, 2))]
        groups.append(walk.Group(prepared[9], 0))
        labels = [frames.new_tensor([[n == m for m in range(7)]]).expand(14 * 17, 7) for n in range(7)]
        own = [[labels[6], *labels[6 - group.frames : 6]] for group in groups]  # channel 6: the reference, n: frame n
        return backends.propagate_groups(prepared[6], prepared[1:6], groups, own, cfg, engine)

    for ours, truth in zip(masks_by(engine), masks_by(reference), strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=2e-5)


def test_many_objects_pass_a_few_at_a_time():
    cfg = protocol(DISC, radius=4)
    arrays = made(5, 3, 2 * walk.CHANNELS + 5, 8, 12, 13)
    torch.testing.assert_close(propagate(*arrays, cfg, "windowed"), propagate(*arrays, cfg, "reference"))


def test_unknown_backend_and_wrong_shapes_are_named():
    query, keys, labels = made(0, 2, 2, 4, 5, 6)
    with pytest.raises(UserError, match="backend = 'fast'.*auto, int8, reference, triton, windowed"):
        propagate(query, keys, labels, protocol(DISC), backend="fast")
    with pytest.raises(ValueError, match=r"\(2, 2, 5, 5\)"):
        propagate(query, keys, labels[..., :5], protocol(DISC))
