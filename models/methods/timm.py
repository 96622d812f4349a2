"""Networks of the package timm, as they are: features for inference, nothing to train, hence no Views."""

from dataclasses import dataclass
from typing import Literal

import torch

from core import components
from models.layers import unit
from models.method import Method as BaseMethod


@dataclass(frozen=True)
class Config:
    """model: a network's name in timm, for example vit_small_patch14_dinov2 or convnext_tiny.in12k."""

    name: Literal["timm"]
    backbone: Literal["timm"]
    model: str


class Method(BaseMethod):
    """weights: None = random, "pretrained" = those that timm downloads, else a file."""

    def __init__(self, config, weights=None):
        super().__init__()
        self.backbone = components.load("backbone", config.backbone).Backbone(config.model, weights)
        self.keys, self.mean, self.std = tuple(self.backbone.layers), self.backbone.mean, self.backbone.std

    def cell_px(self, key):
        return self.backbone.layers[key][1]

    @torch.no_grad()
    def features(self, frames, key):
        return unit(self.backbone(frames, key))
