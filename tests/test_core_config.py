"""Configurations: valid files load; errors name the file, the key and the value."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

import models
from core import protocols, schema, strict
from core.errors import UserError

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))
YTVOS = next(path for path in CONFIGS if path.stem == "ytvos")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_yaml_loads_and_survives_a_round_trip(path):
    loaded = models.read_config(path)
    assert models.configured(schema.as_plain(loaded)) == loaded


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_yaml_says_its_command(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    commands = (f"launch/train.sh {path.stem}", "launch/demo.sh")
    assert any(command in "".join(head) for command in commands)


@pytest.mark.parametrize(
    "name, lr, epochs, factor, every, gap, crop_random",
    [
        ("ytvos", 1e-4, 500, 0.5, 100, 2, True),
        ("oxuva", 1e-4, 500, 0.5, 100, 10, True),
        ("track", 1e-3, 250, 0.9, 20, 10, False),
        ("kinetics", 1e-3, 80, 0.5, 20, 10, False),
    ],
)
def test_dul_values_of_the_paper(name, lr, epochs, factor, every, gap, crop_random):
    c = models.read_config(YTVOS.with_stem(name))
    assert (c.optim.lr, c.schedule.epochs, c.schedule.factor, c.schedule.every_epochs) == (lr, epochs, factor, every)
    assert (c.clip.frames, c.clip.gap, c.method.random_crop, c.data.batch_size) == (5, gap, crop_random, 16)
    assert c.optim.weight_decay == 5e-4 and c.optim.bias_lr_factor == 2
    assert c.optim.name == ("adam" if crop_random else "sgd")
    assert (c.method.anchor_grid, c.method.cross_grid, c.method.temperature, c.method.cross_weight) == (8, 4, 0.05, 0.1)
    p = protocols.named(c.protocol, c.propagation)
    assert (p.window, p.radius, p.window_reference, p.top_k, p.context, p.repeat_reference) == (
        "disc",
        12,
        False,
        10,
        20,
        True,
    )


@pytest.mark.parametrize(
    "override, words",
    [
        ("optim.lrr=1", ["optim.lrr", "did you mean 'lr'", "allowed"]),
        ("optm.lr=1", ["'optm'", "did you mean 'optim'"]),
        ("optim.lr=fast", ["optim.lr = 'fast'", "number"]),
        ("optim.lr=-1", ["optim.lr = -1.0", "above 0"]),
        ("optim.lr=nan", ["optim.lr", "number"]),
        ("optim.betas=[0.5]", ["optim.betas", "list of 2"]),
        ("optim.momentum=0.9", ["optim.momentum", "left out for adam"]),
        ("clip.frames=2.5", ["clip.frames = 2.5", "whole number"]),
        ("clip.frames=true", ["clip.frames = True", "whole number"]),
        ("clip.order=randm", ["clip.order = 'randm'", "did you mean 'random'"]),
        ("method.name=dull", ["'dull'", "did you mean 'dul'"]),
        ("method.resize_px=[320, 256]", ["method.resize_px", "low <= high"]),
        ("method.crop_px=100", ["method.crop_px = 100", "multiple of 8"]),
        ("method.anchor_grid=99", ["method.anchor_grid = 99", "32"]),
        ("propagation.radius=0", ["propagation.radius = 0", "1 or more"]),
        ("data=3", ["data = 3", "section"]),
        ("protocol=DINO3", ["protocol = 'DINO3'", "DINO, DINOv3, DUL, INO", "did you mean 'DINOv3'"]),
        ("protocol=[DINO]", ["protocol = ['DINO']", "text"]),
        ("propagation.radios=3", ["propagation.radios", "did you mean 'radius'"]),
        ("method=3", ["method.name = 3", "one of dul, ino"]),
        ("seed", ["--set 'seed'", "section.key=value"]),
    ],
)
def test_mistakes_are_named(override, words):
    with pytest.raises(UserError) as error:
        models.read_config(YTVOS, [override])
    for word in words:
        assert word in str(error.value)


def test_messages_name_the_file_and_missing_keys(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text(YTVOS.read_text().replace("  temperature: 0.05\n", "", 1))
    with pytest.raises(UserError, match=r"broken\.yaml: method\.temperature: missing"):
        models.read_config(broken)
    broken.write_text("a: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        models.read_config(broken)
    broken.write_text(YTVOS.read_text() + "optim:\n  lr: 1.0\n")
    with pytest.raises(UserError, match=r"broken\.yaml: .*'optim' stands twice\n.*line \d+"):
        models.read_config(broken)
    broken.write_text("? [a]\n: 1\n")
    with pytest.raises(UserError, match="not valid YAML"):
        models.read_config(broken)
    broken.write_text("- a\n")
    with pytest.raises(UserError, match="mapping of sections, found list"):
        models.read_config(broken)
    for nothing in ("", "# all of it is a comment\n"):
        broken.write_text(nothing)
        with pytest.raises(UserError, match=r"broken\.yaml: the file is empty"):
            models.read_config(broken)
    with pytest.raises(UserError, match="did you mean 'broken'"):
        models.read_config(tmp_path / "brokn.yaml")


@pytest.mark.parametrize(
    "text, message",
    [
        ("seed: 2020-13-45", "month must be"),  # YAML reads a date
        ("seed: 0x_", "cannot be read"),
        ("seed: !!timestamp x", "cannot be read"),
        ("log: !!map x", "cannot be read"),
        ("log: " + "[" * 3000, "nested too deeply"),
        ("log: &a {b: *a}", "aliases"),
        ("base: ytvos\nseed: " + "9" * 5000, "cannot be read"),
        ("base: ytvos\nseed: 0x" + "f" * 5000, "a whole number"),
        ("base: ytvos\nseed: 4294967296", "between 0 and"),
        ("base: ytvos\ndata: {batch_size: 1000000000}", "between 1 and"),
        ("base: ytvos\nmethod: {embedding: 1000000000000000000000}", "cannot be made"),
        ('base: "\\0"', "cannot be read"),
        ("base: a/b", "name of a file beside it"),
        ("base: nothing", "no such configuration"),
    ],
)
def test_what_yaml_stumbles_over_is_named(tmp_path, text, message):
    (tmp_path / "ytvos.yaml").write_text(YTVOS.read_text())
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=f"(?s)(mine.yaml|method).*{message}") as caught:
        models.build(models.read_config(tmp_path / "mine.yaml"))
    assert len(str(caught.value)) < 1000


def test_keys_that_would_be_ignored_or_fail_later_are_refused():
    for setting, told in [
        ("method.zoom=[0.001, 1]", "zoom = .*: must be large enough: zoom.0. times method.crop_px"),
    ]:
        with pytest.raises(UserError, match=told):
            models.read_config(YTVOS, [setting])


def test_an_override_that_yaml_stumbles_over_is_named():
    with pytest.raises(UserError, match="--set 'seed=2020-13-45'"):
        models.read_config(YTVOS, ["seed=2020-13-45"])


def test_a_file_takes_from_its_base_what_it_does_not_say(tmp_path):
    (tmp_path / "ytvos.yaml").write_text(YTVOS.read_text())
    derived = tmp_path / "mine.yaml"
    derived.write_text("base: ytvos\nclip:\n  gap: 7\nseed: 5\n")
    ours, base = (schema.as_plain(models.read_config(path)) for path in (derived, YTVOS))
    assert ours == {**base, "seed": 5, "clip": {**base["clip"], "gap": 7}}
    derived.write_text("base: ytvos\nmethod: {name: other, width: 4}\n")
    assert strict.read(derived)["method"] == {"name": "other", "width": 4}  # no keys of the base's method
    derived.write_text("base: [ytvos]\n")
    with pytest.raises(UserError, match="mine.yaml: base = .*must be the name of a file"):
        models.read_config(derived)
    (tmp_path / "ytvos.yaml").write_text("base: mine\n")
    derived.write_text("base: ytvos\n")
    with pytest.raises(UserError, match="must not lead back"):
        models.read_config(derived)


def test_overrides_are_typed_and_reach_sections_left_out():
    loaded = models.read_config(YTVOS, ["optim.lr=1e-3", "log.scalar_steps=7", "seed=3", "validation.root=null"])
    assert (loaded.optim.lr, loaded.log.scalar_steps, loaded.seed, loaded.validation.root) == (1e-3, 7, 3, None)


def test_sections_are_frozen():
    with pytest.raises(FrozenInstanceError):
        models.read_config(YTVOS).optim.lr = 1


def test_loading_runs_no_code(tmp_path):
    path = tmp_path / "code.yaml"
    path.write_text("!!python/object/apply:os.mkdir ['%s']\n" % (tmp_path / "made"))
    with pytest.raises(UserError):
        models.read_config(path)
    assert not (tmp_path / "made").exists()
