import io
import re
import shutil
import sys

import numpy as np
import pytest

import evaluate
from core.palette import write_indexed, write_picture


def fill(folder, ids, suffix="png"):
    """Write six masks of one object that moves; with suffix jpg, six frames."""
    for t in range(6):
        mask = np.zeros((48, 64), np.uint8)
        mask[5 + t : 25 + t, 5:25] = ids
        path = folder / f"{t:05d}.{suffix}"
        write_indexed(path, mask) if suffix == "png" else write_picture(path, np.stack([mask] * 3, 2))


@pytest.fixture
def data(tmp_path):
    """A data set with three annotated sequences, and results of two of them."""
    for name in ("bear", "dog", "swan"):
        fill(tmp_path / "davis/Annotations/480p" / name, 1)
        fill(tmp_path / "davis/JPEGImages/480p" / name, 200, "jpg")
    for name in ("bear", "dog"):
        fill(tmp_path / "out/res4_vos" / name, 1)
        fill(tmp_path / "out/res4_vis" / name, 200, "jpg")
    return tmp_path


@pytest.fixture
def told(data, called):
    """Runs the program on folders of `data` -> (exit code, output)."""

    def run(annotations, results, *options):
        return called(evaluate.main, "--annotations", data / annotations, "--results", data / results, *options)

    return run


TRUTH, MASKS = "davis/Annotations/480p", "out/res4_vos"


def test_what_the_results_hold_is_scored_and_told(told, data):
    code, text = told(TRUTH, MASKS, "--out", data / "scores")
    assert code == 0 and "mean of 2 objects" in text and "percent" in text and "100.0" in text
    assert str(data / TRUTH) in text and str(data / MASKS) in text and "8 frames of 2 sequences" in text
    assert "without results: 1 sequences: swan" in text and (data / "scores/scores.json").is_file()
    assert (data / "scores/report.html").read_text().count("data:image/jpeg") == 16  # 2 sequences, 4 frames, 2 sides
    fill(data / MASKS / "emu", 1)
    assert "without annotation: 1 sequences: emu" in told(TRUTH, MASKS)[1]


def test_named_sequences_must_have_results(told, data):
    for name in ("ImageSets/2017", "ImageSets/2016"):
        (data / "davis" / name).mkdir(parents=True)
    (data / "davis/ImageSets/2017/val.txt").write_text("bear\nswan\n")
    pairs = [f"/JPEGImages/480p/dog/{t:05d}.jpg /Annotations/480p/dog/{t:05d}.png\n" for t in range(6)]
    (data / "davis/ImageSets/2016/val.txt").write_text("".join(pairs))
    (data / "list.txt").write_text("dog\n\nbear\n")
    code, text = told(TRUTH, MASKS, "--split", "val")
    assert code == 2 and "no results for 1 of 2 sequences: swan" in text
    code, text = told(TRUTH, MASKS, "--split", "val", "--year", "2016")
    assert code == 0 and "dog_1" in text and "4 frames of 1 sequence " in text
    for option, code, words in [
        ("dog, bear", 0, "8 frames of 2 sequences"),
        (data / "list.txt", 0, "8 frames of 2 sequences"),
        ("dog,swan", 2, "no results for 1 of 2 sequences: swan"),
        ("dgo", 2, "did you mean 'dog'"),
        (",", 2, "names no sequence"),
        ("nowhere.txt", 2, "cannot read the list"),
    ]:
        answer = told(TRUTH, MASKS, "--sequences", option)
        assert answer[0] == code and words in answer[1] and "left out" not in answer[1], answer
    assert "ImageSets/2017/train.txt: missing" in told(TRUTH, MASKS, "--split", "train")[1]


@pytest.mark.parametrize(
    "annotations, results, words",
    [
        (MASKS, TRUTH, "exchanged"),
        (TRUTH, TRUTH, "as annotations and as results"),
        (TRUTH, "out", "did you mean .*out/res4_vos\\?"),
        ("davis", MASKS, "did you mean .*davis/Annotations/480p\\?"),
        ("davis/Annotations", MASKS, "did you mean .*davis/Annotations/480p\\?"),
        (".", MASKS, "did you mean .*480p or .*res4_vos\\?"),
        (TRUTH, MASKS + "/bear", "one sequence; .*did you mean .*res4_vos\\?"),
        (TRUTH, "out/res4_vis", "frames .*did you mean .*res4_vos\\?"),
        ("davis/JPEGImages/480p", MASKS, "frames .*did you mean .*Annotations/480p\\?"),
        (TRUTH, "nowhere", "no such folder"),
    ],
)
def test_wrong_folders_are_named(told, annotations, results, words):
    code, text = told(annotations, results)
    assert code == 2 and re.search(words, text) and "percent" not in text, text


def test_exchange_is_noticed_by_the_record_and_by_the_layout(told, data):
    (data / "out/res4_vos").rename(data / "out/masks")
    assert told("out/masks", TRUTH)[0] == 2
    shutil.copytree(data / TRUTH, data / "plain")
    assert told("out/masks", "plain")[0] == 0
    (data / "out/res4_origin.json").write_text("{}")
    code, text = told("out/masks", "plain")
    assert code == 2 and "exchanged" in text


def test_a_gap_in_the_annotations_names_the_frame(told, data):
    gap = data / TRUTH / "dog/00002.png"
    gap.unlink()
    code, text = told(TRUTH, MASKS)
    assert code == 2 and f"{gap}: " in text
    (data / MASKS / "dog/00002.png").unlink()
    code, text = told(TRUTH, MASKS)
    assert code == 2 and f"{gap}: " in text
    for folder in (TRUTH, MASKS):  # frame numbers from 15 in steps of 5
        for t, path in enumerate(sorted((data / folder / "dog").iterdir())):
            path.rename(path.with_name(f"{15 + 5 * t:05d}.png"))
    assert told(TRUTH, MASKS)[0] == 0
    (data / TRUTH / "dog/00035.png").unlink()
    assert "dog/00035.png: " in told(TRUTH, MASKS)[1]


def test_folders_without_a_sequence_in_common_are_named(told, data):
    fill(data / "others/emu", 1)
    code, text = told(TRUTH, "others")
    assert code == 2 and "emu" in text and "bear" in text


def test_many_names_are_no_name_of_a_file(told):
    code, text = told(TRUTH, MASKS, "--sequences", ",".join(f"sequence{i}" for i in range(100)))
    assert code == 2 and "no such sequence" in text


def test_names_that_are_no_text_are_shown(data, monkeypatch):
    for folder in (TRUTH, MASKS):
        fill(data / folder / "emu\udcff", 1)
    strict = io.TextIOWrapper(io.BytesIO(), "utf-8")
    words = ["evaluate.py", "--annotations", data / TRUTH, "--results", data / MASKS, "--out", data / "out"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    monkeypatch.setattr(sys, "stdout", strict)
    evaluate.main()
    strict.flush()
    assert "emu\\udcff" in (data / "out/per-sequence_results-val.csv").read_text(encoding="utf-8")
    assert b"emu\\udcff" in strict.buffer.getvalue()
