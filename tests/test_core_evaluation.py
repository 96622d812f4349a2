import json
import shutil

import cv2
import numpy as np
import pytest

from core.errors import UserError
from core.evaluation import davis, jf, report
from core.palette import read_ids, write_indexed


def unpacked(arrays, name, shape):
    count = int(np.prod(shape))
    return np.unpackbits(arrays[name], count=count).reshape(shape).astype(bool)


def test_j_and_f_of_real_masks_equal_the_reference(golden):
    arrays = golden("g8_metrics")
    void = np.zeros(arrays["shape"], bool)
    y0, x0, y1, x1 = arrays["void_box_yxyx"]
    void[y0:y1, x0:x1] = True
    for i, row in enumerate(arrays["JF"]):
        truth, prediction = (unpacked(arrays, f"{kind}{i}", arrays["shape"]) for kind in ("gt", "pred"))
        np.testing.assert_array_equal(jf.contour(truth), unpacked(arrays, f"bmap_gt{i}", arrays["shape"]))
        measured = jf.j_and_f(truth, prediction) + jf.j_and_f(truth, prediction, void)
        np.testing.assert_allclose(measured, row[:4], rtol=0, atol=1e-9)


def test_special_cases_equal_the_reference(golden):
    arrays = golden("g8_metrics")
    for name, expected in golden("g8_special_cases.json").items():
        truth, prediction, void = (
            unpacked(arrays, key, arrays["sp_shape"]) if key in arrays else None
            for key in (f"sp_{kind}_{name}" for kind in ("gt", "pred", "void"))
        )
        measured = jf.j_and_f(truth, prediction, void)
        np.testing.assert_allclose(measured, [expected["J"], expected["F"]], rtol=0, atol=1e-9, err_msg=name)


def test_statistics_equal_the_reference(golden):
    arrays = golden("g8_metrics")
    for values, expected in [
        ("car_shadow_J", "car_shadow_J_stat"),
        ("car_shadow_F", "car_shadow_F_stat"),
        ("dec_in", "dec_out"),
    ]:
        measured = jf.statistics(arrays[values])
        np.testing.assert_allclose(measured, arrays[expected], rtol=0, atol=1e-9, err_msg=values)


def test_long_sequences_have_a_decay(golden):
    arrays = golden("g8_metrics")
    measured = jf.statistics(arrays["long_in"])
    np.testing.assert_allclose(measured[:2], arrays["long_out"][:2], rtol=0, atol=1e-9)
    quarter = arrays["long_in"][:76].mean() - arrays["long_in"][224:].mean()  # quarters 0-75, 75-150, 150-224, 224-299
    assert measured.decay == pytest.approx(quarter, abs=1e-12)


def blobs(rng, shape):
    """A random mask of at most three boxes, some at the border, sometimes with noise."""
    mask = np.zeros(shape, bool)
    for _ in range(rng.integers(0, 4)):
        y, x = rng.integers(-8, shape[0]), rng.integers(-8, shape[1])
        mask[max(y, 0) : max(y + rng.integers(1, 20), 0), max(x, 0) : max(x + rng.integers(1, 20), 0)] = True
    return mask ^ (rng.random(shape) < rng.choice([0, 0, 0.01]))


def contour_points(mask):
    """Reference: pixels (y, x) that differ from the neighbour to the right, below, or below right; [n,2]."""
    (H, W), mask = mask.shape, mask.tolist()
    points = [
        (y, x)
        for y in range(H)
        for x in range(W)
        if any(mask[b][r] != mask[y][x] for b, r in ((y, x + 1), (y + 1, x), (y + 1, x + 1)) if b < H and r < W)
    ]
    return np.array(points).reshape(-1, 2)


def plain_j_and_f(truth, prediction, radius):
    """Reference: J and F from the distances between all contour pixels of the full masks."""
    either = int((truth | prediction).sum())
    J = int((truth & prediction).sum()) / either if either else 1.0
    a, b = contour_points(truth), contour_points(prediction)
    if not len(a) or not len(b):
        return J, float(len(a) == len(b))
    near = ((a[:, None] - b[None]) ** 2).sum(2) <= radius**2
    recall, precision = int(near.any(1).sum()) / len(a), int(near.any(0).sum()) / len(b)
    return J, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_j_and_f_equal_plain_loops_to_the_last_bit():
    rng = np.random.default_rng(5)
    for _ in range(120):
        shape = tuple(rng.integers(1, 60, 2))
        truth, prediction, void = blobs(rng, shape), blobs(rng, shape), blobs(rng, shape)
        radius = int(rng.integers(1, 12))
        expected = plain_j_and_f(truth, prediction, radius)
        assert jf.j_and_f(truth, prediction, radius=radius) == expected
        seen = plain_j_and_f(truth & ~void, prediction & ~void, radius)
        assert jf.j_and_f(truth, prediction, void, radius) == seen


def test_j_and_f_of_extreme_masks_equal_plain_loops():
    shape = (19, 40)
    masks = {"empty": np.zeros(shape, bool), "whole": np.ones(shape, bool)}
    for name, at in {
        "first": np.s_[0, 0],
        "last": np.s_[-1, -1],
        "inner": np.s_[10, 17],
        "top": np.s_[0, :],
        "right": np.s_[:, -1],
        "bottom": np.s_[-1:, 5:9],
        "left half": np.s_[:, :20],
        "but a corner": np.s_[1:, 1:],
    }.items():
        masks[name] = np.zeros(shape, bool)
        masks[name][at] = True
    for radius in (1, 8, 40):
        for a, truth in masks.items():
            for b, prediction in masks.items():
                expected = plain_j_and_f(truth, prediction, radius)
                assert jf.j_and_f(truth, prediction, radius=radius) == expected, (a, b, radius)
    void = masks["left half"]
    assert jf.j_and_f(masks["whole"], ~void, void, 8) == (1, 1) == jf.j_and_f(void, masks["inner"] & void, void, 8)


def test_widening_is_a_dilation_by_a_disk():
    rng = np.random.default_rng(6)
    for radius, shape in [(1, (9, 5)), (8, (480, 300)), (18, (200, 90)), (23, (30, 410))]:
        edges = rng.random((2, *shape)) < 0.003
        edges[0, 0, 0] = edges[1, -1, -1] = True
        bands = jf.widened(np.stack([jf.banded(edge, radius) for edge in edges]), radius)
        reach = np.arange(-radius, radius + 1)
        disk = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.uint8)
        for edge, near in zip(edges, bands):
            pictures = np.unpackbits(near[None], axis=0, bitorder="little").reshape(-1, shape[1])
            np.testing.assert_array_equal(pictures[: len(edge)], cv2.dilate(edge.view(np.uint8), disk))


@pytest.fixture
def folders(tmp_path):
    """Annotations and results of two sequences; object 4 of `late` is not in the first frame."""
    for name, ids in [("pair", (1, 3)), ("late", (2,))]:
        for t in range(6):
            mask = np.zeros((48, 64), np.uint8)
            for n, id in enumerate(ids):
                mask[5 + t : 25 + t, 5 + 30 * n : 25 + 30 * n] = id
            if name == "late" and t >= 2:
                mask[40:46, 50:60] = 4
            write_indexed(tmp_path / "truth" / name / f"{t:05d}.png", mask)
            write_indexed(tmp_path / "masks" / name / f"{t:05d}.png", np.roll(mask, 2, axis=1))
    return tmp_path / "truth", tmp_path / "masks"


def test_folders_give_the_scores_of_their_arrays(folders):
    scores = davis.evaluate(*folders, workers=1)
    assert [s.name for s in scores] == ["late_2", "pair_1", "pair_3"] and {s.frames for s in scores} == {4}
    for score in scores:
        files = [f"{score.sequence}/{t:05d}.png" for t in range(1, 5)]
        rows = [jf.j_and_f(*(read_ids(folder / file) == score.id for folder in folders)) for file in files]
        assert [jf.statistics(measure) for measure in zip(*rows)] == [score.J, score.F]
        assert score.by_frame == tuple(rows)
    total = davis.overall(scores)
    assert total.J.mean == pytest.approx(np.mean([s.J.mean for s in scores]), abs=1e-15)
    assert davis.evaluate(*folders, sequences=["pair", "late"], workers=2) == scores[1:] + scores[:1]
    assert davis.evaluate(*folders, sequences=["late", "late"]) == scores[:1]


def test_objects_never_predicted_count_as_empty_and_void_for_nothing(folders):
    truth, masks = folders
    for t in range(6):
        mask = read_ids(truth / "pair" / f"{t:05d}.png")
        write_indexed(masks / "pair" / f"{t:05d}.png", np.where(mask == 3, 0, mask).astype(np.uint8))
        if t:
            mask[:, :10] = 255
            write_indexed(truth / "pair" / f"{t:05d}.png", mask)
    kept, lost = davis.evaluate(truth, masks, ["pair"])
    assert (kept.J.mean, kept.F.mean) == (1, 1) and (lost.J.mean, lost.F.mean) == (0, 0)


def test_small_objects_in_large_frames_are_scored_with_the_frames_tolerance(tmp_path):
    rng = np.random.default_rng(7)
    truth, masks = (np.zeros((5, 300, 410), np.uint8) for _ in range(2))
    for ids in (truth, masks):
        for t in range(5):
            for id in (7, 2):
                y, x = rng.integers(100, 120, 2)
                ids[t, y : y + 30, x : x + 20] = id
    truth[1:, 110:115] = davis.VOID
    for t in range(5):
        write_indexed(tmp_path / "truth/one" / f"{t}.png", truth[t])
        write_indexed(tmp_path / "masks/one" / f"{t}.png", masks[t])
    scores = davis.evaluate(tmp_path / "truth", tmp_path / "masks")
    assert [score.id for score in scores] == [2, 7]
    for score in scores:
        seen = [((truth[t] == score.id), (masks[t] == score.id) & (truth[t] != davis.VOID)) for t in (1, 2, 3)]
        rows = [plain_j_and_f(a[80:170, 80:170], b[80:170, 80:170], radius=5) for a, b in seen]
        assert [jf.statistics(measure) for measure in zip(*rows)] == [score.J, score.F]


def test_processes_start_where_there_is_enough_to_do(folders, monkeypatch):
    pairs = [tuple(folder / name for folder in folders) for name in ("late", "pair")]  # 12 frames
    monkeypatch.setattr(davis.os, "cpu_count", lambda: 4)
    assert davis.worthwhile_workers(pairs) == 1
    for frames, workers in [(12, 1), (6, 2), (5, 2), (4, 3), (1, 4)]:
        monkeypatch.setattr(davis, "FRAMES_A_WORKER", frames)
        assert davis.worthwhile_workers(pairs) == workers


def test_mistakes_name_the_file(folders, tmp_path):
    truth, masks = folders
    broken = masks / "pair" / "00002.png"

    def fails(message, **options):
        with pytest.raises(UserError, match=message):
            davis.evaluate(truth, masks, workers=1, **options)

    good = read_ids(broken)
    broken.unlink()
    fails("pair/00002.png: there is no such mask")
    write_indexed(broken, good[:-1])
    fails("pair/00002.png: 64x47 pixels .* 64x48")
    write_indexed(broken, np.where(good == 0, 9, good).astype(np.uint8))
    fails(r"pair/00002.png: holds id 9; .*\[1, 3\]")
    with pytest.raises(UserError, match="pair/00002.png: holds id 9"):
        davis.evaluate(truth, masks, workers=2)
    write_indexed(broken, good)
    fails("/pairs: there is no such sequence, did you mean 'pair'", sequences=["pairs"])
    for folder in (truth, masks):
        (folder / "nothing").mkdir()
    fails("nothing: 0 annotated frames", sequences=["nothing"])
    for folder in (truth, masks):
        (folder / "nothing").rmdir()
    (truth / "late" / "00002.png").rename(tmp_path / "kept.png")
    fails("truth/late/00002.png: missing")
    (tmp_path / "kept.png").rename(truth / "late" / "00002.png")
    shutil.rmtree(masks / "late")
    fails("masks: no results .*late", sequences=["pair", "late"])
    assert [score.name for score in davis.evaluate(truth, masks)] == ["pair_1", "pair_3"]
    (masks / "late").mkdir()
    fails("late/00001.png: there is no such mask")
    write_indexed(truth / "late" / "00000.png", np.zeros((48, 64), np.uint8))
    fails("late/00000.png: marks no object")
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        davis.evaluate(tmp_path / "nowhere", masks)


def test_the_official_files_are_written_as_fractions_and_the_table_in_percent(folders, tmp_path):
    scores = davis.evaluate(*folders, ["pair"])
    report.write(scores, tmp_path / "out")
    head, values = (tmp_path / "out" / "global_results-val.csv").read_text().splitlines()
    assert head == "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay"
    assert values.split(",") == [f"{value:.3f}" for value in report.row(davis.overall(scores))]
    lines = (tmp_path / "out" / "per-sequence_results-val.csv").read_text().splitlines()
    expected = [f"pair_{s.id},{s.J.mean:.3f},{s.F.mean:.3f}" for s in scores]
    assert lines == ["Sequence,J-Mean,F-Mean", *expected]
    saved = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert saved["objects"]["pair_3"]["F"]["decay"] == scores[1].F.decay
    rows = [line.split() for line in report.table(scores).splitlines()]
    assert rows[0][:3] == ["percent", "J&F", "J-Mean"] and rows[1][2] == f"{100 * scores[0].J.mean:.1f}"


def test_all_ids_are_one_object_in_2016(folders):
    truth, masks = folders
    davis_2017 = davis.evaluate(truth, masks, ["pair"])
    one = davis.evaluate(truth, masks, ["pair"], single=True)
    assert [score.name for score in one] == ["pair_1"]
    files = [f"pair/{t:05d}.png" for t in range(1, 5)]
    rows = [jf.j_and_f(read_ids(truth / file) > 0, read_ids(masks / file) > 0) for file in files]
    assert [jf.statistics(measure) for measure in zip(*rows)] == [one[0].J, one[0].F]
    for t in range(6):  # other ids, void in the truth, white in the prediction: still one object
        mask = read_ids(truth / f"pair/{t:05d}.png") * 7
        mask[:, 60:] = 255
        write_indexed(truth / f"pair/{t:05d}.png", mask)
        predicted = (read_ids(masks / f"pair/{t:05d}.png") > 0) * np.uint8(255)
        write_indexed(masks / f"pair/{t:05d}.png", predicted)
    assert davis.evaluate(truth, masks, ["pair"], single=True) == one != davis_2017


@pytest.mark.parametrize("single", [False, True])
def test_white_alone_is_an_object_and_no_void(folders, single):
    truth, masks = folders
    expected = davis.evaluate(truth, masks, ["pair"], single=True)
    for t in range(6):
        mask = (read_ids(truth / f"pair/{t:05d}.png") > 0) * np.uint8(255)
        write_indexed(truth / f"pair/{t:05d}.png", mask)
        write_indexed(masks / f"pair/{t:05d}.png", np.minimum(read_ids(masks / f"pair/{t:05d}.png"), 1))
    assert davis.evaluate(truth, masks, ["pair"], single=single) == expected
