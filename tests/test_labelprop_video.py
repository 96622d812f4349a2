"""Whole videos: clips of the published programs, objects that appear late, streaming, and wrong inputs."""

import gc
import warnings
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from core import protocols
from core.errors import UserError
from core.schema import Propagation
from labelprop import propagate
from labelprop.context import Context, context_of
from labelprop.readout import nearest, stretched, to_grid, to_ids, working_size
from labelprop.video import Video
from tests import reference  # noqa: F401  (backend="reference")

DUL = Propagation("disc", 4, False, 0.05, 10, 20, True)
INO = Propagation("square", 6, True, 0.1, 5, 10, False, readout="grid", min_max=True, multiple=8)
YTVOS = replace(INO, min_max=False, hd_to_720=True)


def segment_video(frames, given, network, cfg, backend="auto", device="cpu", batch=1, ahead=0):
    return Video(network, cfg, backend, device).segment(frames, given, batch, ahead)


def colours(frames):
    """Stands in for a network: unit features of cells of 8x8 px, from their mean colour and its products."""
    cells = F.avg_pool2d(frames, 8, ceil_mode=True) - 0.45
    cells = torch.cat([cells, cells[:, :1] * cells[:, 1:2], cells**2, torch.full_like(cells[:, :1], 0.05)], 1)
    return F.normalize(cells, dim=1)


def moving(count, H=64, W=80, enters=0):
    """Yields (frame, true ids): a red square and, from frame `enters` on, a green one move right over noise."""
    ground = np.random.default_rng(0).integers(90, 140, (H, W, 3), dtype=np.uint8)
    for t in range(count):
        frame, ids = ground.copy(), np.zeros((H, W), np.uint8)
        squares = [(1, (255, 20, 20), 8, 8 + 2 * t % 40), (2, (20, 255, 20), 40, 16 + t % 40)]
        for number, colour, y, x in squares[: 2 if t >= enters else 1]:
            ids[y : y + 16, x : x + 16] = number
            frame[ids == number] = colour
        yield frame, ids


def replay(arrays, cfg, backend="auto"):
    """The given masks and the ids of all frames of a golden clip, from its stored features and masks."""
    masks, births = arrays["masks_gt"], arrays["tracks"]
    given = {}
    for channel, t in enumerate(births.tolist()):
        if t >= 0:
            given.setdefault(t, np.zeros(masks.shape[1:], np.uint8))[masks[channel] > 0] = channel
    features = iter(F.normalize(torch.from_numpy(arrays["feats"]), dim=1))
    frames = (np.zeros((*masks.shape[1:], 3), np.uint8) for _ in arrays["feats"])
    return given, np.stack(list(segment_video(frames, given, lambda _: next(features)[None], cfg, backend)))


@pytest.mark.parametrize("backend", ["windowed", "int8", "reference"])
@pytest.mark.parametrize("name", ["cxt20", "cxt3", "nothing_at_t0"])
def test_dul_clip_is_the_published_one(golden, name, backend):
    arrays = golden(f"g3_dul_{name}")
    assert float(arrays["temp"]) == pytest.approx(DUL.temperature)
    cfg = replace(DUL, radius=int(arrays["radius"]), top_k=int(arrays["topk"]), context=int(arrays["cxt"]))
    given, ids = replay(arrays, cfg, backend)
    # for frame 0 we return the given mask; the authors resize it to the grid and back
    first = given.get(0, np.zeros_like(ids[0]))
    np.testing.assert_array_equal(ids[0], first)
    np.testing.assert_array_equal(ids[1:], arrays["ids"][1:])


@pytest.mark.parametrize("backend", ["windowed", "int8", "reference"])
@pytest.mark.parametrize("name", ["last10", "last3_w132", "late_t2_t5"])
def test_ino_clip_is_the_published_one(golden, name, backend):
    arrays = golden(f"g3_ino_{name}")
    cfg = replace(INO, radius=int(arrays["neigh"]), top_k=int(arrays["topk"]), context=int(arrays["n_last"]))
    _, ids = replay(arrays, cfg, backend)
    np.testing.assert_array_equal(ids, arrays["ids"])


def dinov3_clip(golden):
    """The golden clip of DINOv3's notebook, and the protocol with the values of this clip."""
    arrays = golden("g10_dinov3")
    numbers = {"radius": "radius", "context": "n_last", "top_k": "topk", "temperature": "temp"}
    changes = {key: arrays[name].item() for key, name in numbers.items()}
    return arrays, protocols.named("DINOv3", {**changes, "short_side": 96, "multiple": 8})


def test_dinov3_soft_masks_are_the_published_ones(golden):
    arrays, cfg = dinov3_clip(golden)
    features = torch.from_numpy(arrays["feats_thwD"]).permute(0, 3, 1, 2)
    context = Context(cfg)
    context.step(features[0], to_grid(arrays["first_ids"], [0, 1, 2, 3], (12, 16), cfg, "cpu"))
    soft = torch.stack([context.step(frame) for frame in features[1:]])
    np.testing.assert_allclose(soft.permute(0, 2, 3, 1), arrays["soft_thwM"], atol=1e-5)


@pytest.mark.parametrize("backend", ["windowed", "int8", "reference"])
def test_dinov3_clip_is_the_published_one(golden, backend):
    arrays, cfg = dinov3_clip(golden)
    features = iter(torch.from_numpy(arrays["feats_thwD"]).permute(0, 3, 1, 2))
    frames = (np.zeros((96, 128, 3), np.uint8) for _ in arrays["feats_thwD"])
    ids = segment_video(frames, {0: arrays["first_ids"]}, lambda _: next(features)[None], cfg, backend)
    np.testing.assert_array_equal(np.stack(list(ids)), arrays["ids"])


def test_dinov3_sees_frames_of_the_published_sizes(golden):
    cfg = protocols.named("DINOv3", {"multiple": 16})
    for height, width, *seen in golden("g10_dinov3")["sizes"].tolist():
        assert working_size(height, width, cfg) == tuple(seen)


def test_dinov3_resizes_the_picture_as_pillow_does():
    (frame, mask), *_ = moving(1)
    cfg = protocols.named("DINOv3", {"short_side": 96, "multiple": 16})
    seen = []
    list(segment_video([frame], {0: mask}, lambda batch: seen.append(batch) or colours(batch), cfg))
    expected = np.asarray(Image.fromarray(frame).resize((128, 96), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal((255 * seen[0][0]).round().permute(1, 2, 0), expected)


def test_nearest_readout_stretches_at_the_videos_size_and_drops_what_is_constant():
    """4 cells on 6 pixels, a constant channel (1), and more channels than are resized at a time."""
    cfg = protocols.named("DINOv3", {"multiple": 16})
    soft = torch.zeros(11, 1, 4)
    soft[0], soft[1], soft[10] = torch.tensor([0.3, 0.2, 0.1, 0.1]), 0.9, torch.tensor([0.0, 0.01, 0.02, 0.04])
    ids = to_ids(soft, range(11), (1, 6), (16, 64), cfg)
    assert ids.tolist() == [[0, 0, 0, 10, 10, 10]]


def test_min_max_is_the_published_one_and_never_nan(golden):
    arrays = golden("g3_norm_mask")
    ours = stretched(torch.from_numpy(arrays["inp"])).numpy()
    known = ~np.isnan(arrays["out"])
    assert 0 < known.sum() < known.size
    np.testing.assert_allclose(ours[known], arrays["out"][known], atol=1e-6)
    np.testing.assert_array_equal(ours[~known], arrays["inp"][~known])


def test_segments_what_moves():
    frames, truth = zip(*moving(12))
    for cfg in (DUL, INO, YTVOS):
        ids = list(segment_video(frames, {0: truth[0]}, colours, cfg))
        assert [x.shape for x in ids] == [(64, 80)] * 12 and all(x.dtype == np.uint8 for x in ids)
        for number in (1, 2):
            found, true = ids[-1] == number, truth[-1] == number
            assert (found & true).sum() / (found | true).sum() > 0.4, (cfg, number)  # a copied first mask: below 0.3


def test_copies_of_the_reference_are_counted_as_if_they_stood_in_the_list():
    """Compares the weight of a repeated reference with real copies of it, for every frame."""
    rng = torch.Generator().manual_seed(0)
    cfg = replace(DUL, context=5, top_k=7)
    features = F.normalize(torch.randn(9, 12, 10, 11, generator=rng, dtype=torch.float64), dim=1)
    first = torch.randn(3, 10, 11, generator=rng, dtype=torch.float64).softmax(0)
    context, masks = Context(cfg), []
    for t in range(9):
        masks.append(context.step(features[t], first if t == 0 else None))
        if t:
            order = [0, *(max(0, t - back) for back in range(cfg.context, 0, -1))]
            labels = torch.stack([masks[n] if n else first for n in order])
            expected = propagate(features[t], features[order], labels, cfg, backend="reference")
            torch.testing.assert_close(masks[t], expected, rtol=0, atol=1e-12)


def test_which_frames_are_context():
    assert context_of(1, DUL) == (1, 20) and context_of(20, DUL) == (20, 1) and context_of(50, DUL) == (20, 1)
    assert context_of(1, INO) == (0, 1) and context_of(4, INO) == (3, 1) and context_of(50, INO) == (10, 1)


@pytest.mark.parametrize("cfg", [replace(DUL, context=0), replace(INO, context=0), replace(INO, context=1)])
def test_little_or_no_context(cfg):
    frames, truth = zip(*moving(5))
    ours = list(segment_video(frames, {0: truth[0]}, colours, cfg))
    dense = list(segment_video(frames, {0: truth[0]}, colours, cfg, backend="reference"))
    assert (np.stack(ours) == np.stack(dense)).mean() > 0.999
    assert set(np.unique(ours[-1])) == {0, 1, 2}


def test_late_objects_keep_their_ids():
    frames, truth = zip(*moving(10, enters=5))
    names = np.array([0, 200, 7], np.uint8)
    red, both = names[truth[2]], names[truth[5]]
    green = np.where(both == 7, both, np.uint8(0))
    for late in (green, both):  # a later mask may hold or lack the known objects
        ids = list(segment_video(frames, {2: red, 5: late}, colours, DUL))
        assert not ids[0].any() and not ids[1].any()
        assert [set(np.unique(x)) for x in ids[2:]] == [{0, 200}] * 3 + [{0, 7, 200}] * 5
        for number, of in ((200, 1), (7, 2)):
            found, true = ids[-1] == number, truth[-1] == of
            assert (found & true).sum() / (found | true).sum() > 0.5


def test_a_mask_of_known_ids_alone_changes_nothing():
    frames, truth = zip(*moving(6))
    plain = list(segment_video(frames, {0: truth[0]}, colours, DUL))
    again = list(segment_video(frames, {0: truth[0], 3: truth[0], 4: truth[0] * 0}, colours, DUL))
    np.testing.assert_array_equal(np.stack(plain), np.stack(again))


def test_no_mask_at_all_and_no_frame_at_all():
    frames, truth = zip(*moving(3))
    assert not np.stack(list(segment_video(frames, {}, colours, DUL))).any()
    assert list(segment_video([], {}, colours, DUL)) == []
    with pytest.warns(UserWarning, match=r"frames \[7\], but the video has 3 frames"):
        list(segment_video(frames, {0: truth[0], 7: truth[0]}, colours, DUL))


def test_255_objects_each_with_its_own_id():
    rows, columns = np.divmod(np.arange(16 * 16), 16)
    ids = np.zeros((128, 128), np.uint8)
    for number, y, x in zip(range(1, 256), rows, columns):
        ids[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = number
    frames = [np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)] * 3
    for cfg in (replace(DUL, top_k=1), replace(YTVOS, top_k=1)):
        out = list(segment_video(frames, {0: ids}, colours, cfg))
        assert len(np.unique(out[-1])) == 256
        assert (out[-1] == ids).mean() > 0.5  # bilinear resizing to the grid blurs masks of one cell


def test_batches_change_nothing():
    frames, truth = zip(*moving(7))
    calls = []

    def seen(batch):
        calls.append(tuple(batch.shape))
        return colours(batch)

    alone = list(segment_video(frames, {0: truth[0]}, seen, DUL))
    assert calls == [(1, 3, 64, 80)] * 7
    calls.clear()
    together = list(segment_video(iter(frames), {0: truth[0]}, seen, DUL, batch=3))
    assert calls == [(3, 3, 64, 80)] * 2 + [(1, 3, 64, 80)]
    np.testing.assert_array_equal(np.stack(alone), np.stack(together))


def test_holds_no_frame_and_a_bounded_context():
    """In a stream of 300 frames, at most two frames and seven features are in memory at a time."""
    frames_alive, features_alive, most = weakref.WeakSet(), weakref.WeakSet(), [0, 0]

    class Frame(np.ndarray):  # a WeakSet needs a hash, which arrays lack
        __hash__ = object.__hash__

    def stream():
        for frame, _ in moving(300, 32, 32):
            frame = frame.view(Frame)
            frames_alive.add(frame)
            yield frame
            del frame

    def features(batch):
        cells = colours(batch)
        features_alive.add(cells)
        return cells

    _, first = next(moving(1, 32, 32))
    for _ in segment_video(stream(), {0: first}, features, replace(DUL, context=4)):
        most = [max(most[0], len(frames_alive)), max(most[1], len(features_alive))]
    gc.collect()
    assert 1 <= most[0] <= 2 and 1 <= most[1] <= 4 + 3
    assert not frames_alive and not features_alive


def test_context_does_not_grow():
    context = Context(replace(DUL, context=3))
    rng = torch.Generator().manual_seed(0)
    given = torch.rand(2, 6, 6, generator=rng)
    for t in range(20):
        context.step(F.normalize(torch.randn(4, 6, 6, generator=rng), dim=0), given if t == 0 else None)
    assert len(context.frames) == len(context.masks) == 3 and len(context.births) == 1


def test_a_mask_off_by_a_pixel_is_resized_with_a_warning():
    frames, truth = zip(*moving(3))
    with pytest.warns(UserWarning, match="frame 0 is 79x64, its frame 80x64"):
        ids = list(segment_video(frames, {0: truth[0][:, :79]}, colours, DUL))
    assert ids[0].shape == (64, 80) and set(np.unique(ids[0])) == {0, 1, 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(segment_video(frames, {0: truth[0]}, colours, DUL))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f, g: g.update({0: g[0][:32]}), "frame 0 is 80x32, its frame 80x64"),
        (lambda f, g: g.update({0: g[0].T.copy()}), "frame 0 is 64x80, its frame 80x64"),
        (lambda f, g: g.update({0: np.stack([g[0]] * 3, -1)}), "frame 0 is uint8 .*integers"),
        (lambda f, g: g.update({0: g[0] / 255}), "frame 0 is float64"),
        (lambda f, g: g.update({0: g[0].astype(int) * 300}), "holds 0 to 600"),
        (lambda f, g: g.update({-1: g[0]}), "frame -1"),
        (lambda f, g: f.__setitem__(2, f[2][:56]), "frame 2 is 80x56, the frames before it 80x64"),
        (lambda f, g: f.__setitem__(1, f[1][..., 0]), "frame 1 is uint8 .*RGB"),
        (lambda f, g: f.__setitem__(1, f[1] / 255), "frame 1 is float64"),
    ],
)
@pytest.mark.parametrize("batch", [1, 4])
def test_what_does_not_fit_is_named(change, message, batch):
    frames, truth = map(list, zip(*moving(4)))
    given = {0: truth[0]}
    change(frames, given)
    with pytest.raises(UserError, match=message):
        list(segment_video(frames, given, colours, DUL, batch=batch))


@pytest.mark.parametrize(
    "height, width, changes, expected",
    [
        (480, 854, {}, (480, 848)),
        (480, 854, {"multiple": 1, "readout": "smooth", "min_max": False}, (480, 854)),
        (1080, 1920, {"short_side": 480}, (480, 848)),
        (1920, 1080, {"short_side": 480}, (848, 480)),
        (1080, 1920, {"hd_to_720": True}, (720, 1280)),
        (816, 1920, {"hd_to_720": True}, (720, 1280)),
        (720, 1280, {"hd_to_720": True}, (720, 1280)),
        (500, 500, {"short_side": 480}, (480, 480)),
        (1080, 1920, {"max_side": 960}, (536, 960)),
        (1920, 1080, {"max_side": 1000, "multiple": 1}, (1000, 562)),
        (1080, 1920, {"hd_to_720": True, "max_side": 1280}, (720, 1280)),
        (1080, 1920, {"short_side": 480, "max_side": 640}, (360, 640)),
        (480, 854, {"max_side": 854, "multiple": 1}, (480, 854)),
        (8, 4000, {"max_side": 64}, (8, 64)),
        (1080, 1927, {"rounding": "up", "short_side": 480}, (480, 864)),
        (480, 854, {"rounding": "up", "multiple": 14, "short_side": 960}, (966, 1722)),
        (1001, 64, {"rounding": "up"}, (1008, 64)),
        (480, 854, {"rounding": "up", "short_side": 960, "max_side": 1000}, (560, 1000)),
    ],
)
def test_working_size(height, width, changes, expected):
    assert working_size(height, width, replace(INO, **changes)) == expected


@pytest.mark.parametrize("cfg", [DUL, INO])
def test_a_bounded_working_size_still_gives_masks_of_the_videos_own(cfg):
    frames, truth = zip(*moving(6))
    twice = lambda picture: picture.repeat(2, 0).repeat(2, 1)
    seen = []

    def features(batch):
        seen.append(batch)
        return colours(batch)

    small = list(segment_video(frames, {0: truth[0]}, features, cfg))
    large = list(segment_video(map(twice, frames), {0: twice(truth[0])}, features, replace(cfg, max_side=80)))
    for ours, theirs in zip(seen[:6], seen[6:], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert {ids.shape for ids in large} == {(128, 160)}
    # the grid samples the larger mask at other pixels
    assert np.mean([twice(a) == b for a, b in zip(small, large)]) > 0.97


def test_max_side_is_checked():
    with pytest.raises(UserError, match="max_side = 8: must be 16 or more"):
        replace(INO, max_side=8)


@pytest.mark.parametrize("ahead, batch, bad", [(0, 1, 0), (2, 1, 3), (2, 2, 3)])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_features_that_are_no_numbers_are_told_before_the_masks_of_their_frame(ahead, batch, bad, value):
    frames, truth = zip(*moving(6))
    seen, ids = [], []

    def spoilt(inputs):
        features = colours(inputs).clone()
        seen.extend(range(len(seen), len(seen) + len(inputs)))
        if bad in seen:
            features[-1, 0, 1, 1] = value
        return features

    with pytest.raises(UserError, match="not finite.*--precision fp32"):
        ids.extend(segment_video(frames, {0: truth[0]}, spoilt, DUL, batch=batch, ahead=ahead))
    assert len(ids) == bad // batch * batch


def test_what_leaves_no_working_size_is_refused():
    with pytest.raises(UserError, match="propagation.multiple = null: .*Tracker"):
        working_size(100, 100, replace(INO, multiple=None))
    with pytest.raises(UserError, match="100x5 pixels.*multiple = 8"):
        working_size(5, 100, INO)


def test_to_grid_is_a_bilinear_one_hot():
    ids = np.random.default_rng(0).choice(np.array([0, 9, 250], np.uint8), (33, 41))
    onehot = torch.stack([torch.from_numpy(ids == k).float() for k in (0, 9, 250)])
    expected = F.interpolate(onehot[None], (5, 6), mode="bilinear", align_corners=True)[0]
    torch.testing.assert_close(to_grid(ids, [0, 9, 250], (5, 6), DUL, "cpu"), expected)


@pytest.mark.parametrize("cfg", [DUL, INO, YTVOS])
def test_channels_read_a_few_at_a_time_give_the_argmax_of_all(cfg):
    soft = torch.randn(21, 6, 7, generator=torch.Generator().manual_seed(0)).softmax(0)
    ids = list(range(0, 210, 10))
    out = to_ids(soft, ids, (50, 60), (48, 56), cfg)
    size = (50, 60) if cfg.readout == "smooth" else (48, 56)
    full = F.interpolate(soft[None], size, mode="bilinear", align_corners=cfg.readout == "smooth")[0]
    full = stretched(full) if cfg.min_max else full
    expected = nearest(np.array(ids, np.uint8)[full.argmax(0).numpy()], (50, 60))
    np.testing.assert_array_equal(out, expected)


def test_features_of_the_wrong_number_are_a_bug():
    frames, truth = zip(*moving(3))
    with pytest.raises(ValueError, match="for 3 frames"):
        list(segment_video(frames, {0: truth[0]}, lambda batch: colours(batch)[:1], DUL, batch=3))
