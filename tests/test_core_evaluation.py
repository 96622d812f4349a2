import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.errors import UserError
from core.evaluation import davis, jf, report
from core.palette import read_ids, write_indexed

ROOT = Path(__file__).resolve().parents[1]


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


def test_special_cases_equal_the_reference(golden, shared):
    arrays = golden("g8_metrics")
    for name, expected in json.loads(shared("golden/g8_special_cases.json").read_text()).items():
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
    quarter = arrays["long_in"][:76].mean() - arrays["long_in"][224:].mean()  # cuts 0, 75, 150, 224, 299
    assert measured.decay == pytest.approx(quarter, abs=1e-12)


def blobs(rng, shape):
    """A mask of a few boxes, some of them at the border."""
    mask = np.zeros(shape, bool)
    for _ in range(rng.integers(0, 4)):
        y, x = rng.integers(-8, shape[0]), rng.integers(-8, shape[1])
        mask[max(y, 0) : max(y + rng.integers(1, 20), 0), max(x, 0) : max(x + rng.integers(1, 20), 0)] = True
    return mask ^ (rng.random(shape) < rng.choice([0, 0, 0.01]))


def test_cropping_changes_no_bit():
    rng = np.random.default_rng(5)
    for _ in range(300):
        shape = tuple(rng.integers(12, 90, 2))
        truth, prediction, void = blobs(rng, shape), blobs(rng, shape), blobs(rng, shape)
        radius = jf.tolerance_px(shape)
        assert jf.j_and_f(truth, prediction) == (
            jf.jaccard(truth, prediction),
            jf.boundary_f(truth, prediction, radius),
        )
        truth_seen, prediction_seen = truth & ~void, prediction & ~void
        assert jf.j_and_f(truth, prediction, void) == (
            jf.jaccard(truth_seen, prediction_seen),
            jf.boundary_f(truth_seen, prediction_seen, radius),
        )


@pytest.fixture
def folders(tmp_path):
    """Annotations and results of two made sequences; `late` has an object that the first frame lacks."""
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
    (truth / "nothing").mkdir()
    fails("nothing: 0 annotated frames", sequences=["nothing"])
    (truth / "nothing").rmdir()
    shutil.rmtree(masks / "late")
    fails("masks/late: no results")
    write_indexed(truth / "late" / "00000.png", np.full((48, 64), 255, np.uint8))
    (masks / "late").mkdir()
    fails("late/00000.png: marks no object")
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        davis.evaluate(tmp_path / "nowhere", masks)


def test_the_command_writes_the_official_files(folders, tmp_path):
    truth, masks = folders
    (tmp_path / "list.txt").write_text("pair\n")
    command = [sys.executable, ROOT / "evaluate.py", "--annotations", truth, "--results", masks]
    done = subprocess.run(
        [*command, "--sequences", tmp_path / "list.txt", "--out", tmp_path / "out"],
        capture_output=True, text=True, check=True,
    )
    assert "pair_3" in done.stdout and "mean of 2 objects" in done.stdout
    scores = davis.evaluate(truth, masks, ["pair"])
    head, values = (tmp_path / "out" / "global_results-val.csv").read_text().splitlines()
    assert head == "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay"
    assert values.split(",") == [f"{value:.3f}" for value in report.global_row(scores)]
    lines = (tmp_path / "out" / "per-sequence_results-val.csv").read_text().splitlines()
    expected = [f"pair_{s.id},{s.J.mean:.3f},{s.F.mean:.3f}" for s in scores]
    assert lines == ["Sequence,J-Mean,F-Mean", *expected]
    saved = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert saved["objects"]["pair_3"]["F"]["decay"] == scores[1].F.decay
    wrong = subprocess.run([*command[:-1], tmp_path], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ") and "Traceback" not in wrong.stderr
