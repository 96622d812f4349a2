"""Strict YAML -> sections, frozen dataclasses that check themselves.

A file with `base: NAME` changes and adds to the keys of NAME.yaml beside it.  An unknown key, a missing key, a wrong
type or a value beyond its limit is a UserError that names key, value and what is allowed.
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from core.errors import UserError
from core.suggest import suggestion

#: the largest number that a float can hold
LARGEST = sys.float_info.max


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses a key which stands twice, where YAML would silently take the last.

    It refuses aliases, too: with them a few lines can describe a value of unlimited size.
    """

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*NAME) are not read: write the value out", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parsed(text):
    """The value of a YAML text; yaml.YAMLError where it has none."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506  a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("is nested too deeply") from None
    # PyYAML lets errors of its conversions through: of a date in the 13th month, or of a tag that does not fit.
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise yaml.YAMLError(f"holds a value that cannot be read ({error})") from None


def read(path: str | Path, derived: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, laid over the mapping of its base.

    derived: the files that lead to this one by their `base`.  Raises UserError if the file is missing, not YAML or not
    a mapping.
    """
    path = Path(path)
    asked = f"{derived[-1]}: base: " if derived else ""
    try:
        content = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        there = f"; there are: {', '.join(known)}" if known else ""
        raise UserError(f"{asked}{path}: no such configuration{suggestion(path.stem, known)}{there}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{asked}{path}: cannot be read ({error}); name a YAML file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML; mend it: {error}") from None
    if content is None:
        raise UserError(f"{path}: the file is empty; it must hold a mapping of sections")
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a mapping of sections, found {type(content).__name__}")
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str) or Path(base).name != base:
        raise UserError(f"{path}: base = {_shown(base)}: must be the name of a file beside it, without .yaml")
    derived = (*derived, path)
    source = path.with_name(f"{base}.yaml")
    if source in derived:
        raise UserError(f"{path}: base = {base!r}: must not lead back to {source}")
    return _laid_over(read(source, derived), content)


def _laid_over(base, content):
    """Merge sections key by key; replace everything else, and the section `method` where it names another method."""
    merged = dict(base)
    for key, value in content.items():
        old = base.get(key)
        mergeable = isinstance(value, dict) and isinstance(old, dict)
        if mergeable and key == "method" and "name" in value:
            mergeable = value["name"] == old.get("name")
        merged[key] = _laid_over(old, value) if mergeable else value
    return merged


def override(mapping: dict[str, Any], overrides: Sequence[str], sections: Sequence[str]) -> dict[str, Any]:
    """A copy of the mapping in which every `section.key=value` is set.

    sections: names of the sections that are added where the mapping lacks them.  Raises UserError for any other section
    and for a text of another form.
    """
    mapping = {key: dict(value) if isinstance(value, dict) else value for key, value in mapping.items()}
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UserError(f"--set {text!r}: must be section.key=value, for example --set optim.lr=1e-4")
        *path, last = key.split(".")
        node = mapping
        for section in path:
            if node is mapping and section in sections and node.get(section) is None:
                node[section] = {}
            if not isinstance(node.get(section), dict):
                known = f"{suggestion(section, sections)}; there are: {', '.join(sections)}"
                raise UserError(f"--set {text!r}: no section {section!r}{known}")
            node = node[section]
        try:
            node[last] = _parsed(value)
        except yaml.YAMLError:
            raise UserError(f"--set {text!r}: the value must be valid YAML") from None
    return mapping


class Limit(NamedTuple):
    """What a value may be: `holds` decides, `allowed` says it in words."""

    allowed: str
    holds: Callable[[Any], bool]


def at_least(least: float) -> Limit:
    return Limit(f"{least} or more", lambda value: value >= least)


def above(bound: float) -> Limit:
    return Limit(f"above {bound}", lambda value: value > bound)


def between(low: float, high: float) -> Limit:
    return Limit(f"between {low} and {high}", lambda value: low <= value <= high)


def below_one() -> Limit:
    return Limit("0 or more and below 1", lambda value: 0 <= value < 1)


def span(low: float, high: float) -> Limit:
    """A range [a, b] inside low..high; 0 is left out where low is 0."""
    sign = "<" if low == 0 else "<="
    holds = lambda pair: low <= pair[0] <= pair[1] <= high and pair[0] != 0
    return Limit(f"[low, high] with {low} {sign} low <= high <= {high}", holds)


def multiple_of(unit: int, least: int) -> Limit:
    return Limit(f"a multiple of {unit}, {least} or more", lambda value: value % unit == 0 and value >= least)


@dataclass(frozen=True)
class Section:
    """A part of a configuration, a frozen value.  Raises UserError naming key, value and what is allowed.

    Values become what their field's type says: lists tuples, whole numbers floats, mappings sections.  Subclasses put
    limits into Annotated[...], from which None is exempt, and choices into Literal[...].  What concerns several keys
    stands in `check`.
    """

    def __post_init__(self):
        for key, kind in typing.get_type_hints(type(self), include_extras=True).items():
            object.__setattr__(self, key, _value(kind, getattr(self, key), self.path(key)))
        self.check()

    def check(self) -> None:
        """What the limits of single keys cannot say."""

    def require(self, key: str, holds: bool, allowed: str) -> None:
        _require(holds, self.path(key), getattr(self, key), allowed)

    @classmethod
    def path(cls, key: str = "") -> str:
        """The name of a key in messages, "section.key"; without a key, that of the section."""
        name = cls.__name__.lower()
        name = {"config": "method", "runconfig": ""}.get(name, name)  # every method calls its section Config
        return ".".join(filter(None, (name, key)))


def build(cls: type[Section], mapping: Any) -> Any:
    """An instance of a Section from a mapping.  Raises UserError for unknown and missing keys, and as Section does."""
    _require(isinstance(mapping, dict), cls.path(), mapping, "a section with keys")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in mapping:
        if key not in fields:
            near = suggestion(key, fields)
            raise UserError(f"{cls.path(str(key))}: unknown key{near}; allowed: {', '.join(fields)}")
    for name, field in fields.items():
        if name not in mapping and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{cls.path(name)}: missing, and it has no default; add it")
    return cls(**mapping)


def _value(kind, value, key):
    """The value as the annotated type `kind`.  Raises UserError that names the key."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        kind, *limits = args
        value = _value(kind, value, key)
        for limit in limits:
            _require(value is None or limit.holds(value), key, value, limit.allowed)
        return value
    if origin in (typing.Union, types.UnionType):
        (kind,) = [a for a in args if a is not type(None)]
        return None if value is None else _value(kind, value, key)
    if origin is typing.Literal:
        _require(value in args, key, value, f"one of {', '.join(map(repr, args))}{suggestion(value, args)}")
        return value
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), key, value, "a list")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        _require(len(inner) == len(value), key, value, f"a list of {len(inner)} values")
        return tuple(_value(k, v, f"{key}[{i}]") for i, (k, v) in enumerate(zip(inner, value)))
    if origin is dict:
        _require(isinstance(value, dict), key, value, "a section with keys")
        return value
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else build(kind, value)
    return value if kind is Any else _scalar(kind, value, key)


def _scalar(kind, value, key):
    """The value as a bool, str, int or float."""
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-4, without a point, as a string
        with suppress(ValueError):
            value = float(value)
    fits = type(value) is kind
    if kind in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        # NaN fails the comparison.
        fits = -LARGEST <= value <= LARGEST and (kind is float or value == int(value))
    _require(fits, key, value, _ARTICLES[kind])
    return kind(value)


def _require(holds, key, value, allowed):
    if not holds:
        raise UserError(f"{key} = {_shown(value)}: must be {allowed}")


def _shown(value):
    """A value as a message shows it."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of so many digits
        return "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:200]} ..."


_ARTICLES = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
