"""From a file (or none) to a network ready for inference."""

from pathlib import Path

import torch

from core import checkpoint, components
from core import config as configuration
from core.errors import UserError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def build(config, **given):
    """The method that a configuration describes, with random weights drawn from config.seed.

    given: what a Method asks for besides its configuration.
    """
    torch.manual_seed(config.seed)
    return components.load("method", config.method.name).Method(config.method, **given)


def restore(source, config_path=None, overrides=()):
    """source: "untrained", one of our checkpoints, a snapshot published by a method's authors, or a network of timm.

    timm:NAME has the weights that timm downloads, timm:NAME@FILE those of a file.
    config_path: configuration to use instead of the one in the checkpoint; required for "untrained".
    Returns (method in evaluation mode, its configuration).  Weights load by name and strictly: UserError lists what
    is missing or left over.
    """
    if source == "untrained":
        if config_path is None:
            raise UserError("--checkpoint untrained: needs --config FILE to know which network to draw")
        config = configuration.load(config_path, overrides)
        return build(config).eval(), config
    if str(source).startswith("timm:"):
        name, _, path = source.removeprefix("timm:").partition("@")
        config = configuration.load(config_path or CONFIGS / "timm.yaml", (*overrides, f"method.model={name!r}"))
        return build(config, weights=path or "pretrained").eval(), config
    content = checkpoint.load(source)
    if not isinstance(content, dict):
        raise UserError(f"{source}: holds a {type(content).__name__}, not a checkpoint")
    if isinstance(content.get("method"), dict) and isinstance(content.get("config"), dict):
        state = content["method"]
        config = (
            configuration.load(config_path, overrides)
            if config_path
            else configuration.from_dict(content["config"], overrides, source=f"{source} (config)")
        )
    else:
        state, default, fitting = _published(content, source)
        if config_path:
            config = configuration.load(config_path, overrides)
        else:
            config = configuration.load(CONFIGS / default, (*fitting, *overrides))
    method = build(config)
    checkpoint.load_strictly(method, state, source)
    return method.eval(), config


def _published(content, source):
    """An authors' snapshot -> its state_dict under our names, the configuration for it, and overrides that fit it."""
    for name in components.names("method"):
        module = components.load("method", name)
        if not hasattr(module, "published"):
            continue
        try:
            found = module.published(content)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
        if found is not None:
            state, fitting = found
            return state, module.PUBLISHED_CONFIG, fitting
    raise UserError(
        f"{source}: {_looks(content)}; what fits is a checkpoint of this project (keys: method, config), or one "
        "published by the authors of DUL, CRW, INO or DINO (ViT-T/S/B with patches of 8 or 16 px)"
    )


def _looks(content):
    """What an unknown file looks like, in words."""
    inner = next((content[k] for k in ("model", "state_dict") if isinstance(content.get(k), dict)), content)
    names = [str(name).removeprefix("module.") for name in inner]
    for part, kind in (("layer4.", "a ResNet of another make"), ("blocks.", "a vision transformer of another make")):
        if any(part in name for name in names):
            return f"looks like {kind} ({', '.join(names[:3])}, ...)"
    return f"holds {', '.join(map(str, list(content)[:6])) or 'nothing'}"
