"""Networks as Extractors, from a file or with random weights; and the methods that train them."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from core import checkpoint, protocols, strict
from core.errors import UserError
from core.schema import RunConfig
from core.suggest import suggestion
from models.checkpointing import recompute as recompute
from models.extractor import Extractor
from models.method import Method
from models.methods import METHODS
from models.published import recognised

ROOT = Path(__file__).resolve().parents[1]
UNTRAINED = ROOT / "configs" / "ytvos.yaml"
DEFAULT = ROOT / "data" / "weights" / "dul_resnet18.safetensors"


def load(source: str | Path = DEFAULT, config: str | Path | None = None, overrides: Sequence[str] = ()) -> Extractor:
    """The network in a file, ready for a tracker.

    source: the project's own weights (data/weights/*.safetensors); a checkpoint of a run; a checkpoint that the authors
    of DUL, CRW, INO or DINO published; "timm:NAME" (weights that timm downloads), "timm:NAME@FILE" (weights from a
    file), "timm:NAME@untrained"; or "untrained": the network that a configuration describes, with random weights drawn
    from its seed.
    config, overrides: this configuration (default: DUL's ResNet-18), and section.key=value to change in it.
    Weights load by name and strictly, without running code.  Raises UserError for a source that cannot be used.
    """
    source = str(source)
    if source == "untrained":
        described = read_config(config or UNTRAINED, overrides)
        return _extractor(build(described), described.protocol, described.propagation)
    if config is not None or overrides:
        raise UserError(
            f"{source}: brings its own configuration; --config, and --set of other keys than propagation.KEY, serve "
            "untrained alone"
        )
    if source.startswith("timm:"):
        from models.backbones.timm import Timm  # the package is optional

        torch.manual_seed(0)  # of random weights
        name, _, path = source.removeprefix("timm:").partition("@")
        return Timm(name, {"": "pretrained", "untrained": None}.get(path, path)).eval()
    if source.endswith(".safetensors"):
        return _given_away(source)
    if not Path(source).exists():
        from models.backbones.timm import is_known

        if is_known(source):
            raise UserError(f"{source}: no such checkpoint; timm has a network of that name: timm:{source}")
    content = read(source)
    if _ours(content):
        described = configured(content["config"], source=f"{source} (config)")
        method = _filled(lambda: build(described), content["method"], source)
        return _extractor(method, described.protocol, described.propagation)
    found = _recognised(content, source)
    return _filled(found.make, found.state, source).eval()


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in a YAML file, after `section.key=value` overrides.

    Raises UserError that names file, key, value and what is allowed.
    """
    return configured(strict.read(path), overrides, str(path))


def configured(mapping: dict[str, Any], overrides: Sequence[str] = (), source: str = "configuration") -> RunConfig:
    """As read_config, from a nested mapping, which a YAML file or a checkpoint holds.  source: its name in messages."""
    try:
        mapping = strict.override(mapping, overrides, [field.name for field in fields(RunConfig)])
        section = mapping.get("method")
        name = section.get("name") if isinstance(section, dict) else section
        if not isinstance(name, str) or name not in METHODS or section is name:
            there = ", ".join(METHODS)
            raise UserError(f"method.name = {name!r}: must be one of {there}{suggestion(name, METHODS)}")
        config = strict.build(RunConfig, {**mapping, "method": strict.build(METHODS[name].Config, section)})
        protocols.named(config.protocol, config.propagation)  # raises for changes that the protocol does not allow
        return config
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def build(config: RunConfig) -> Method:
    """The method that a configuration describes, with random weights drawn from config.seed.

    Raises UserError where its sizes are too large for torch or the memory.
    """
    torch.manual_seed(config.seed)
    return _made(config.method)


def _made(section):
    """The method that the section `method` of a configuration describes, with random weights."""
    try:
        return METHODS[section.name].Method(section)
    except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"method: a network of these sizes cannot be made ({reason}); lower them") from error


def initialise(method: Method, source: str | Path) -> list[str]:
    """Copy the weights of a file that `load` reads into a method.  Returns the names of weights that the file lacks.

    Raises UserError where the file holds weights that the method does not have.
    """
    if str(source).endswith(".safetensors"):
        # INO's extractor is no part of its own but its student or its teacher; both start from the same weights.
        trained = ("extractor",) if "extractor" in dict(method.named_children()) else ("student", "teacher")
        given = load(source).state_dict()
        state = {f"{part}.{name}": value for part in trained for name, value in given.items()}
    else:
        content = read(source)
        state = content["method"] if _ours(content) else _recognised(content, source).training
    own = method.state_dict()
    checkpoint.load_strictly(method, {**own, **state}, source)
    return [name for name in own if name not in state]


def give_away(source: str | Path, path: str | Path) -> None:
    """Write the network of a checkpoint of this project as .safetensors, in float16, its configuration in the metadata.

    Raises UserError where the checkpoint is not of this project.
    """
    content = read(source)
    if not _ours(content):
        raise UserError(f"{source}: is no checkpoint of this project; name a best.pth or last.pth")
    extractor = load(source)
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in extractor.state_dict().items()}
    parts = {part: content["config"][part] for part in ("method", "protocol", "propagation")}
    metadata = {"network": json.dumps(parts), "step": str(content["step"]), "revision": content["revision"]}
    checkpoint.save_weights(path, tensors, metadata)


def _given_away(path):
    """The network in a file that `give_away` wrote."""
    tensors, metadata = checkpoint.load_weights(path)
    if "network" not in metadata:
        raise UserError(f"{path}: is not of this project; weights of a network of timm are timm:NAME@{path}")
    try:
        parts = json.loads(metadata["network"])
        section = strict.build(METHODS[parts["method"]["name"]].Config, parts["method"])
        protocols.named(parts["protocol"], parts["propagation"])
    except (ValueError, TypeError, KeyError, RecursionError, UserError) as error:
        raise UserError(f"{path}: its metadata describe no network ({error}); fetch the file again") from error

    make = lambda: _extractor(_made(section), parts["protocol"], parts["propagation"])
    single = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    return _filled(make, single, path)


def _filled(make, state, source):
    """The network that make() builds, with the tensors of a state_dict as its weights; no random weights are drawn."""
    try:
        with torch.device("meta"):
            network = make()
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    checkpoint.load_strictly(network, state, source)
    return network


def _extractor(method, protocol, changes):
    """The extractor of a method, for a tracker that follows a protocol with some changes."""
    extractor = method.extractor
    extractor.protocol, extractor.changes = protocol, changes
    return extractor.eval()


def read(source: str | Path) -> dict[str, Any]:
    """The content of a checkpoint file.  Raises UserError where it is not a dict."""
    content = checkpoint.load(source)
    if not isinstance(content, dict):
        raise UserError(f"{source}: holds a {type(content).__name__}, not a checkpoint; name another file")
    return content


def _ours(content):
    """Whether the content of a file is a checkpoint of this project."""
    return isinstance(content.get("method"), dict) and isinstance(content.get("config"), dict)


def _recognised(content, source):
    try:
        return recognised(content)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
