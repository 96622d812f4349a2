"""Strict YAML -> frozen dataclasses.

An unknown key, a missing key, a wrong type or a value out of range is a UserError that names file, key,
value and what is allowed.  `--set section.key=value` is parsed as YAML and checked in the same way.  `protocol:
NAME` stands for the sections of configs/protocols/NAME.yaml.
"""

import dataclasses
import math
import types
import typing
from pathlib import Path

import yaml

from core import components
from core.errors import UserError
from core.schema import InferenceConfig, RunConfig
from core.suggest import suggestion

PROTOCOLS = components.ROOT / "configs" / "protocols"
_SECTIONS = [field.name for field in dataclasses.fields(RunConfig)]


def load(path, overrides=()):
    """The RunConfig of a YAML file, after `section.key=value` overrides.

    A method without Views is not trained: its configuration is an InferenceConfig.
    """
    return from_dict(read_yaml(path), overrides, source=str(path))


class _Loader(yaml.SafeLoader):
    """safe_load, but a key that stands twice is an error: YAML would silently take the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path):
    """The mapping in a YAML file, by a safe loader.  UserError if it is missing, not YAML or not a mapping."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        folder = Path(path).parent
        known = sorted(p.stem for p in folder.glob("*.yaml")) if folder.is_dir() else []
        there = f"; there are: {', '.join(known)}" if known else ""
        raise UserError(f"{path}: no such configuration{suggestion(Path(path).stem, known)}{there}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a mapping of sections, found {type(content).__name__}")
    return content


def from_dict(mapping, overrides=(), source="configuration"):
    """As load, from a nested mapping as YAML or a checkpoint holds it; `source` stands in messages."""
    try:
        mapping = _with_protocol(_override(mapping, overrides))
        trains = hasattr(_method(mapping.get("method")), "Views")
        return _build(RunConfig if trains else InferenceConfig, mapping, "")
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def to_dict(config):
    """A configuration -> plain dicts, lists and scalars, which from_dict turns into an equal one."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

    return plain(dataclasses.asdict(config))


def protocols():
    """The names of the protocols that exist."""
    return sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))


def _with_protocol(mapping):
    """The mapping with the sections of its protocol; what it says of them itself stays."""
    name, known = mapping.get("protocol"), protocols()
    if name is None:
        return mapping
    if name not in known:
        raise UserError(f"protocol = {name!r}: must be one of {', '.join(known)}{suggestion(name, known)}")
    mapping = dict(mapping)
    for section, values in read_yaml(PROTOCOLS / f"{name}.yaml").items():
        own = mapping.get(section, {})
        mapping[section] = {**values, **own} if isinstance(own, dict) else own
    return mapping


def _override(mapping, overrides):
    mapping = {k: dict(v) if isinstance(v, dict) else v for k, v in mapping.items()}
    if any(text.startswith("protocol=") for text in overrides):  # instead of what the file says, not under it
        mapping = {k: v for k, v in mapping.items() if not k.startswith("propagation")}
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UserError(f"--set {text!r}: must be section.key=value, for example --set optim.lr=1e-4")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {text!r}: the value is not valid YAML") from None
        *sections, last = key.split(".")
        node = mapping
        for section in sections:
            if node is mapping and section in _SECTIONS and node.get(section) is None:
                node[section] = {}
            if not isinstance(node.get(section), dict):
                raise UserError(f"--set {text!r}: no section {section!r}{suggestion(section, _SECTIONS)}")
            node = node[section]
        node[last] = parsed
    return mapping


def _build(cls, mapping, where):
    """An instance of dataclass cls from a mapping; where: dotted path of the section, "" at the top."""
    dot = f"{where}." if where else ""
    if not isinstance(mapping, dict):
        raise UserError(f"{where} = {mapping!r}: must be a section with keys")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in mapping:
        if key not in fields:
            allowed = ", ".join(fields)
            raise UserError(f"{dot}{key}: unknown key{suggestion(key, fields)}; allowed: {allowed}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        if name in mapping:
            values[name] = _value(hints[name], mapping[name], dot + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{dot}{name}: missing, and it has no default")
    return cls(**values)


def _value(kind, value, key):
    """value as the annotated type `kind`, or UserError."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is typing.Any:
        return _build(_method(value).Config, value, key)
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, key)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (kind,) = [a for a in args if a is not type(None)]
        return _value(kind, value, key)
    if origin is typing.Literal:
        if value not in args:
            raise UserError(f"{key} = {value!r}: must be one of {', '.join(map(repr, args))}{suggestion(value, args)}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise UserError(f"{key} = {value!r}: must be a list")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(inner) != len(value):
            raise UserError(f"{key} = {value!r}: must be a list of {len(inner)} values")
        return tuple(_value(k, v, f"{key}[{i}]") for i, (k, v) in enumerate(zip(inner, value)))
    return _scalar(kind, value, key)


def _method(section):
    """The module of the method that a `method` section names."""
    if not isinstance(section, dict) or "name" not in section:
        raise UserError(f"method.name: missing; there are: {', '.join(components.names('method'))}")
    return components.load("method", section["name"])


def _scalar(kind, value, key):
    wrong = UserError(f"{key} = {value!r}: must be {_ARTICLES[kind]}")
    if kind is bool or isinstance(value, bool):
        if kind is bool and isinstance(value, bool):
            return value
        raise wrong
    if kind is str:
        if isinstance(value, str):
            return value
        raise wrong
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-4, without a point, as a string
        try:
            value = float(value)
        except ValueError:
            raise wrong from None
    if not isinstance(value, (int, float)) or not math.isfinite(value) or (kind is int and value != int(value)):
        raise wrong
    return kind(value)


_ARTICLES = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
