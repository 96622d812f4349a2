"""Vision transformer with class token, optional mask token and a position embedding for images of any size.

Modules have the names of DINO's and INO's published weights, which therefore load by name.
Legend: B images, D channels, N patches, h w patches per side, L = 1 + N tokens (class token first).
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from models.extractor import Extractor
from models.layers import initialise

#: size -> (channels, attention heads); every size has 12 blocks
SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
DEPTH = 12


class Backbone(nn.Module):
    """images [B,3,H,W] -> tokens [B,1+N,D] after the final LayerNorm, N = (H // patch) * (W // patch).

    size: a key of SIZES.  patch: pixels per side.  image_px: side of the square image that the position embedding is
    made for.  drop_path: probability of stochastic depth in training, which grows along the blocks from 0 to this.
    mask_token: whether there is a learnable token for masked patches.
    """

    def __init__(self, size="small", patch=8, image_px=64, drop_path=0.0, mask_token=True):
        super().__init__()
        self.channels, heads = SIZES[size]
        self.stride, self.side = patch, image_px // patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.channels))
        if mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, self.channels))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.side**2, self.channels))
        # Pixels at the lower and right edge that do not fill a patch are left out.
        embedding = nn.Conv2d(3, self.channels, kernel_size=patch, stride=patch)
        self.patch_embed = nn.Sequential(OrderedDict(proj=embedding))
        rates = [drop_path * n / (DEPTH - 1) for n in range(DEPTH)]
        self.blocks = nn.ModuleList(Block(self.channels, heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(self.channels, eps=1e-6)
        for own in self.parameters(recurse=False):
            nn.init.trunc_normal_(own, std=0.02)
        self.apply(initialise)

    def forward(self, images, mask=None, blocks=DEPTH):
        """mask: bool, [N] for all images or [B,N]: patches that the mask token replaces.

        blocks: how many blocks run; 7 gives the output of the 6th block from the end.
        """
        x = self.tokens(images, mask)
        for block in self.blocks[:blocks]:
            x = block(x)
        return self.norm(x)

    def tokens(self, images, mask=None):
        """The input of the first block, [B,1+N,D]: class token and patches (or mask tokens), with positions added."""
        maps = self.patch_embed(images)
        x = maps.flatten(2).transpose(1, 2)
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        return x + self.positions(*maps.shape[-2:])

    def positions(self, h, w):
        """The position embedding of an h x w grid, [1,1+h*w,D].

        The published weights were trained with the added 0.1, which shifts the bicubic samples.
        """
        if (h, w) == (self.side, self.side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (self.side, self.side))
        scale = ((h + 0.1) / self.side, (w + 0.1) / self.side)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        assert grid.shape[-2:] == (h, w)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    def class_attention(self, images):
        """The attention of the class token in the last block: [B,heads,1+N], rows sum to 1."""
        x = self.tokens(images)
        for block in self.blocks[:-1]:
            x = block(x)
        query, key, _ = self.blocks[-1].attn.split(self.blocks[-1].norm1(x))
        scores = query[:, :, :1] @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
        return scores[:, :, 0].softmax(-1)


class ViT(Extractor):
    """The patch tokens of every block, behind the last norm: layers block1 ... block12.

    block: number of the default layer, from 1.
    """

    def __init__(self, backbone: Backbone, block: int, protocol: str = "INO"):
        super().__init__()
        self.backbone, self.protocol = backbone, protocol
        self.layers = tuple(f"block{n}" for n in (block, *(n for n in range(DEPTH, 0, -1) if n != block)))

    def maps(self, images, layer):
        px = self.backbone.stride
        self.require_whole_cells(images, px)
        tokens = self.backbone(images, blocks=int(layer.removeprefix("block")))
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (images.shape[-2] // px, images.shape[-1] // px))

    def cell_px(self, layer):
        return self.backbone.stride


class Block(nn.Module):
    """Attention and MLP, each with a LayerNorm before it and a shortcut around it.  [B,L,D] -> [B,L,D]."""

    def __init__(self, channels, heads, drop_path):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        wide, narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.mlp = nn.Sequential(OrderedDict(fc1=wide, act=nn.GELU(), fc2=narrow))
        self.drop_path = drop_path

    def forward(self, x):
        x = x + self._dropped(self.attn(self.norm1(x)))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, branch):
        """Stochastic depth: in training, the branch of every image is left out with probability drop_path."""
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        return branch * (torch.rand(len(branch), 1, 1, device=branch.device) < keep) / keep


class Attention(nn.Module):
    """Multi-head self-attention.  [B,L,D] -> [B,L,D]."""

    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def split(self, x):
        """Query, key and value, [B,heads,L,D/heads] each."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x):
        query, key, value = self.split(x)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
