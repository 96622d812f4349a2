"""INO: In-N-Out Generative Learning for Dense Unsupervised Video Segmentation (ACM MM 2022, arXiv 2203.15312).

A student learns what a teacher, its own moving average, sees: the clip as a whole from crops of other frames
(out), and masked patches from their surroundings (in_mim) and from their affinity to the next frame (in_aff).

Legend: B clips, T frames, L local crops a frame, N patches of a global crop, n masked ones, K head outputs.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from core import components, distributed, schedule
from core.errors import UserError
from core.schema import checker
from models.layers import unit
from models.method import Losses
from models.method import Method as BaseMethod
from models.methods.ino_head import Head
from models.methods.ino_losses import Sharpness, in_aff_loss, in_mim_loss, out_loss
from models.methods.ino_published import PUBLISHED_CONFIG, published
from models.methods.ino_views import Views

__all__ = ["PUBLISHED_CONFIG", "Config", "Method", "Views", "published"]


@dataclass(frozen=True)
class Config:
    """size, patch (px): the backbone.  image_px: side of the image that the position embedding is made for.

    drop_path: the student's stochastic depth.  outputs: K; null = a backbone alone, for inference, without
    head, teacher and mask token.  head_hidden, bottleneck: widths of the head.  feature_block: the block,
    from 1, whose output is the default key.  inference: whose features.

    global_px, local_px: sides of the crops.  global_area, local_area: their share of the frame's area.
    mask_chance: of a batch with masked patches; mask_share: of the patches, then.  centre_momentum: what the
    centres keep at every use.  teacher_momentum: at the first step; it ends at 1.  frozen_epochs: how long
    the head's last layer waits.
    """

    name: Literal["ino"]
    backbone: Literal["vit"]
    size: Literal["tiny", "small", "base"]
    patch: Literal[8, 16]
    image_px: int
    drop_path: float
    outputs: int | None
    head_hidden: int
    bottleneck: int
    feature_block: int
    global_px: int
    global_area: tuple[float, float]
    local_px: int
    local_area: tuple[float, float]
    local_crops: int
    mask_chance: float
    mask_share: tuple[float, float]
    student_temperature: float
    teacher_temperature: float
    centre_momentum: float
    teacher_momentum: float
    frozen_epochs: int
    inference: Literal["student", "teacher"] = "student"

    def __post_init__(self):
        check = checker(self, "method")
        for key in ("image_px", "global_px", "local_px"):
            side = getattr(self, key)
            check(key, side >= self.patch and side % self.patch == 0, f"a multiple of method.patch = {self.patch}")
        check("outputs", self.outputs is None or self.outputs >= 2, "2 or more, or null")
        for key in ("head_hidden", "bottleneck", "local_crops"):
            check(key, getattr(self, key) >= 1, "1 or more")
        for key in ("student_temperature", "teacher_temperature"):
            check(key, getattr(self, key) > 0, "above 0")
        for key in ("drop_path", "centre_momentum"):
            check(key, 0 <= getattr(self, key) < 1, "0 or more and below 1")
        for key in ("mask_chance", "teacher_momentum"):
            check(key, 0 <= getattr(self, key) <= 1, "between 0 and 1")
        for key in ("global_area", "local_area", "mask_share"):
            low, high = getattr(self, key)
            check(key, 0 < low <= high <= 1, "[low, high] with 0 < low <= high <= 1")
        check("frozen_epochs", self.frozen_epochs >= 0, "0 or more")
        depth = components.load("backbone", self.backbone).DEPTH
        check("feature_block", 1 <= self.feature_block <= depth, f"between 1 and {depth}")
        check("inference", self.outputs or self.inference == "student", "'student' where method.outputs is null")


class Network(nn.Module):
    """Backbone and head; the head is the same for class and patch tokens."""

    def __init__(self, config, drop_path):
        super().__init__()
        c = config
        kind = components.load("backbone", c.backbone).Backbone
        self.backbone = kind(c.size, c.patch, c.image_px, drop_path, mask_token=c.outputs is not None)
        if c.outputs is not None:
            self.head = Head(self.backbone.channels, c.head_hidden, c.bottleneck, c.outputs)

    def forward(self, images, mask=None, places=None):
        """images [R,3,H,W] -> class output [R,K] and those of the patches at flat `places`, [R,n,K]; float32."""
        tokens = self.backbone(images, mask)
        patches = tokens[:, 1:1] if places is None else tokens[:, 1 + places]
        return self.head(tokens[:, 0]).float(), self.head(patches).float()


class Method(BaseMethod):
    """Student, teacher, and the loss between them."""

    def __init__(self, config):
        super().__init__()
        self.config, self.stride = config, config.patch
        self.student = Network(config, config.drop_path)
        depth = self.student.backbone.depth
        blocks = [config.feature_block, *(n for n in range(depth, 0, -1) if n != config.feature_block)]
        self.keys = tuple(f"block{n}" for n in blocks)
        if config.outputs is not None:
            self.teacher = Network(config, drop_path=0.0).requires_grad_(False)
            self.teacher.load_state_dict(self.student.state_dict())
            self.register_buffer("centre_class", torch.zeros(config.outputs))
            self.register_buffer("centre_patch", torch.zeros(config.outputs))

    def forward(self, batch, progress=None):
        """batch: global [B,T,3,g,g], local [B,T,L,3,l,l].  -> Losses: out, in_mim, in_aff."""
        self._require_head()
        whole, local = by_frame(batch["global"]), by_frame(batch["local"])  # [T,B,...]
        T, B, L = local.shape[:3]
        if T % 2:
            raise UserError(f"clip.frames = {T}: must be even for ino, which pairs the frames of its two halves")
        mask = self._draw_mask(whole)
        places = mask.nonzero()[:, 0]
        with torch.no_grad():
            teacher = self.teacher(whole.flatten(0, 1), places=places)
        student = self.student(whole.flatten(0, 1), mask, places)
        local_TBLK = self.student(local.flatten(0, 2))[0].unflatten(0, (T, B, L))
        student_class, student_patch = (outputs.unflatten(0, (T, B)) for outputs in student)
        teacher_class, teacher_patch = (outputs.unflatten(0, (T, B)) for outputs in teacher)

        with torch.autocast(whole.device.type, enabled=False):
            sharpness = self._sharpness()
            out, centre_class = out_loss(
                student_class, local_TBLK.transpose(1, 2), teacher_class, self.centre_class, sharpness
            )
            in_mim, centre_patch = in_mim_loss(student_patch, teacher_patch, self.centre_patch, sharpness)
            in_aff = in_aff_loss(student_patch, teacher_patch, sharpness)
        # In place: DistributedDataParallel holds on to the buffers it found.
        self.centre_class.copy_(centre_class)
        self.centre_patch.copy_(centre_patch)
        terms = {"out": out, "in_mim": in_mim, "in_aff": in_aff}
        return Losses(out + in_mim + in_aff, {name: term.detach() for name, term in terms.items()})

    def before_step(self, progress):
        """The head's last layer rests in the first epochs."""
        if progress.epoch < self.config.frozen_epochs:
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None

    @torch.no_grad()
    def after_step(self, progress):
        """The teacher follows the student, slower and slower."""
        keep = schedule.cosine(progress.step, self.config.teacher_momentum, 1.0, progress.total_steps)
        follow(self.teacher, self.student, keep)

    @torch.no_grad()
    def features(self, frames, key):
        H, W = frames.shape[-2:]
        if H % self.stride or W % self.stride:
            raise UserError(f"frames of {H} x {W} px: this network needs propagation.multiple = {self.stride}")
        network = self.teacher if self.config.inference == "teacher" else self.student
        tokens = network.backbone(frames, blocks=int(key.removeprefix("block")))
        maps = tokens[:, 1:].transpose(1, 2).unflatten(2, (H // self.stride, W // self.stride))
        return unit(maps)

    @torch.no_grad()
    def pictures(self, batch):
        from models.methods.ino_pictures import training_sample

        self._require_head()
        one = {name: value[0] for name, value in batch.items()}
        return {"sample": training_sample(one, self._draw_mask(one["global"]), self.teacher.backbone)}

    def _draw_mask(self, crops):
        """The masked patches of this batch, bool [N]: all False, or a random share; the same on all ranks.

        Drawn on the CPU, so that a run draws the same on every device.
        """
        count = (crops.shape[-1] // self.stride) ** 2
        low, high = self.config.mask_share
        chance, share = torch.rand(2).tolist()
        masked = int((low + (high - low) * share) * count) if chance < self.config.mask_chance else 0
        mask = torch.zeros(count, dtype=torch.bool)
        mask[torch.randperm(count)[:masked]] = True
        mask = mask.to(crops.device)
        return distributed.from_first(mask) if self.training else mask

    def _sharpness(self):
        # Validation must leave no trace, and rank 0 is alone with it.
        keep = self.config.centre_momentum if self.training else 1.0
        return Sharpness(self.config.student_temperature, self.config.teacher_temperature, keep)

    def _require_head(self):
        if self.config.outputs is None:
            raise UserError("method.outputs = null: a backbone alone serves inference; training needs a number")


def by_frame(clips):
    """[B,T,...] -> [T,B,...]."""
    return clips.transpose(0, 1)


def follow(teacher, student, keep):
    """teacher = keep * teacher + (1 - keep) * student, parameter by parameter."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - keep)
