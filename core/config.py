"""Configurations of training runs, from YAML files and from checkpoints.

A mistake is a UserError that names file, key, value and what is allowed.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from core import protocols, strict
from core.errors import UserError
from core.schema import RunConfig
from core.suggest import suggestion


def from_dict(
    mapping: dict[str, Any], methods: dict[str, type], overrides: Sequence[str] = (), source="configuration"
) -> RunConfig:
    """The configuration in a nested mapping, which a YAML file or a checkpoint holds.

    methods: name -> class of the section `method`.  overrides: section.key=value.  source: its name in messages.
    """
    try:
        mapping = strict.override(mapping, overrides, [field.name for field in fields(RunConfig)])
        section = mapping.get("method")
        name = section.get("name") if isinstance(section, dict) else section
        if not isinstance(name, str) or name not in methods or section is name:
            there = ", ".join(methods)
            raise UserError(f"method.name = {name!r}: must be one of {there}{suggestion(name, methods)}")
        method = strict.build(methods[name], section)
        config = strict.build(RunConfig, {**mapping, "method": method})
        protocols.named(config.protocol, config.propagation)  # raises for changes that the protocol does not allow
        return config
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
