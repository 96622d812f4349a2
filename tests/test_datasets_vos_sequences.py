import time

import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from core.palette import write_indexed
from datasets import vos_sequences as vos

SIZE = (40, 56)


def make_frame(path, grey=0, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), grey, np.uint8)).save(path)


def make_mask(path, *ids):
    mask = np.zeros(SIZE, np.uint8)
    for n, id in enumerate(ids):
        mask[4:12, 8 * n : 8 * n + 6] = id
    write_indexed(path, mask)


@pytest.fixture
def davis_root(tmp_path):
    """Two sequences; in `late`, object 5 appears in frame 2, and all masks have void pixels."""
    for name in ("plain", "late"):
        for t in range(4):
            make_frame(tmp_path / "JPEGImages/480p" / name / f"{t:05d}.jpg", 50 * t)
            late = (255, 2, 5) if t >= 2 else (255, 2)
            mask = tmp_path / "Annotations/480p" / name / f"{t:05d}.png"
            make_mask(mask, *((1, 3) if name == "plain" else late))
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("plain\nlate\n")
    return tmp_path


def births(sequence):
    return {t: sorted(np.unique(ids[ids > 0]).tolist()) for t, ids in sequence.given().items()}


def test_davis_gives_the_first_annotation(davis_root):
    plain, late = vos.davis(davis_root)
    assert (plain.name, plain.length, plain.written) == ("plain", 4, (True,) * 4)
    assert plain.frame_names == ("00000", "00001", "00002", "00003")
    assert births(plain) == {0: [1, 3]} and births(late) == {0: [2]}
    assert plain.annotations == davis_root / "Annotations/480p/plain"
    frames = list(plain.frames())
    assert frames[0].shape == (*SIZE, 3) and frames[0].dtype == np.uint8
    np.testing.assert_allclose([frame.mean() for frame in frames], [0, 50, 100, 150], atol=1)


def test_sample_gives_births(davis_root):
    plain, late = vos.sample(davis_root)
    assert births(plain) == {0: [1, 3]} and births(late) == {0: [2], 2: [5]}


def test_partly_annotated_sequences_are_not_scored(davis_root):
    (davis_root / "Annotations/480p/plain/00002.png").unlink()
    assert vos.davis(davis_root, names=["plain"])[0].annotations is None


def test_real_davis(shared):
    sequences = vos.davis(shared("davis"))
    assert len(sequences) == 6 and sum(s.length for s in sequences) == 282
    assert births(sequences[0]) == {0: [1]} and next(sequences[0].frames()).shape == (480, 854, 3)


def test_real_ytvos(shared):
    (judo,) = vos.ytvos(shared("ytvos"))
    assert births(judo) == {0: [1], 5: [2], 8: [3], 13: [4]} and all(judo.written) and judo.length == 16
    assert vos.ytvos(shared("ytvos/valid")) == [judo] and "every fifth frame" in judo.remark


def test_ytvos_propagates_through_all_frames_and_writes_those_of_valid(tmp_path):
    valid, every = tmp_path / "valid", tmp_path / "valid_all_frames"
    for t in range(11):
        make_frame(every / f"JPEGImages/a1/{t:05d}.jpg")
        if t % 5 == 0:
            make_frame(valid / f"JPEGImages/a1/{t:05d}.jpg")
    make_mask(valid / "Annotations/a1/00005.png", 1)
    make_mask(valid / "Annotations/a1/00010.png", 1, 2)
    (video,) = vos.ytvos(tmp_path)
    assert video.remark is None
    assert video.length == 11 and [t for t, flag in enumerate(video.written) if flag] == [0, 5, 10]
    assert births(video) == {5: [1], 10: [2]}
    assert video.images[5].is_relative_to(every)
    (every / "JPEGImages/a1/00010.jpg").unlink()
    with pytest.raises(UserError, match="00010.png: no frame of that name in .*valid_all_frames"):
        vos.ytvos(tmp_path)


@pytest.mark.parametrize("name", ["../bike", "/bike", ".."])
def test_names_that_lead_elsewhere_are_refused(davis_root, name):
    (davis_root / "ImageSets/2017/val.txt").write_text(name)
    with pytest.raises(UserError, match="val.txt: .*name of a folder"):
        vos.davis(davis_root)


def test_a_long_list_is_read_in_no_time(tmp_path):
    make_mask(tmp_path / "m.png", 1)
    for t in range(3):
        make_frame(tmp_path / f"v/{t}.jpg")
    lines = [f"1 v/{t % 3}.jpg{'' if t else ' m.png'}" for t in range(20_000)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    started = time.process_time()
    with pytest.raises(UserError, match="two frames named '0'"):
        vos.listed(tmp_path / "list.txt", tmp_path)
    assert time.process_time() - started < 5  # comparing all pairs took half a minute


def test_lists(tmp_path):
    for name, count in (("one", 4), ("two", 2)):
        for t in range(count):
            make_frame(tmp_path / f"JPEGImages/{name}/{t:05d}.jpg")
    make_mask(tmp_path / "Annotations/one/00001.png", 7)
    make_mask(tmp_path / "Annotations/two/00000.png", 1)
    make_mask(tmp_path / "Annotations/two/00001.png", 1)
    rows = [("one", 0, 0), ("one", 1, 1), ("two", 0, 1), ("one", 2, 0), ("one", 3, 1), ("two", 1, 1)]
    text = "\n".join(f"{flag} /JPEGImages/{name}/{t:05d}.jpg /Annotations/{name}/{t:05d}.png" for name, t, flag in rows)
    (tmp_path / "list.txt").write_text(text + "\n\n")
    one, two = vos.listed(tmp_path / "list.txt", tmp_path)
    assert (one.name, one.written, births(one)) == ("one", (False, True, False, True), {1: [7]})
    assert one.annotations is None and two.annotations == tmp_path / "Annotations/two"
    assert vos.listed(tmp_path / "list.txt", tmp_path, ["two", "two"]) == [two]
    # The list lacks a frame that has an annotation: the results would lack it, too.
    make_mask(tmp_path / "Annotations/two/00002.png", 1)
    assert vos.listed(tmp_path / "list.txt", tmp_path)[1].annotations is None


def test_lists_of_other_programs(tmp_path):
    make_frame(tmp_path / "v/0.jpg")
    make_mask(tmp_path / "v/0.png", 1)
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf1 v/0.jpg v/0.png\r\n")  # BOM and CRLF, as on Windows
    assert vos.listed(tmp_path / "list.txt", tmp_path)[0].written == (True,)
    with pytest.raises(UserError, match="0.jpg: cannot be read"):
        vos.listed(tmp_path / "v/0.jpg", tmp_path)


@pytest.mark.parametrize(
    "line, message",
    [
        ("1", "list.txt:1: .*expected `flag image mask`"),
        ("1 my v/0.jpg v/0.png", "list.txt:1: .*names with spaces stand in quotes"),
        ("0 v/0.jpg v/0.png", "v has no frame to write"),
        ("1 v/0.jpg -", "v has no mask to start from: no line names one"),
        ("2 v/0.jpg v/0.png", "list.txt:1: .*flag 0 or 1"),
        ("1 v/9.jpg v/0.png", "list.txt:1: .*v/9.jpg does not exist"),
        ("1 v/0.jpg v/9.png", "v has no mask to start from: .*v/9.png is no file"),
        ("1 v/0.jpg v/0.png\n1 v/0.jpg v/0.png", "two frames named '0'"),
        ("1 v/0.jpg v/0.png\n1 w/v/0.jpg v/0.png", "two videos whose folders are both named 'v'"),
        ("\n", "names no frame"),
    ],
)
def test_mistakes_in_lists(tmp_path, line, message):
    make_frame(tmp_path / "v/0.jpg")
    make_frame(tmp_path / "w/v/0.jpg")
    make_mask(tmp_path / "v/0.png", 1)
    (tmp_path / "list.txt").write_text(line)
    with pytest.raises(UserError, match=message):
        vos.listed(tmp_path / "list.txt", tmp_path)


def test_mistakes_in_folders_are_named(davis_root, tmp_path):
    def fails(message, build, *args, **options):
        with pytest.raises(UserError, match=message):
            build(*args, **options)

    fails("sequence 'plian' does not exist, did you mean 'plain'", vos.davis, davis_root, names=["plian"])
    fails("ImageSets/2017/train.txt: missing", vos.davis, davis_root, split="train")
    fails("nowhere/valid/JPEGImages: missing", vos.ytvos, tmp_path / "nowhere")
    fails("choose --dataset davis", vos.ytvos, davis_root)
    (davis_root / "ImageSets/2017/odd.txt").write_bytes(b"\xff\xfe")
    fails("odd.txt: cannot be read", vos.davis, davis_root, split="odd")
    make_frame(davis_root / "JPEGImages/480p/late/00001.PNG")
    fails("late: two pictures are named '00001'", vos.davis, davis_root, names=["late"])
    (davis_root / "JPEGImages/480p/late/00001.PNG").unlink()
    frame = davis_root / "JPEGImages/480p/plain/00001.jpg"
    make_frame(frame, size=(40, 55))
    fails("00001.jpg: 55x40 pixels .* 56x40", lambda: list(vos.davis(davis_root)[0].frames()))
    Image.effect_noise((56, 40), 80).convert("RGB").save(frame)
    frame.write_bytes(frame.read_bytes()[:-200])
    fails("00001.jpg: the JPEG breaks off", lambda: list(vos.davis(davis_root)[0].frames()))
    make_mask(davis_root / "Annotations/480p/plain/00000.png")
    fails("plain: nothing to follow, no object is marked in .*00000.png", vos.davis(davis_root)[0].given)
    (davis_root / "Annotations/480p/plain/00000.png").unlink()
    fails("plain/00000.png: missing", vos.davis, davis_root)
    for image in (davis_root / "JPEGImages/480p/plain").iterdir():
        image.unlink()
    fails("480p/plain: holds no JPEG or PNG", vos.davis, davis_root)
    (davis_root / "JPEGImages/480p/plain").rmdir()
    fails("480p/plain: there is no such folder", vos.davis, davis_root)


@pytest.mark.parametrize(
    "lines",
    [
        """1 "my cat/0.jpg" 'its mask/0.png'\n1 'my cat/1.jpg'\n0 "my cat/2.jpg" -""",
        "1\tmy cat/0.jpg\tits mask/0.png\n1\tmy cat/1.jpg\n0\tmy cat/2.jpg\t-",
        "1 /my cat/0.jpg\t/its mask/0.png\r\n1 my cat/1.jpg\t\r\n0 my cat/2.jpg\t-\r\n",
    ],
)
def test_lists_of_names_with_spaces_and_frames_without_masks(tmp_path, lines):
    for t in range(3):
        make_frame(tmp_path / f"my cat/{t}.jpg")
    make_mask(tmp_path / "its mask/0.png", 3)
    (tmp_path / "list.txt").write_text(lines)
    (cat,) = vos.listed(tmp_path / "list.txt", tmp_path)
    assert (cat.name, cat.written, births(cat)) == ("my cat", (True, True, False), {0: [3]})
    assert cat.masks[1:] == (None, None)


def test_lists_of_names_with_quotes_inside_and_of_the_folder_itself(tmp_path, monkeypatch):
    make_frame(tmp_path / "cat's/it's.jpg")
    make_mask(tmp_path / "cat's/it's.png", 1)
    (tmp_path / "list.txt").write_text("1 cat's/it's.jpg cat's/it's.png")
    assert births(vos.listed(tmp_path / "list.txt", tmp_path)[0]) == {0: [1]}
    monkeypatch.chdir(tmp_path / "cat's")
    (tmp_path / "list.txt").write_text("1 it's.jpg it's.png")
    assert vos.listed(tmp_path / "list.txt", ".")[0].name == "cat's"


def test_255_is_void_for_every_data_set_unless_all_is_255(tmp_path):
    valid = tmp_path / "valid"
    for t in range(3):
        make_frame(valid / f"JPEGImages/a/{t}.jpg")
    make_mask(valid / "Annotations/a/0.png", 255)
    make_mask(valid / "Annotations/a/1.png", 255, 4)
    (video,) = vos.ytvos(tmp_path)
    assert births(video) == {1: [4]} and list(video.doubts()) == []
    make_mask(valid / "Annotations/a/1.png", 255)
    assert births(video) == {0: [1]} and video.given()[0].sum() == 8 * 6
    ((path, text),) = video.doubts()
    assert path.name == "0.png" and "its id is 1" in text


def test_masks_of_one_bit_mark_object_1(tmp_path):
    make_frame(tmp_path / "v/0.jpg")
    bits = np.zeros(SIZE, bool)
    bits[10:20, 10:20] = True
    Image.fromarray(bits).save(tmp_path / "v/0.png")
    (tmp_path / "list.txt").write_text("1 v/0.jpg v/0.png")
    (video,) = vos.listed(tmp_path / "list.txt", tmp_path)
    assert Image.open(video.masks[0]).mode == "1" and (video.given()[0] == bits).all()
