"""Any file content gives a result, or an error with a name and advice: no traceback, no hang, no partial output.

    FUZZ=2000 bash launch/test.sh tests/test_fuzz.py    # 2000 examples for each test; 50 without FUZZ

All tests run in this process.  Every run has the same examples; none are kept on disk.
"""

import copy
import io
import json
import os
import re
import shutil
import signal
import struct
import sys
import warnings
import zlib
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import evaluate
import models
from core import checkpoint, masks
from core.errors import UserError
from core.evaluation import report
from core.palette import read_ids, write_indexed
from core.schema import as_plain
from datasets import readers, vos_sequences
from datasets.clip import ClipDataset, ClipLoader
from datasets.readers.frames import read_frame
from labelprop import Tracker
from models.backbones.resnet import ReflectResNet
from models.methods import METHODS
from tests import small
from tests.conftest import GOLDEN
from tests.test_train import SMALL
from training.run import Run

st = pytest.importorskip("hypothesis.strategies", reason="hypothesis, which is optional, is not installed")
from hypothesis import HealthCheck, given, settings  # noqa: E402  only where it is installed

EXAMPLES = int(os.environ.get("FUZZ", 50))
fuzzed = settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
#: words of messages that say what is allowed or what to do
ADVICE = re.compile(r"must|expected|needed|there are|did you mean|allowed|;|\(|relative to", re.IGNORECASE)
SECONDS = 60  # more is a hang, even on a busy machine

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 5),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["1e-4", "\0", "../..", "/", "é b", "x" * 300, 2**63, -(10**30), 10**400, 1e-320, [], {}, [[1]]]),
    st.lists(st.integers(-2, 300) | st.text(max_size=3), max_size=3),
    st.dictionaries(st.integers(0, 9) | st.text(max_size=3), st.integers(0, 9), max_size=2),
)


def _hangs(*_):
    raise AssertionError(f"no answer in {SECONDS} seconds")


@contextmanager
def answered(*names):
    """Check that the block ends in time, without an error or with a short UserError with one of `names` and advice."""
    before = signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError as error:
        told = str(error)
        assert any(str(name) in told for name in names), f"names none of {names}: {told[:500]}"
        assert ADVICE.search(told) and len(told) < 6000, f"no advice, or too long: {told[:500]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@st.composite
def spoiled(draw, contents):
    """One of the contents (bytes), changed, cut or lengthened in up to four places."""
    content = draw(st.sampled_from(contents))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(content)))
        gone = draw(st.sampled_from([0, 1, 2, 16, 10**9]))
        content = content[:at] + draw(st.binary(max_size=8)) + content[at + gone :]
    return content


@st.composite
def changed(draw, content, strange=ODD):
    """The nested dict `content`, with up to three entries removed, renamed or replaced by a `strange` value."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(0, 3))):
        node, key = content, draw(st.sampled_from(list(content)))
        while isinstance(node[key], dict) and node[key] and draw(st.integers(0, 4)):
            node = node[key]
            key = draw(st.sampled_from(list(node)))
        what = draw(st.integers(0, 5))
        if what > 1:
            node[key] = draw(strange)
        elif what:
            node[draw(ODD.filter(lambda name: isinstance(name, (int, str))))] = node.pop(key)
        elif len(node) > 1:
            del node[key]
        if not content:
            break
    return content


LINES = [
    "seed: 2020-13-45", "seed: 0x_", "seed: !!int x", "seed: !!bool x", "seed: !!timestamp x", "seed: 190:20:30",
    "seed: !!python/object/apply:os.getcwd []", "log: &a {b: *a}", "log: &a [*a]", "<<: {seed: 1}", "<<: x",
    "? [a, b]\n: c", "? {a: 1}\n: c", "log: !!map x", "log: !!set [a]", "log: !!omap [a]", "seed: 1\nseed: 2",
    "seed: " + "[" * 3000, "base: other", "base: small", "base: a/b", 'base: "\\0"', "base: [1]", "base: ''",
    "seed: " + "9" * 5000, "%YAML 9.9", "---", "\t", "'", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
    "l0: &l0 [x, x]\n" + "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 8)}]" for i in range(1, 12)),
]  # fmt: skip
SETTING = st.builds(
    "{}={}".format,
    st.sampled_from(["seed", "optim.lr", "method.name", "propagation.radius", "log", "data.root", "a.b", "..", ""])
    | st.text(max_size=6),
    st.sampled_from([line.partition(": ")[2] for line in LINES]) | st.text(max_size=6) | ODD.map(repr),
)


@fuzzed
@given(
    text=st.one_of(
        changed(yaml.safe_load(SMALL)).map(lambda content: yaml.safe_dump(content).encode()),
        st.tuples(st.just(SMALL), st.sampled_from(LINES)).map(lambda parts: "\n".join(parts).encode()),
        spoiled([SMALL.encode()]),
        st.binary(max_size=40),
    ),
    overrides=st.lists(SETTING, max_size=2),
)
def test_configurations(tmp_path, text, overrides):
    path = tmp_path / "small.yaml"
    path.write_bytes(text)
    with answered(path):
        found = models.read_config(path, overrides)
        assert models.configured(as_plain(found)) == found
        yaml.safe_dump(as_plain(found))


NAMES = st.sampled_from(
    ["video0", "/video1/", "video0/00000.jpg", "video1/00001.jpg", "my cat", "'my cat/00000.jpg'", '"my cat/é 1.jpg"',
     "nothing", "video0/none.jpg", "loop", "loop/00000.jpg", "empty", "text.jpg", "", "/", ".", "..", "#", "-", "\0",
     "video0/\0.jpg", "x" * 300, "x" * 300 + ".jpg", "x/" * 3000, "\ufeffvideo0", "video0.mp4", '"', "''"]
) | st.text(max_size=6)  # fmt: skip
COLUMNS = st.tuples(st.lists(NAMES, min_size=1, max_size=3), st.sampled_from([" ", "\t", "  "]))
ROWS = st.lists(COLUMNS.map(lambda row: row[1].join(row[0])), max_size=4)
FLAGGED = st.lists(
    st.tuples(st.sampled_from(["1 ", "0 ", "1\t", "", "2 "]), COLUMNS.map(lambda row: row[1].join(row[0]))).map(
        "".join
    ),
    max_size=4,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folders of frames, one with a space in its name, an empty folder, a link to itself, a text file and a mask."""
    root = small.write_videos(tmp_path_factory.mktemp("root"), videos=2, frames=3, size=(16, 24))
    shutil.copytree(root / "video0", root / "my cat")
    (root / "my cat" / "00001.jpg").rename(root / "my cat" / "é 1.jpg")
    (root / "empty").mkdir()
    (root / "loop").symlink_to("loop")
    (root / "text.jpg").write_text("no picture")
    mask = np.zeros((16, 24), np.uint8)
    mask[2:9, 3:9] = 1
    write_indexed(root / "mask.png", mask)
    return root


@fuzzed
@given(
    rows=ROWS,
    reader=st.sampled_from([*readers.READERS]),
    end=st.sampled_from(["\n", "\r\n", "\x0b"]),
    more=st.binary(max_size=3),
)
def test_training_lists(tmp_path, root, rows, reader, end, more):
    path = tmp_path / "list.txt"
    path.write_bytes(end.join(rows).encode() + more)
    with answered(path, root):
        found = readers.opened(reader, root, path)
        for video in range(len(found)):
            with suppress(readers.UnreadableFrame):  # training replaces the clip
                assert len(found.read(video, range(found.length(video)))) == found.length(video)


@fuzzed
@given(rows=FLAGGED | ROWS, mask=st.sampled_from(["", " mask.png", "\tmask.png"]), more=st.binary(max_size=3))
def test_lists_of_videos_to_segment(tmp_path, root, rows, mask, more):
    path = tmp_path / "list.txt"
    path.write_bytes("\n".join(row + mask for row in rows).encode() + more)
    with answered(path, root, "nothing to follow"):
        for sequence in vos_sequences.listed(path, root):
            sequence.given()
            list(sequence.doubts())
            list(sequence.frames())


def picture(mode, size, seed=0, suffix="PNG"):
    """The bytes of a small image file.  mode: of Pillow.  suffix: Pillow's name of the format."""
    values = np.random.default_rng(seed).integers(0, 4, size[::-1], np.uint8)
    image = Image.fromarray(values).convert(mode)
    file = io.BytesIO()
    image.save(file, format=suffix)
    return file.getvalue()


PICTURES = [picture(mode, size) for mode in ("P", "L", "1", "RGB", "RGBA", "LA", "I;16") for size in ((1, 1), (9, 8))]
PICTURES += [picture("RGB", (16, 9), 1, suffix) for suffix in ("JPEG", "BMP", "GIF", "TIFF", "WEBP")]
PICTURES += [picture("CMYK", (16, 9), 1, "JPEG"), b"", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
HUGE = b"IHDR" + struct.pack(">2I5B", 65536, 65536, 8, 0, 0, 0, 0)  # claims 65536 x 65536 pixels
PICTURES += [picture("L", (9, 8))[:12] + HUGE + struct.pack(">I", zlib.crc32(HUGE)) + picture("L", (9, 8))[33:]]


@fuzzed
@given(content=spoiled(PICTURES) | st.binary(max_size=30))
def test_masks_and_frames(tmp_path, content):
    path = tmp_path / "mask.png"
    path.write_bytes(content)
    with answered(path, "video"):
        ids = read_ids(path)
        assert ids.dtype == np.uint8 and ids.ndim == 2
        sequence = vos_sequences.VosSequence("video", (path,), (path,), (True,))
        sequence.given()
        list(sequence.doubts())
    with answered(path):
        ids = masks.read(path)
        assert ids.dtype == np.uint8 and ids.ndim == 2
    with suppress(readers.UnreadableFrame):
        frame = read_frame(path)
        assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    pytest.importorskip("av", reason="av, which is optional, is not installed")
    from tests.film import opencv_film

    folder = tmp_path_factory.mktemp("films")
    return {end: opencv_film(folder / f"film.{end}", frames=6).read_bytes() for end in ("mp4", "avi")}


def test_video_files(tmp_path, films, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    from datasets.readers import videos

    @fuzzed
    @given(end=st.sampled_from([*films]), data=st.data())
    def check(end, data):
        path = tmp_path / f"film.{end}"
        path.write_bytes(data.draw(spoiled([films[end]])))
        with answered(path.name):
            reader = videos.Reader(tmp_path)
            with suppress(readers.UnreadableFrame):  # training replaces the clip
                assert len(reader.read(0, [0, reader.length(0) - 1])) == 2
        path.unlink()

    check()


FRAMES = [f"{t:05d}.png" for t in range(4)]
FILES = st.dictionaries(
    st.tuples(
        st.sampled_from(["annotations", "results"]),
        st.sampled_from(["a", "b", "é b", ".hidden", "."]),
        st.sampled_from([*FRAMES, "7.png", "x.png", "[1].png", ".00001.png", "00001.PNG", "\udcff.png"]),
    ),
    st.sampled_from([*PICTURES, "folder", "loop", "gone"]),
    max_size=4,
)


@fuzzed
@given(files=FILES, size=st.sampled_from([(1, 1), (1, 7), (9, 8)]), more=st.lists(st.sampled_from(
    ["--year=2016", "--sequences=a", "--sequences=a,b", "--sequences=,", "--split=val", "--workers=0"]), max_size=1),
)  # fmt: skip
def test_folders_of_masks(tmp_path, files, size, more):
    folder = tmp_path / "masks"
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("annotations", "results"):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            for t, frame in enumerate(FRAMES):
                (folder / part / name / frame).write_bytes(picture("L", size, t))
    for (part, name, frame), content in files.items():
        path = folder / part / name / frame
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        if content == "folder":
            path.mkdir()
        elif content == "loop":
            path.symlink_to(path.name)
        elif content != "gone":
            path.write_bytes(content)
    words = ["--annotations", folder / "annotations", "--results", folder / "results", "--out", folder / "out", *more]
    code, told = 0, io.TextIOWrapper(io.BytesIO(), "utf-8")  # strict about characters, as a terminal is
    with (
        answered(),
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(told),
        redirect_stderr(io.StringIO()) as err,
    ):
        patch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
        try:
            evaluate.main()
        except SystemExit as ended:
            code = ended.code
    there = sorted(os.listdir(folder / "out")) if (folder / "out").exists() else []
    whole = sorted([report.GLOBAL_CSV, report.SEQUENCE_CSV, report.SCORES_JSON, "report.html"])
    assert (code, there) in ((0, whole), (2, [])), err.getvalue()
    if code:
        with answered(*(folder / part for part in ("annotations", "results")), "--"):
            raise UserError(err.getvalue())


ZERO = torch.zeros(())


def empty(*shape):
    """A tensor of zeros that takes one number of storage."""
    return ZERO.expand(shape)


TENSORS = st.one_of(
    ODD,
    st.lists(st.integers(0, 3), max_size=5).map(lambda shape: empty(*shape)),
    st.builds(empty, st.sampled_from([1, 192, 384, 400]), st.integers(1, 3), st.just(8), st.just(8)),
    st.sampled_from([torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64]).map(torch.eye(2).to),
    st.sampled_from([torch.eye(2).to_sparse(), torch.tensor(float("nan"))]),
)


@pytest.fixture(scope="module")
def files():
    """Name -> content of a checkpoint of this project or of the authors, with weights made by `empty`."""
    described = models.configured(yaml.safe_load(SMALL))
    shapes = lambda name: json.loads((GOLDEN / name).read_text())
    emptied = lambda shapes: {name: empty(*shape) for name, shape in shapes.items()}
    network = lambda module, prefix: {
        f"{prefix}{name}": value if "tracked" in name else empty(*value.shape)
        for name, value in module.state_dict().items()
    }
    method, dino = models.build(described), shapes("g7_dino_checkpoint_layout.json")["pretrain_file_keys"]
    return {
        "ours": {"method": network(method, ""), "config": as_plain(described), "step": 3, "revision": "abc"},
        "dul": {"model": network(method.extractor, "module.fast_net."), "epoch": 3},
        "crw": {"model": network(ReflectResNet().backbone, "encoder.model."), "epoch": 3},
        "dino": emptied(dino),
        "ino": {name: emptied(shapes("g7_ino_checkpoint_layout.json")[name]) for name in ("student", "teacher")}
        | {"dino_loss_cls_list": {"0.center": torch.zeros(1, 4096)}},
    }  # fmt: skip


def used(path, method, training):
    """Load a checkpoint, to start a training from it or for inference."""
    if training:
        models.initialise(method, path)
        return
    extractor = models.load(path)
    assert all(value.layout == torch.strided for value in extractor.state_dict().values())
    assert all(value.dtype == torch.float32 for value in extractor.parameters())
    Tracker(extractor)


def test_checkpoints(tmp_path, files):
    method = METHODS["dul"].Method(small.dul_config())
    path = tmp_path / "some.pth"

    @fuzzed
    @given(
        content=st.sampled_from([*files.values()]).flatmap(lambda content: changed(content, TENSORS)),
        training=st.booleans(),
    )
    def check(content, training):
        torch.save(content, path)
        with answered(path):
            used(path, method, training)

    check()


def test_bytes_of_checkpoints(tmp_path):
    method = METHODS["dul"].Method(small.dul_config())
    torch.save({"model": {"fast_net.a": torch.eye(2)}, "epoch": 3}, tmp_path / "a.pth")
    torch.save({"model": {"fast_net.a": torch.eye(2)}}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    checkpoint.save_weights(tmp_path / "a.safetensors", {"a": torch.eye(2)}, {"network": "{}", "step": "3"})
    contents = [path.read_bytes() for path in sorted(tmp_path.glob("*.*"))]

    @fuzzed
    @given(
        content=spoiled(contents),
        suffix=st.sampled_from(["pth", "safetensors"]),
        sums=spoiled([b"", b"00  some.safetensors\n"]),
        training=st.booleans(),
    )
    def check(content, suffix, sums, training):
        path = tmp_path / f"some.{suffix}"
        path.write_bytes(content)
        (tmp_path / "SHA256SUMS").write_bytes(sums)
        with answered(path, "SHA256SUMS"):
            used(path, method, training)

    check()


def test_runs_that_go_on(tmp_path):
    described, cpu = models.configured(yaml.safe_load(SMALL)), torch.device("cpu")
    run = Run(torch.nn.Linear(2, 2), described, tmp_path, cpu)
    run.method(torch.ones(1, 2)).sum().backward()
    run.optimiser.step()
    run.save()
    whole, path = checkpoint.load(run.last), tmp_path / "other.pth"

    @fuzzed
    @given(content=changed(whole, TENSORS))
    def check(content):
        torch.save(content, path)
        again = Run(torch.nn.Linear(2, 2), described, tmp_path, cpu)
        with answered(path):
            again.restore(path)
            assert again.step >= 0
            again.method(torch.ones(1, 2)).sum().backward()
            again.optimiser.step()
            again.save()

    check()


class Lengths(readers.VideoReader):
    """A reader of black videos.  times: seconds between frames, repeated as needed, or None."""

    def __init__(self, lengths, times):
        self.lengths, self.names = lengths, [f"video{i}" for i in range(len(lengths))]
        self.seconds = times

    def length(self, video):
        return self.lengths[video]

    def times(self, video):
        return None if self.seconds is None else np.cumsum(np.resize(self.seconds, self.lengths[video]))

    def read(self, video, frame_ids):
        assert all(0 <= i < self.lengths[video] for i in frame_ids)
        return [np.zeros((4, 4, 3), np.uint8)] * len(frame_ids)


NUMBER = st.one_of(st.none(), st.integers(-1, 40), st.floats(), st.sampled_from([10**9, 2**63, 10**30, 1e-320, 1e300]))


@fuzzed
@given(
    clip=st.fixed_dictionaries(
        {"frames": st.integers(2, 9) | NUMBER, "order": st.sampled_from(["random", "kept", "other"])},
        optional={
            "gap": NUMBER,
            "fps": NUMBER,
            "clips_per_video": NUMBER,
            "step": st.sampled_from(["whole", "fraction"]),
        },
    ),
    data=st.fixed_dictionaries(
        {"batch_size": st.integers(1, 9) | NUMBER}, optional={"folder_fps": NUMBER, "bad_share": NUMBER}
    ),
    seed=NUMBER,
    lengths=st.lists(st.integers(1, 60), max_size=5),
    times=st.none() | st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=3),
)  # fmt: skip
def test_clip_settings(clip, data, seed, lengths, times):
    content = yaml.safe_load(SMALL)
    content |= {"clip": clip, "data": {"root": ".", "reader": "frames", "workers": 0, **data}, "seed": seed}
    with answered("clip.", "data.", "seed"):
        found = models.configured(content)
        clips = ClipDataset(
            Lengths(lengths, times),
            found.clip,
            lambda frames, rng: {"count": len(frames)},
            found.seed,
            found.data.folder_fps,
        )
        loader = ClipLoader(clips, found.data.batch_size, 0, found.data.bad_share)
        for batch in loader.batches(loader.steps_per_epoch - 1, loader.steps_per_epoch + 1):
            assert batch["count"].tolist() == [found.clip.frames] * found.data.batch_size
