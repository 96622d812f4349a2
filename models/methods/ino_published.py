"""Weights that the authors of INO and of DINO published, under our names."""

import torch

from core.errors import UserError
from models.backbones.vit import SIZES

PUBLISHED_CONFIG = "charades.yaml"

# A backbone alone, of which DINO's authors evaluate the last block.
DINO = ("protocol=DINO", "method.outputs=null", "method.feature_block=12")


def published(content):
    """An official checkpoint -> (our state_dict, overrides of PUBLISHED_CONFIG that fit it), or None.

    content: the loaded file.  INO: {"student", "teacher", ...}, names behind `backbone.` and
    `headlist.headlist.0.`.  DINO: a plain vision transformer, or {"student", "teacher", ...} with `backbone.`
    and `head.`, of which the teacher's backbone is taken.  All optionally behind `module.`.
    """
    student, teacher = (_plain(content.get(name)) for name in ("student", "teacher"))
    if any(name.startswith("headlist.") for name in {**student, **teacher}):
        return _ino(student, teacher, content)
    backbone = _backbone(teacher) or _backbone(student) or _backbone(_plain(content))
    if not backbone:
        return None
    backbone.pop("mask_token", None)
    state = {f"student.backbone.{name}": value for name, value in backbone.items()}
    return state, (*_shape(backbone), *DINO)


def _ino(student, teacher, content):
    for name, network in (("student", student), ("teacher", teacher)):
        if not _backbone(network):
            raise UserError(f"looks like an INO checkpoint, but its {name!r} is missing or holds no backbone")
    ours = lambda name: name.replace("headlist.headlist.0.", "head.")
    state = {f"student.{ours(name)}": value for name, value in student.items()}
    state |= {f"teacher.{ours(name)}": value for name, value in teacher.items()}
    hidden, outputs = state["student.head.mlp.0.weight"], state["student.head.last_layer.weight_v"]
    for ours, theirs in (("centre_class", "dino_loss_cls_list"), ("centre_patch", "dino_loss_hw_list")):
        centre = _plain(content.get(theirs)).get("0.center")
        state[ours] = torch.zeros(len(outputs)) if centre is None else centre.flatten()
    head = {"outputs": outputs.shape[0], "head_hidden": hidden.shape[0], "bottleneck": outputs.shape[1]}
    return state, (*_shape(_backbone(student)), *(f"method.{key}={value}" for key, value in head.items()))


def _plain(network):
    """A state_dict without `module.`; {} where there is none."""
    if not isinstance(network, dict):
        return {}
    return {str(name).removeprefix("module."): value for name, value in network.items()}


def _backbone(network):
    """The vision transformer in a state_dict, with or without `backbone.`; {} where there is none."""
    own = {k.removeprefix("backbone."): v for k, v in network.items() if k.startswith("backbone.")} or dict(network)
    return own if {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= set(own) else {}


def _shape(backbone):
    """The overrides that describe a backbone.  UserError where this project has none like it."""
    channels, _, patch, _ = backbone["patch_embed.proj.weight"].shape
    side = round((backbone["pos_embed"].shape[1] - 1) ** 0.5)
    sizes = [size for size, (width, _) in SIZES.items() if width == channels]
    if not sizes or patch not in (8, 16):
        known = ", ".join(f"{size} ({width})" for size, (width, _) in SIZES.items())
        raise UserError(
            f"looks like a vision transformer with {channels} channels and patches of {patch} px; what fits has "
            f"12 blocks, patches of 8 or 16 px and a size among {known}"
        )
    shape = {"size": sizes[0], "patch": patch, "image_px": side * patch}
    return tuple(f"method.{key}={value}" for key, value in shape.items())
