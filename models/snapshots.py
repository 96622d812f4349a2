"""From a file (or none) to a network ready for inference."""

from pathlib import Path

import torch

from core import checkpoint, components
from core import config as configuration
from core.errors import UserError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def build(config):
    """The method that a configuration describes, with random weights drawn from config.seed."""
    torch.manual_seed(config.seed)
    return components.load("method", config.method.name).Method(config.method)


def restore(source, config_path=None, overrides=()):
    """source: "untrained", one of our checkpoints, or a snapshot published by a method's authors.

    config_path: configuration to use instead of the one in the checkpoint; required for "untrained".
    Returns (method in evaluation mode, RunConfig).  Weights load by name and strictly: UserError lists what
    is missing or left over.
    """
    if source == "untrained":
        if config_path is None:
            raise UserError("--checkpoint untrained: needs --config FILE to know which network to draw")
        config = configuration.load(config_path, overrides)
        return build(config).eval(), config
    content = checkpoint.load(source)
    if not isinstance(content, dict):
        raise UserError(f"{source}: holds a {type(content).__name__}, not a checkpoint")
    if "method" in content and "config" in content:
        state = content["method"]
        config = (
            configuration.load(config_path, overrides)
            if config_path
            else configuration.from_dict(content["config"], overrides, source=f"{source} (config)")
        )
    else:
        state, default = _published(content, source)
        config = configuration.load(config_path or CONFIGS / default, overrides)
    method = build(config)
    checkpoint.load_strictly(method, state, source)
    return method.eval(), config


def _published(content, source):
    """The state_dict of an authors' snapshot under our names, and the configuration that fits it."""
    for name in components.names("method"):
        module = components.load("method", name)
        if not hasattr(module, "published"):
            continue
        state = module.published(content)
        if state is not None:
            return state, module.PUBLISHED_CONFIG
    top = ", ".join(map(str, list(content)[:6]))
    raise UserError(
        f"{source}: is neither a checkpoint of this project (keys: method, config, ...) nor a known published "
        f"snapshot; it holds: {top}"
    )
