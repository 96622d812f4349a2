"""The sample set: its layout, equal bytes for equal seeds, and exact masks.  Legend: ids_T, masks of T frames."""

import hashlib
import json
import shutil

import cv2
import numpy as np
import pytest

from core.errors import UserError
from core.palette import read_ids
from datasets import sample, vos_sequences
from datasets.sample import make_sample
from datasets.scenes.parts import Pose, draw
from datasets.scenes.scene import Scene

SMALL = dict(seed=3, train_clips=2, train_frames=2, val_frames=9, height=96, width=160)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "sample"
    assert make_sample(folder, workers=2, **SMALL) is True
    return folder


def names(root, split):
    return (root / "ImageSets" / "2017" / f"{split}.txt").read_text().split()


def masks(root, name):
    return [read_ids(path) for path in sorted((root / "Annotations" / "480p" / name).iterdir())]


def content(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_layout(root):
    assert {split: len(names(root, split)) for split in ("train", "val")} == {"train": 2, "val": 8}
    clips = {path.name for path in (root / "JPEGImages" / "480p").iterdir()}
    assert clips == {*names(root, "train"), *names(root, "val")}
    for name in clips:
        frames = sorted((root / "JPEGImages" / "480p" / name).iterdir())
        count = SMALL["train_frames"] if name in names(root, "train") else SMALL["val_frames"]
        assert [path.name for path in frames] == [f"{t:05d}.jpg" for t in range(count)]
        assert cv2.imread(str(frames[0])).shape == (96, 160, 3)
    assert not list(root.parent.glob(".*")), "the temporary folder is gone"


def test_training_clips_have_no_masks(root):
    annotated = {path.name for path in (root / "Annotations" / "480p").iterdir()}
    assert annotated == set(names(root, "val"))
    assert annotated.isdisjoint(names(root, "train"))


def test_all_objects_of_a_validation_clip_are_in_its_first_mask(root):
    for name, (_, animals) in sample.VALIDATION.items():
        if name == sample.LATE:
            continue
        ids_T = masks(root, name)
        assert len(ids_T) == SMALL["val_frames"]
        assert all(ids.shape == (96, 160) for ids in ids_T)
        assert set(np.unique(ids_T[0])) == set(range(len(animals) + 1))
        assert set(np.unique(ids_T)) == set(np.unique(ids_T[0]))


def test_masks_move(root):
    """Copying the first mask to all frames must give a low score."""
    overlaps = []
    for name in names(root, "val"):
        first, *_, last = masks(root, name)
        for ident in range(1, first.max() + 1):
            one, other = first == ident, last == ident
            overlaps.append((one & other).sum() / (one | other).sum())
    assert np.mean(overlaps) < 0.3


def test_the_late_clip(root):
    name, late = sample.LATE, len(sample.VALIDATION[sample.LATE][1])
    assert name in names(root, "val")
    ids_T = masks(root, name)
    present = [late in ids for ids in ids_T]
    birth = present.index(True)
    assert 0 < birth < len(ids_T) - 2
    assert set(np.unique(ids_T[0])) == set(range(late))

    given = {path.stem: read_ids(path) for path in (root / "valid" / "Annotations" / name).iterdir()}
    assert set(given) == {"00000", f"{birth:05d}"}
    assert np.array_equal(given["00000"], ids_T[0])
    assert np.array_equal(given[f"{birth:05d}"], np.where(ids_T[birth] == late, late, 0))
    objects = json.loads((root / "valid" / "meta.json").read_text())["videos"][name]["objects"]
    assert {ident: one["frames"][0] for ident, one in objects.items()} == {
        "1": "00000", "2": "00000", "3": f"{birth:05d}"}  # fmt: skip
    frames = root / "JPEGImages" / "480p" / name
    assert content(root / "valid" / "JPEGImages" / name) == content(frames)


def test_both_layouts_of_the_late_clip_are_read_alike(root):
    (late,) = vos_sequences.ytvos(root)
    (davis,) = vos_sequences.sample(root, names=[sample.LATE])
    assert late.name == davis.name == sample.LATE
    births = [t for t, mask in enumerate(late.masks) if mask is not None]
    assert len(births) == 2 and births[0] == 0
    assert [image.name for image in late.images] == [image.name for image in davis.images]


def test_the_same_seed_gives_the_same_bytes_in_other_processes(root, tmp_path):
    """Two processes made the set; this process makes one clip of each kind again."""
    for name in (sample.LATE, "lagoon-eel", "clip-001"):
        sample.write_clip(tmp_path, sample.Settings(**SMALL), name)
    made, whole = content(tmp_path), content(root)
    assert len(made) > 50 and made.items() <= whole.items()


def test_another_seed_gives_other_scenes(root):
    settings = sample.Settings(**{**SMALL, "seed": 4})
    _, ids_T = sample._render(settings, "forest-beetles")
    assert not np.array_equal(ids_T[0], masks(root, "forest-beetles")[0])


def test_masks_are_the_topmost_shapes():
    """Compares the masks with creatures drawn four times as large and put together here."""
    scene = Scene(np.random.default_rng(5), "pond", ("koi", "turtle"), 6, (192, 288))
    _, ids = scene.render(2)
    fine = np.zeros_like(ids)
    for ident, (creature, poses) in [*enumerate(scene.actors, 1), *((0, item) for item in scene.over)]:
        pose = scene.camera.see(poses[2], 2)
        large = Pose(4 * pose.x + 1.5, 4 * pose.y + 1.5, pose.heading, 4 * pose.scale, pose.clock)
        window, layer = draw(creature, large, (768, 1152))
        alpha = np.zeros((768, 1152), np.float32)
        alpha[window] = layer[..., 3]
        fine[cv2.resize(alpha, (288, 192), interpolation=cv2.INTER_AREA) >= 0.5] = ident
    assert len(np.unique(ids)) == 3
    assert (fine != ids).mean() < 0.004
    for ident in (1, 2):
        assert ((fine == ident) & (ids == ident)).sum() / ((fine == ident) | (ids == ident)).sum() > 0.96


def test_an_animal_is_visible_where_its_mask_is():
    """Without the animal, the frame differs under its mask and, for its shadow, close to it, but nowhere else."""
    with_it = Scene(np.random.default_rng(8), "forest", ("beetle",), 6, (128, 192))
    without = Scene(np.random.default_rng(8), "forest", ("beetle",), 6, (128, 192))
    without.actors = []
    frame, ids = with_it.render(3)
    bare, nothing = without.render(3)
    changed = np.abs(frame.astype(int) - bare).max(-1) > 12
    assert not nothing.any() and (ids == 1).sum() > 500
    assert changed[ids == 1].mean() > 0.8
    near = cv2.dilate((ids == 1).astype(np.uint8), np.ones((41, 41), np.uint8)) > 0
    assert not changed[~near].any()


def test_a_creature_outside_the_frame_draws_nothing():
    scene = Scene(np.random.default_rng(1), "lagoon", ("turtle",), 4, (96, 128))
    for x, y in ((-900.0, 40.0), (40.0, 900.0)):
        window, layer = draw(scene.actors[0][0], Pose(x, y, 0.0, 50.0, 0.0), (96, 128))
        assert np.zeros((96, 128))[window].shape == layer.shape[:2]
        assert not layer.any()


def test_made_once(root):
    before = content(root)
    assert make_sample(root, **SMALL) is False
    assert content(root) == before


def test_the_command_says_complete(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "sample"
    folder.mkdir()
    stamp = {"version": sample.VERSION, **sample.asdict(sample.Settings(seed=7))}
    (folder / "sample.json").write_text(json.dumps(stamp))
    monkeypatch.setattr("sys.argv", ["sample", "--out", str(folder), "--seed", "7"])
    sample.main()
    assert "is complete already" in capsys.readouterr().out


def test_a_folder_of_others_is_refused_and_kept(tmp_path, root):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("dear diary")
    with pytest.raises(UserError, match="mine: holds something else"):
        make_sample(tmp_path / "mine", **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(UserError, match="another sample set.*choose another --out"):
        make_sample(root, **{**SMALL, "seed": 5})


def test_a_damaged_stamp_is_named(tmp_path):
    (tmp_path / "sample.json").write_text("{")
    with pytest.raises(UserError, match="sample.json: damaged"):
        make_sample(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/sample: the set cannot be written.*--out"):
        make_sample(tmp_path / "file" / "sample", **SMALL)


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "write_clip", lambda *job: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(UserError, match="disk full"):
        make_sample(tmp_path / "sample", workers=1, **SMALL)
    assert not list(tmp_path.iterdir())


def test_two_at_once(tmp_path, root, monkeypatch):
    """A process that finishes second finds the set of the first and keeps it."""
    monkeypatch.setattr(sample, "_write", lambda *job: shutil.copytree(root, tmp_path / "sample"))
    make_sample(tmp_path / "sample", **SMALL)
    assert content(tmp_path / "sample") == content(root)
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]
