"""Weights that the authors of DUL, CRW, INO and DINO published, under the names of this project.

All names in the files may begin with `module.`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, strided

from core.errors import UserError
from models.backbones.resnet import ReflectResNet, ResNet
from models.backbones.vit import SIZES, Backbone, ViT
from models.extractor import Extractor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Published:
    """A published network.  make: builds it, without its weights.  state: its weights.

    training: all weights of the file that the network's method has, under the names of the method.
    """

    make: Callable[[], Extractor]
    state: State
    training: State


def recognised(content: dict[str, Any]) -> Published:
    """The network in the content of a file.  Raises UserError for a file of anyone but these authors."""
    for look in (_dul, _crw, _ino, _dino):
        found = look(content)
        if found is not None:
            return found
    raise UserError(
        f"{_looks(content)}; what fits is a checkpoint of this project, or one published by the authors of DUL, CRW, "
        "INO or DINO (ViT-T/S/B with patches of 8 or 16 px)"
    )


def _dul(content):
    """DUL's file: {"model": ...}; names start with `fast_net.`, and the head is called `emb_q`."""
    model = _plain(content.get("model"))
    if not any(name.startswith("fast_net.") for name in model):
        return None
    ours = lambda name: name.removeprefix("fast_net.").replace("emb_q.", "head.", 1)
    state = {ours(name): value for name, value in model.items()}
    return Published(ResNet, state, _under("extractor", state))


def _crw(content):
    """CRW's file: {"model": ...}; names of the network start with `encoder.model.`, others belong to its training.

    In older files every padded convolution is wrapped, so that its name is `conv1.1.weight`.  The head is taken where
    it reads layer4, as the head of models.methods.crw does.
    """
    model = _plain(content.get("model"))
    encoder = _below("encoder.model", model)
    if "layer3.1.bn2.weight" not in encoder:
        return None
    encoder = {re.sub(r"(conv\d)\.1\.weight$", r"\1.weight", name): value for name, value in encoder.items()}
    state = {f"backbone.{k}": value for k, value in encoder.items() if not k.startswith(("layer4.", "fc."))}
    layer4 = _below("layer4", encoder)
    head = _below("selfsim_fc.0", model) if layer4 else {}
    training = _under("extractor", state) | _under("layer4", layer4) | _under("head", head)
    return Published(ReflectResNet, state, training)


def _ino(content):
    """INO's file: {"student", "teacher", ...}, the student alone, or a backbone alone.

    Names start with `backbone.` and `headlist.headlist.0.`.  The backbone has a mask token, unlike DINO's.
    """
    networks = {name: _plain(content.get(name)) for name in ("student", "teacher")}
    backbone = _backbone(networks["student"]) or _backbone(_plain(content))
    if "mask_token" not in backbone:
        return None
    training = {}
    for name, network in networks.items():
        network = network or networks["student"] or _under("backbone", backbone)  # both start from the same weights
        ours = {key.replace("headlist.headlist.0.", "head."): value for key, value in network.items()}
        training |= _under(name, ours)
    for ours, theirs in (("centre_class", "dino_loss_cls_list"), ("centre_patch", "dino_loss_hw_list")):
        centre = _plain(content.get(theirs)).get("0.center")
        if centre is not None:
            training[ours] = centre.flatten()
    return Published(_vit(backbone, 7, "INO"), _under("backbone", backbone), training)


def _dino(content):
    """DINO's file: a plain vision transformer, or {"student", "teacher", ...}, whose teacher is taken."""
    backbones = (_backbone(_plain(part)) for part in (content.get("teacher"), content.get("student"), content))
    backbone = next(filter(None, backbones), None)
    if backbone is None:
        return None
    training = {**_under("student.backbone", backbone), **_under("teacher.backbone", backbone)}
    return Published(_vit(backbone, 12, "DINO"), _under("backbone", backbone), training)


def _plain(network):
    """The dense tensors of a state_dict, names without `module.`; {} where network is no state_dict."""
    if not isinstance(network, dict):
        return {}
    named = {str(name).removeprefix("module."): value for name, value in network.items()}
    return {name: value for name, value in named.items() if isinstance(value, Tensor) and value.layout == strided}


def _below(prefix, state):
    """The tensors whose names start with `prefix.`, under the rest of their names."""
    return {name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(f"{prefix}.")}


def _under(prefix, state):
    """The tensors with `prefix.` before their names."""
    return {f"{prefix}.{name}": value for name, value in state.items()}


def _backbone(network):
    """The weights of a vision transformer in a state_dict, with or without `backbone.`; {} where there are none."""
    own = _below("backbone", network) or network
    return own if {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= own.keys() else {}


def _vit(backbone, block, protocol):
    """A function that makes the ViT for the weights of a backbone.  Raises UserError where this project has none."""
    # A damaged tensor may have too few dimensions: the missing lengths count as 0 or 1, which fit no network.
    channels, _, patch, _ = (*backbone["patch_embed.proj.weight"].shape, 0, 0, 0, 0)[:4]
    side = max(0, (*backbone["pos_embed"].shape, 1, 1)[1] - 1) ** 0.5
    sizes = [size for size, (width, _) in SIZES.items() if width == channels]
    if not sizes or patch not in (8, 16):
        known = ", ".join(f"{size} ({width})" for size, (width, _) in SIZES.items())
        raise UserError(
            f"looks like a vision transformer with {channels} channels and patches of {patch} px; what fits has "
            f"12 blocks, patches of 8 or 16 px and a size among {known}"
        )
    mask_token = "mask_token" in backbone
    return lambda: ViT(Backbone(sizes[0], patch, round(side) * patch, mask_token=mask_token), block, protocol)


def _looks(content):
    """The content of an unknown file in words."""
    inner = next((content[k] for k in ("model", "state_dict") if isinstance(content.get(k), dict)), content)
    names = [str(name).removeprefix("module.") for name in inner]
    for part, kind in (("layer4.", "a ResNet of another make"), ("blocks.", "a vision transformer of another make")):
        if any(part in name for name in names):
            return f"looks like {kind} ({', '.join(names[:3])}, ...)"
    return f"holds {', '.join(map(str, list(content)[:6])) or 'nothing'}"
