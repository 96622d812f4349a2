import json
import shutil
import signal
import subprocess
import sys
from zipfile import ZipFile

import cv2
import numpy as np
import pytest
import torch
import torch._dynamo
from PIL import Image

import infer_vos
import models
from core import checkpoint, distributed
from core.palette import read_ids, write_indexed
from core.schema import as_plain
from tests.programs import ROOT, Program


@pytest.fixture
def data(tmp_path, narrow):
    """DAVIS layout: two sequences of five frames, with one and two objects that move over noise."""
    rng = np.random.default_rng(0)
    for name, ids in (("pair", (1, 2)), ("single", (1,))):
        ground = rng.integers(0, 80, (48, 64, 3), np.uint8)
        for t in range(5):
            frame, mask = ground.copy(), np.zeros((48, 64), np.uint8)
            for id in ids:
                box = np.s_[4 + t : 24 + t, 30 * id - 26 : 30 * id - 4]
                frame[box] = (200, 40 * id, 90)
                mask[box] = id
            image = tmp_path / "data/JPEGImages/480p" / name / f"{t:05d}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(image)
            write_indexed(tmp_path / "data/Annotations/480p" / name / f"{t:05d}.png", mask)
    (tmp_path / "data/ImageSets/2017").mkdir(parents=True)
    (tmp_path / "data/ImageSets/2017/val.txt").write_text("single\npair\n")
    return tmp_path / "data"


def untrained(data, out, *more):
    return (
        "--checkpoint", "untrained", "--dataset", "davis", "--data", data, "--out", out,
        "--device", "cpu", *more,
    )  # fmt: skip


def masks(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.png")}


def test_masks_scores_and_going_on(program, data, tmp_path):
    out = tmp_path / "out"
    code, told = program(*untrained(data, out, "--key", "res3"))
    assert code == 0 and "pair_2" in told and "mean of 3 objects" in told and "[2/2] pair: 5 frames" in told
    assert len(masks(out / "res3_vos")) == 10 and len(list((out / "res3_vis").rglob("*.jpg"))) == 10
    first = (out / "res3_scores/global_results-val.csv").read_text()
    page = (out / "res3_scores/report.html").read_text()
    assert page.count("data:image/jpeg") == 12 and '["protocol","DUL: window disc' in page
    assert json.loads((out / "res3_scores/scores.json").read_text())["objects"]["pair_1"]["frames"] == 3

    code, told = program(*untrained(data, out, "--key", "res3"))
    assert code == 0 and told.count("finished before") == 2
    assert (out / "res3_scores/global_results-val.csv").read_text() == first

    again = tmp_path / "again"
    assert program(*untrained(data, again, "--key", "res3", "--no-vis"))[0] == 0
    assert masks(again / "res3_vos") == masks(out / "res3_vos") and not (again / "res3_vis").exists()


def test_annotations_a_pixel_larger_are_followed_and_not_scored(program, data, tmp_path):
    last = data / "Annotations/480p/pair/00002.png"
    write_indexed(last, np.pad(read_ids(last), ((0, 1), (0, 0))))
    code, told = program(*untrained(data, tmp_path / "out", "--key", "res3"))
    assert code == 0 and "single_1" in told and "pair_1" not in told
    assert "no J&F of pair (1 of 2 sequences): annotation 00002.png has 64x49 pixels, the frames 64x48" in told


def test_memory_that_does_not_suffice_is_told(program, data, tmp_path, monkeypatch):
    def too_large(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(infer_vos.runner, "run", too_large)
    code, told = program(*untrained(data, tmp_path / "out"))
    assert code == 2 and "--batch 1, or a smaller --max-side" in told


def test_masks_of_different_origin_are_not_mixed(program, data, tmp_path):
    out = tmp_path / "out"
    assert program(*untrained(data, out, "--sequences", "single"))[0] == 0
    other = untrained(data, out, "--sequences", "pair", "--set", "seed=1")
    code, told = program(*other)
    assert code == 2 and "another origin (differs: weights" in told and "--overwrite" in told
    code, told = program(*other, "--overwrite")  # would delete the masks of "single" and not make them again
    assert code == 2 and "leave out --sequences" in told
    assert [folder.name for folder in (out / "res4_vos").iterdir()] == ["single"]
    (out / "res4_origin.json").write_text("[]")  # not a valid record
    code, told = program(*other)
    assert code == 2 and "another origin (differs: weights" in told
    assert program(*untrained(data, out, "--set", "seed=1"), "--overwrite")[0] == 0
    assert sorted(folder.name for folder in (out / "res4_vos").iterdir()) == ["pair", "single"]


def test_protocols_are_applied_and_written_down(program, data, tmp_path):
    origin = lambda folder: json.loads((tmp_path / folder / "res3_origin.json").read_text())
    few = ("--key", "res3", "--sequences", "single", "--no-vis")
    own, ino = (untrained(data, tmp_path / name, *few) for name in ("own", "ino"))
    assert program(*own)[0] == 0 and program(*ino, "--protocol", "INO", "--set", "propagation.short_side=56")[0] == 0
    assert origin("own")["protocol"] == "DUL" and origin("own")["propagation"]["multiple"] == 1
    assert origin("ino")["protocol"] == "INO" and origin("ino")["weights"] == origin("own")["weights"]
    used = origin("ino")["propagation"]
    assert (used["radius"], used["multiple"], used["readout"], used["short_side"]) == (40, 8, "grid", 56)
    assert masks(tmp_path / "ino/res3_vos") != masks(tmp_path / "own/res3_vos")
    code, told = program(*own, "--protocol", "DINO")
    assert code == 2 and "another origin (differs: protocol, propagation" in told


@pytest.mark.parametrize(
    "model, key, cell_px, protocol",
    [("vit_tiny_patch16_224", "block9", 16, "DINO"), ("convnext_atto", "stage2", 8, "DINOv3")],
)
def test_networks_of_timm(program, data, tmp_path, model, key, cell_px, protocol):
    timm = pytest.importorskip("timm", reason="timm is optional: python -m pip install -r requirements-optional.txt")
    common = (
        "--dataset", "davis", "--data", data, "--device", "cpu", "--key", key, "--no-vis", "--protocol", protocol,
        "--set", "propagation.short_side=64",
    )  # fmt: skip
    torch.manual_seed(0)
    torch.save(timm.create_model(model, num_classes=0).state_dict(), tmp_path / "weights.pth")
    code, told = program("--checkpoint", f"timm:{model}@{tmp_path / 'weights.pth'}", *common, "--out", tmp_path / "a")
    assert code == 0 and "mean of 3 objects" in told and len(masks(tmp_path / f"a/{key}_vos")) == 10
    origin = json.loads((tmp_path / f"a/{key}_origin.json").read_text())
    assert (origin["network"], origin["protocol"]) == ("Timm", protocol)
    assert (origin["propagation"]["multiple"], origin["propagation"]["context"]) == (cell_px, 7)

    assert program("--checkpoint", f"timm:{model}@untrained", *common, "--out", tmp_path / "b")[0] == 0
    assert masks(tmp_path / f"b/{key}_vos") == masks(tmp_path / f"a/{key}_vos")  # also made with seed 0
    code, told = program("--checkpoint", "timm:vit_tini_patch16_224", *common, "--out", tmp_path / "c")
    assert code == 2 and "did you mean 'vit_tiny_patch16_224'" in told and not (tmp_path / "c").exists()


def test_our_checkpoint_holds_all_that_is_needed(program, data, tmp_path):
    config = models.read_config(models.UNTRAINED, ["seed=3", "propagation.context=2"])
    method = models.build(config)
    path = tmp_path / "best.pth"
    checkpoint.save(path, {"method": method.state_dict(), "config": as_plain(config)})
    common = ("--dataset", "davis", "--data", data, "--sequences", "single", "--device", "cpu", "--no-vis")
    assert program("--checkpoint", path, *common, "--out", tmp_path / "a")[0] == 0
    drawn = ("--set", "seed=3", "--set", "propagation.context=2")
    assert program("--checkpoint", "untrained", *drawn, *common, "--out", tmp_path / "b")[0] == 0
    assert masks(tmp_path / "a/res4_vos") == masks(tmp_path / "b/res4_vos")

    state = method.state_dict()
    lost = sorted(state)[3]
    del state[lost]
    checkpoint.save(path, {"method": state, "config": as_plain(config)})
    code, told = program("--checkpoint", path, *common, "--out", tmp_path / "c")
    assert code == 2 and f"missing: {lost}" in told


def test_lists_and_youtube_vos(program, data, tmp_path):
    rows = [f"{t % 2} JPEGImages/480p/pair/{t:05d}.jpg Annotations/480p/pair/{t:05d}.png" for t in range(5)]
    (tmp_path / "list.txt").write_text("\n".join(rows))
    base = ("--checkpoint", "untrained", "--device", "cpu", "--no-vis", "--key", "key")
    code, told = program(*base, "--list", tmp_path / "list.txt", "--data", data, "--out", tmp_path / "a")
    assert code == 0 and "no J&F" in told
    assert sorted(masks(tmp_path / "a/key_vos")) == ["pair/00001.png", "pair/00003.png"]

    valid = tmp_path / "ytvos/valid"
    shutil.copytree(data / "JPEGImages/480p/pair", valid / "JPEGImages/pair")
    shutil.copytree(valid / "JPEGImages", tmp_path / "ytvos/valid_all_frames/JPEGImages")
    for t in (1, 3):
        (valid / f"JPEGImages/pair/{t:05d}.jpg").unlink()
    born = np.zeros((48, 63), np.uint8)  # one pixel narrower than the frames
    born[6:26, 4:26] = 9
    write_indexed(valid / "Annotations/pair/00002.png", born)
    with pytest.warns(UserWarning, match="frame 2 is 63x48, its frame 64x48: resized"):
        code, told = program(*base, "--dataset", "ytvos", "--data", tmp_path / "ytvos", "--out", tmp_path / "b")
    assert code == 0
    written = {name: read_ids(tmp_path / "b/key_vos/pair" / f"{name}.png") for name in ("00000", "00002", "00004")}
    assert len(masks(tmp_path / "b/key_vos")) == 3
    assert not written["00000"].any() and all(ids.shape == (48, 64) for ids in written.values())
    assert set(np.unique(written["00002"])) == set(np.unique(written["00004"])) == {0, 9}

    with ZipFile(tmp_path / "b/Annotations.zip") as archive:
        assert archive.namelist() == [f"Annotations/pair/0000{t}.png" for t in (0, 2, 4)]
    assert json.loads((tmp_path / "b/key_origin.json").read_text())["remark"] is None
    assert f"ready to be submitted: {tmp_path / 'b/Annotations.zip'} (3 masks; videos: 1)" in told
    shutil.rmtree(tmp_path / "ytvos/valid_all_frames")
    few = ("--dataset", "ytvos", "--data", tmp_path / "ytvos", "--out", tmp_path / "c", "--sequences", "pair")
    with pytest.warns(UserWarning, match="every fifth frame"):
        code, told = program(*base, *few)
    assert code == 0 and "no Annotations.zip" in told and not (tmp_path / "c/Annotations.zip").exists()
    assert "every fifth frame" in json.loads((tmp_path / "c/key_origin.json").read_text())["remark"]


def test_a_mask_that_spoils_the_zip_is_named_and_leaves_no_older_zip(program, data, tmp_path):
    valid = tmp_path / "ytvos/valid"
    for kind in ("JPEGImages", "Annotations"):
        shutil.copytree(data / kind / "480p/single", valid / kind / "single")
    common = ("--checkpoint", "untrained", "--device", "cpu", "--no-vis", "--key", "res3", "--out", tmp_path / "out")
    with pytest.warns(UserWarning, match="every fifth frame"):
        assert program(*common, "--dataset", "ytvos", "--data", tmp_path / "ytvos")[0] == 0
        write_indexed(tmp_path / "out/res3_vos/single/00003.png", np.full((48, 64), 5, np.uint8))
        code, told = program(*common, "--dataset", "ytvos", "--data", tmp_path / "ytvos")
    assert code == 2 and "single/00003.png: holds id 5" in told
    assert not (tmp_path / "out/Annotations.zip").exists()


@pytest.mark.parametrize(
    "more, message",
    [
        (("--key", "res5"), "--key: layer = 'res5': must be one of"),
        (("--sequences", "pear"), "sequence 'pear' does not exist, did you mean 'pair'"),
        (("--max-side", "1"), "--max-side: propagation.max_side = 1: must be 16 or more"),
        (("--set", "propagation.topk=3"), "did you mean 'top_k'"),
    ],
)
def test_mistakes(program, data, tmp_path, more, message):
    code, told = program(*untrained(data, tmp_path / "deep/out", *more))
    assert code == 2 and message in told
    assert not (tmp_path / "deep").exists()


def test_a_protocol_and_its_changes_are_applied_to_any_data(data):
    """INO takes INO_ytvos on YouTube-VOS.  --protocol discards changes of the configuration; --set always applies."""
    extractor = models.load("untrained", models.ROOT / "configs/ino_sample.yaml")
    chosen = {}
    for dataset, more in (("ytvos", []), ("davis", []), ("ytvos", ["--protocol", "INO"])):
        words = ["--dataset", dataset, "--data", str(data), "--out", "out", "--set", "propagation.top_k=3", *more]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["infer_vos.py", *words])
            patch.setattr(models, "load", lambda *_: extractor)
            tracker, protocol = infer_vos.tracker_of(infer_vos.parse(), torch.device("cpu"))
        numbers = tracker.propagation
        chosen[(dataset, *more)] = (protocol, numbers.radius, numbers.context, numbers.top_k)
    assert chosen == {  # the configuration of ino_sample changes the radius to 8
        ("ytvos",): ("INO_ytvos", 8, 20, 3),
        ("davis",): ("INO", 8, 10, 3),
        ("ytvos", "--protocol", "INO"): ("INO", 40, 10, 3),
    }


def test_a_damaged_frame_is_named(program, data, tmp_path):
    frame = data / "JPEGImages/480p/pair/00003.jpg"
    frame.write_bytes(frame.read_bytes()[:700])
    code, told = program(*untrained(data, tmp_path / "out"))
    assert code == 2 and "pair/00003.jpg: the JPEG breaks off" in told
    assert [folder.name for folder in (tmp_path / "out/res4_vos").iterdir()] == ["single"]
    assert "the same command goes on" in told
    code, told = program(*untrained(data, tmp_path / "deep/out", "--sequences", "pair"))
    assert code == 2 and "goes on" not in told and not (tmp_path / "deep").exists()


def test_a_repainted_mask_is_followed_anew(program, data, tmp_path):
    arguments = untrained(data, tmp_path / "out", "--no-vis", "--key", "res3", "--sequences", "single")
    assert program(*arguments)[0] == 0
    mask = data / "Annotations/480p/single/00000.png"
    ids = read_ids(mask)
    ids[:12] = 0
    write_indexed(mask, ids)
    code, told = program(*arguments)
    assert code == 0 and f"1 object: 1 ({(ids == 1).sum()} px); masks changed: done again" in told
    assert (read_ids(tmp_path / "out/res3_vos/single/00000.png") == ids).all()
    assert {path.suffix for path in (tmp_path / "out/res3_vos").rglob("*") if path.is_file()} == {".png"}


def test_an_empty_mask_is_reported_before_any_work(program, data, tmp_path):
    write_indexed(data / "Annotations/480p/pair/00000.png", np.zeros((48, 64), np.uint8))
    code, told = program(*untrained(data, tmp_path / "out"))
    assert code == 2 and told.count("pair:") == 1 and "single" not in told and not (tmp_path / "out").exists()


def test_warnings_name_masks_that_look_wrong(program, data, tmp_path):
    for name in ("single", "pair"):
        mask = data / f"Annotations/480p/{name}/00000.png"
        ids = np.where(read_ids(mask) > 0, np.uint8(255), np.uint8(0))
        if name == "pair":
            ids = cv2.blur(ids, (7, 7))
        Image.fromarray(ids).save(mask)
        for t in range(1, 5):
            mask.with_name(f"{t:05d}.png").unlink()
    with pytest.warns(UserWarning) as caught:
        code, told = program(*untrained(data, tmp_path / "out", "--no-vis"))
    one, soft = (str(warning.message) for warning in caught)
    assert "single/00000.png: holds 0 and 255 alone" in one and "pair/00000.png: most of its objects are specks" in soft
    assert code == 0 and "1 object: 1 (440 px)" in told and " ..., " in told
    assert set(np.unique(read_ids(tmp_path / "out/res4_vos/single/00000.png"))) == {0, 1}


def test_ctrl_c_leaves_nothing_half_written(data, tmp_path):
    frames = data / "JPEGImages/480p/single"
    for t in range(5, 400):
        shutil.copy(frames / "00004.jpg", frames / f"{t:05d}.jpg")
    out = tmp_path / "out"
    running = Program(tmp_path / "printed", "infer_vos", *untrained(data, out))
    running.until(lambda: [*out.glob("res4_vos/.single.part/*.png")])
    running.signal(signal.SIGINT)
    code, _, told = running.ended()
    assert code == 130 and told.strip().endswith("interrupted") and "Traceback" not in told
    assert not masks(out) and not list(out.rglob("*.part"))


def test_masks_of_another_size_or_precision_are_not_mixed(program, data, tmp_path):
    out = tmp_path / "out"
    chosen = ("--no-vis", "--max-side", "48", "--precision", "bf16", "--batch", "2")
    code, told = program(*untrained(data, out, *chosen))
    assert code == 0 and "on cpu in bf16" in told
    assert {read_ids(path).shape for path in out.rglob("*.png")} == {(48, 64)}
    origin = json.loads((out / "res4_origin.json").read_text())
    assert origin["precision"] == "bf16" and origin["propagation"]["max_side"] == 48
    code, told = program(*untrained(data, out, "--no-vis"))
    assert code == 2 and "another origin (differs: propagation, precision;" in told


@pytest.mark.parametrize("batch", ["0", "-2", "two"])
def test_a_batch_is_a_number_above_0(program, data, tmp_path, batch):
    code, told = program(*untrained(data, tmp_path / "out", f"--batch={batch}"))
    assert code == 2 and f"{batch!r}: must be a number above 0" in told


def test_a_failing_compiler_is_reported(program, data, tmp_path, monkeypatch):
    def broken(features):
        def call(*inputs):
            raise torch._dynamo.exc.InternalTorchDynamoError("no compiler\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    code, told = program(*untrained(data, tmp_path / "out", "--compile"))
    assert code == 2 and "--compile: does not work here (no compiler); leave it out" in told


def test_two_processes_share_the_sequences(program, data, tmp_path):
    assert program(*untrained(data, tmp_path / "one"))[0] == 0
    code, *told = Program(tmp_path / "printed", "infer_vos", *untrained(data, tmp_path / "two"), processes=2).ended()
    told = "".join(told)
    assert code == 0, told
    assert masks(tmp_path / "two") == masks(tmp_path / "one") and len(masks(tmp_path / "two")) == 10
    scores = lambda name: (tmp_path / name / "res4_scores/per-sequence_results-val.csv").read_text()
    assert scores("two") == scores("one") and "pair_2" in scores("two") and told.count("mean of 3 objects") == 1
    lines = [line for line in told.splitlines() if "5 frames" in line]
    assert sorted(line.split(":")[0] for line in lines) == ["[1/1] pair", "[1/1] single"]
    assert told.count("2 sequences, 10 frames") == told.count("masks: ") == 1


def test_torchrun_starts_the_program(data, tmp_path):
    command = [
        sys.executable,
        "-m",
        "launch.torchrun",
        "--standalone",
        "--nproc-per-node",
        "2",
        ROOT / "infer_vos.py",
    ]
    words = [str(word) for word in (*command, *untrained(data, tmp_path / "out"))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0 and len(masks(tmp_path / "out")) == 10, done.stderr
    done = subprocess.run([*words, "--key", "res5"], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 2 and "--key: layer = 'res5'" in done.stderr and "Traceback" not in done.stderr


def test_an_error_in_one_process_ends_all(program, data, tmp_path):
    frame = data / "JPEGImages/480p/pair/00003.jpg"
    frame.write_bytes(frame.read_bytes()[:700])
    arguments = untrained(data, tmp_path / "out")
    code, *told = Program(tmp_path / "printed", "infer_vos", *arguments, processes=2).ended()
    told = "".join(told)
    assert code != 0 and told.count("pair/00003.jpg: the JPEG breaks off") == 1 and "masks: " not in told
    assert told.count("Traceback") == told.count("ChildFailedError"), told  # the agent's, and none of a process
    assert not list((tmp_path / "out").rglob("*.part"))


def test_only_the_first_process_reports_a_mistake(program, data, tmp_path, monkeypatch):
    """The other processes wait."""

    def waits():
        raise InterruptedError

    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "barrier", waits)
    with pytest.raises(InterruptedError):
        program(*untrained(data, tmp_path / "out", "--key", "res5"))


def test_the_launcher_explains_itself():
    launcher = ["bash", ROOT / "launch/infer_vos.sh"]
    bare = subprocess.run(launcher, capture_output=True, text=True)
    assert bare.returncode == 2 and "davis|ytvos|sample" in bare.stderr and "SNAPSHOT" in bare.stderr
