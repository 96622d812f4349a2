"""The results of the Triton kernels.  test_labelprop_triton.py runs this file, on a GPU or in Triton's interpreter.

The interpreter takes 0.1 s for a query, so most grids are small.  Some tests need a GPU.
Legend: N frames before the query, M channels, D feature dimensions, h w cells of the feature grid, k = top_k.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.schema import Propagation
from labelprop import propagate, triton_backend, walk, windowed
from labelprop.backends import prepared, propagate_groups
from labelprop.video import Video
from tests import reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")
DUL = Propagation("disc", 3, False, 0.05, 6, 20, True)
INO = Propagation("square", 2, True, 0.1, 5, 10, False)
SMALL = triton_backend.Shape(16, 64, 4, 2)  # several tiles and chunks even on small grids


@pytest.fixture(autouse=True)
def _small_shape(monkeypatch):
    monkeypatch.setattr(triton_backend, "SHAPES", (SMALL,))


def made(seed, N, M, D, h, w):
    """Random unit features [N+1,h,w,D], the query last, and labels [N,hw,M]; float64."""
    rng = torch.Generator().manual_seed(seed)
    frames = F.normalize(torch.randn(N + 1, h, w, D, generator=rng, dtype=torch.float64), dim=-1)
    labels = torch.randn(N, h * w, M, generator=rng, dtype=torch.float64).softmax(-1)
    return frames.to(DEVICE), labels.to(DEVICE)


def masks_of(module, frames, labels, groups, cfg, dtype):
    """Masks of the query.  groups: (index of the reference, frames, copies) of each group, see walk.Group."""
    frames = prepared([frame.to(dtype) for frame in frames], module)
    groups, indices = [walk.Group(frames[n], count, copies) for n, count, copies in groups], groups
    own = [[labels[n], *labels[len(labels) - count :]] for n, count, _ in indices]
    own = [[x.to(dtype) for x in group] for group in own]
    return propagate_groups(frames[-1], frames[:-1], groups, own, cfg, module)


def check(frames, labels, groups, cfg, atol=2e-6):
    ours = masks_of(triton_backend, frames, labels, groups, cfg, torch.float32)
    truth = masks_of(reference, frames, labels, groups, cfg, torch.float64)
    for mask, true in zip(ours, truth):
        torch.testing.assert_close(mask.double(), true, rtol=0, atol=atol)


def truth_scores(frames, groups, cfg):
    """The top_k scores by definition, sorted: float64 [k,hw] for each group."""
    query, scores = frames[-1].flatten(0, 1), []
    inside = reference.inside_window(*frames.shape[1:3], cfg, DEVICE)
    for n, count, _ in groups:
        keys = [frames[n], *frames[len(frames) - 1 - count : -1]]
        allowed = [inside] * len(keys)
        if not cfg.window_reference:
            allowed[0] = torch.ones_like(inside)
        all_scores = [(query @ key.flatten(0, 1).T).masked_fill(~a, -torch.inf) for key, a in zip(keys, allowed)]
        scores.append(torch.cat(all_scores, 1).topk(cfg.top_k, dim=1).values.T)
    return scores


def search(frames, groups, cfg):
    """Run the kernels -> scores, cells, visits."""
    frames = prepared(list(frames.float()), triton_backend)
    groups = [walk.Group(frames[n], count, copies) for n, count, copies in groups]
    return triton_backend.search(frames[-1], frames[:-1], groups, cfg)


@pytest.mark.parametrize(
    "h, w, D, N, cfg",
    [
        (3, 7, 24, 3, DUL),
        (3, 4, 100, 2, INO),
        (2, 7, 64, 4, Propagation("closed_disc", 3, True, 0.2, 5, 7, False)),
        (4, 3, 130, 1, Propagation("square", 12, False, 0.1, 1, 7, True)),
        (1, 9, 3, 3, Propagation("disc", 1, True, 0.07, 2, 7, True)),
    ],
)
def test_masks_equal_the_definition(h, w, D, N, cfg):
    check(*made(0, N, 3, D, h, w), [(0, N - 1, 1)], cfg)


def test_masks_equal_the_definition_in_the_shapes_that_run(monkeypatch):
    monkeypatch.setattr(triton_backend, "SHAPES", SHAPES[-1:])
    check(*made(1, 3, 2, 40, 3, 3), [(0, 2, 1)], DUL)


SHAPES = triton_backend.SHAPES


@pytest.mark.parametrize("cfg", [DUL, INO])
def test_groups_have_their_own_references_frames_and_copies(cfg):
    frames, labels = made(2, 5, 2, 24, 2, 4)
    check(frames, labels, [(0, 4, 3), (2, 2, 1), (4, 0, 1)], cfg)


def test_top_k_above_the_number_of_candidates():
    for cfg in (Propagation("disc", 1, True, 0.1, 50, 5, True), Propagation("disc", 1, False, 0.1, 50, 5, True)):
        check(*made(3, 2, 2, 8, 2, 3), [(0, 1, 1)], cfg)


def test_ties_move_only_what_they_can():
    """Three equal frames: the best three candidates of each cell have equal scores."""
    frames, labels = made(4, 3, 2, 24, 2, 4)
    frames = frames[:1].repeat(4, 1, 1, 1)
    scores, cells, _ = search(frames, [(0, 2, 1)], INO)
    (truth,) = truth_scores(frames, [(0, 2, 1)], INO)
    torch.testing.assert_close(scores[0].double(), truth, rtol=0, atol=1e-6)
    place = torch.arange(8, device=DEVICE)
    assert (cells[0, :3] % 8 == place).all() and cells[0].sort(dim=0).values.diff(dim=0).all()
    (ours,) = masks_of(triton_backend, frames, labels, [(0, 2, 1)], INO, torch.float32)
    assert torch.allclose(ours.sum(1), torch.ones(8, device=DEVICE))


@pytest.mark.parametrize("spread, all_of_them", [(2e-2, False), (1e-3, True)])
def test_scores_within_the_rounding_of_half_are_told_apart(spread, all_of_them):
    """The kernels must score more, or all, candidates again in fp32; scores in fp16 alone select wrong candidates."""
    rng = torch.Generator().manual_seed(5)
    base, noise = torch.randn(32, generator=rng), torch.randn(4, 3, 5, 32, generator=rng)
    frames = F.normalize((F.normalize(base, dim=0) + spread * noise).double(), dim=-1).to(DEVICE)
    frames = frames.float().double()  # the values that the kernels get
    groups = [(0, 2, 1)]
    scores, cells, visits = search(frames, groups, DUL)
    (truth,) = truth_scores(frames, groups, DUL)
    torch.testing.assert_close(scores[0].double(), truth, rtol=0, atol=3e-7)
    inside = F.pad(reference.inside_window(3, 5, DUL, DEVICE), (0, 1))
    met = inside.unflatten(1, (-1, triton_backend.CELLS)).any(2).sum(1)
    assert ((visits[0] == 4 + 2 * met) | (not all_of_them)).all() and visits.max() >= DUL.top_k
    half = (frames.half() @ frames[-1].half().flatten(0, 1).T).double()
    exact = frames @ frames[-1].flatten(0, 1).T
    taken = exact[0].flatten(0, 1).gather(0, half[0].flatten(0, 1).topk(5, dim=0).indices)
    assert (taken.amin(0) < exact[0].flatten(0, 1).topk(5, dim=0).values[-1]).any()


def test_few_candidates_are_scored_again():
    frames, _ = made(6, 4, 2, 64, 3, 5)
    _, _, visits = search(frames, [(0, 3, 1)], DUL)
    assert DUL.top_k / 4 <= visits.min() and visits.float().mean() < 2 * DUL.top_k


def test_error_is_at_most_twice_that_of_half_precision():
    frames, labels = made(7, 3, 3, 64, 3, 4)
    groups = [(0, 2, 1)]
    truth, ours, half = (
        masks_of(module, frames, labels, groups, DUL, dtype)[0].double()
        for module, dtype in (
            (reference, torch.float64), (triton_backend, torch.float32), (reference, torch.float16),
        )
    )  # fmt: skip
    assert (ours - truth).abs().max() <= 2 * (half - truth).abs().max()
    assert (ours - truth).abs().max() < 2e-6 < (half - truth).abs().max()


def test_tiles_pass_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(triton_backend, "SCRATCH", 1)
    check(*made(8, 2, 2, 16, 3, 6), [(0, 1, 1)], DUL)


def test_nan_is_no_candidate():
    frames, labels = made(9, 2, 2, 16, 2, 3)
    frames[0, 1, 1] = torch.nan
    (ours,) = masks_of(triton_backend, frames, labels, [(0, 1, 1)], DUL, torch.float32)
    assert ours.isfinite().all()


@pytest.mark.parametrize("cfg", [DUL, INO, Propagation("closed_disc", 12, False, 0.05, 10, 20, True)])
@pytest.mark.parametrize("h, w", [(23, 37), (3, 150), (1, 1)])
def test_a_plan_has_every_query_once_and_all_its_candidates(h, w, cfg):
    plan = triton_backend._plan(h, w, cfg, 128, 64, torch.device("cpu"))
    assert (plan.queries[plan.queries >= 0].sort().values == torch.arange(h * w)).all()
    inside = reference.inside_window(h, w, cfg)
    for queries, groups, filled in zip(plan.queries, plan.near, plan.filled):
        met = inside[queries[queries >= 0]].any(0).nonzero().flatten() // triton_backend.CELLS
        groups = groups[groups < h * w]
        assert set(met.tolist()) == set(groups.tolist()) and len(groups) <= int(filled) * 16 < len(groups) + 16


def test_a_video_is_segmented_as_by_the_other_backends():
    def colours(frames):
        cells = F.avg_pool2d(frames, 8) - 0.45
        return F.normalize(torch.cat([cells, cells**2, torch.full_like(cells[:, :1], 0.05)], 1), dim=1)

    ids = np.kron([[7, 7, 0, 0], [0, 0, 0, 200], [0, 0, 200, 200]], np.ones((8, 8), np.uint8)).astype(np.uint8)
    rng = np.random.default_rng(0)
    frames = [(ids[..., None] + rng.integers(0, 50, (24, 32, 3))).astype(np.uint8) for _ in range(3)]
    given = {0: np.where(ids == 7, 7, 0), 1: ids}
    segment = lambda backend: np.stack(list(Video(colours, DUL, backend, DEVICE).segment(frames, given)))
    ours, theirs = segment("triton"), segment("windowed")
    assert (ours == theirs).mean() > 0.999
    assert [set(np.unique(x)) for x in ours] == [{0, 7}, {0, 7, 200}, {0, 7, 200}]


@ON_GPU
@pytest.mark.parametrize("cfg, h, w, D, N", [
    (Propagation("disc", 12, False, 0.05, 10, 20, True), 60, 107, 512, 21),
    (Propagation("square", 40, True, 0.1, 5, 10, False), 60, 106, 384, 11),
    (Propagation("square", 50, True, 0.1, 5, 20, False), 90, 160, 384, 5),
])  # fmt: skip
@pytest.mark.parametrize("shape", SHAPES)
def test_full_size_in_every_shape(monkeypatch, cfg, h, w, D, N, shape):
    monkeypatch.setattr(triton_backend, "SHAPES", (shape,))
    frames, labels = made(10, N, 3, D, h, w)
    ours = masks_of(triton_backend, frames, labels, [(0, N - 1, 1)], cfg, torch.float32)
    truth = masks_of(windowed, frames, labels, [(0, N - 1, 1)], cfg, torch.float64)
    torch.testing.assert_close(ours[0].double(), truth[0], rtol=0, atol=1e-5)


@ON_GPU
@pytest.mark.parametrize("name", ["g1_rand_c5", "g1_real_c3", "g1_full_60x107_c3", "g2_rand_c3", "g2_full_60x106_c3"])
def test_published_frames(golden, name):
    arrays = golden(name)
    features = [torch.from_numpy(arrays[key]).to(DEVICE) for key in ("query", "ctx_feats")]
    if name.startswith("g1"):
        cfg = Propagation("disc", int(arrays["radius"]), False, float(arrays["temp"]), int(arrays["topk"]), 20, True)
    else:
        cfg = Propagation("square", int(arrays["neigh"]), True, float(arrays["temp"]), int(arrays["topk"]), 10, False)
        features = [F.normalize(x, dim=1) for x in features]
    (query,), keys = features
    ours = propagate(query, keys, torch.from_numpy(arrays["ctx_masks"]).to(DEVICE), cfg, "triton")
    out = torch.from_numpy(arrays["out"][0])
    stored = ~out[0].isnan()
    torch.testing.assert_close(ours.cpu()[:, stored], out[:, stored], rtol=0, atol=2e-6)


@ON_GPU
def test_the_host_waits_for_nothing(monkeypatch):
    frames, _ = made(11, 4, 2, 64, 20, 30)
    search(frames, [(0, 3, 1)], DUL)  # compiles the kernels and copies the tables to the GPU
    frames = prepared(list(frames.float()), triton_backend)
    torch.cuda.set_sync_debug_mode("error")
    try:
        frame = triton_backend.prepare(frames[-1].full, None)
        triton_backend.match(frame, frames[:-1], [walk.Group(frames[0], 3)], DUL)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@ON_GPU
def test_auto_takes_the_kernels_and_the_fastest_shape(monkeypatch):
    monkeypatch.setattr(triton_backend, "SHAPES", SHAPES)
    monkeypatch.setattr(triton_backend, "_fastest_known", {})
    frames, labels = made(12, 12, 2, 128, 40, 50)
    query, keys = frames[-1].permute(2, 0, 1).float(), frames[:-1].permute(0, 3, 1, 2).float()
    labels = labels.float().transpose(1, 2).unflatten(2, (40, 50))
    ours, truth = (propagate(query, keys, labels, DUL, backend) for backend in ("auto", "windowed"))
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-5)
    assert set(triton_backend._fastest_known.values()) <= set(SHAPES) and triton_backend._fastest_known
