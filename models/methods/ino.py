"""INO: In-N-Out Generative Learning for Dense Unsupervised Video Segmentation (ACM MM 2022, arXiv 2203.15312).

A student learns the outputs of a teacher, its own moving average: for the clip as a whole from crops of other frames
(out), and for masked patches from their surroundings (in_mim) and from their affinity to the next frame (in_aff).

Legend: B clips, T frames, L local crops a frame, N patches of a global crop, n masked patches, K head outputs, R
images, g l pixels per side of global and local crops.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import nn

from core import distributed, schedule
from core.augment import normalise
from core.errors import UserError
from core.strict import Section, above, at_least, below_one, between, span
from models.backbones.vit import DEPTH, Backbone, ViT
from models.layers import initialise, seeded, sheet, tiled
from models.method import Losses
from models.method import Method as BaseMethod
from models.methods import ino_losses

# Probabilities and strengths of the changes to local crops; the order is flip, colours, grey, blur.
FLIP, JITTER, GREY, BLUR = 0.5, 0.8, 0.2, 0.5
COLOURS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
BLUR_SIGMA_PX = (0.1, 2.0)
BLUR_KERNEL_PX = 13  # three of the largest sigmas to either side
#: local crops in a row of TensorBoard's picture
PER_ROW = 4


@dataclass(frozen=True)
class Config(Section):
    """size, patch (px): of the backbone.  image_px: side of the image that the position embedding is made for.

    drop_path: the student's stochastic depth.  outputs: K.  head_hidden, bottleneck: widths of the head.
    feature_block: the block, from 1, whose output is the default layer.  inference: the network to track with.

    global_px, local_px: sides of the crops.  global_area, local_area: ranges of their share of the frame's area.
    local_crops: L.  mask_chance: probability that patches of a batch are masked; mask_share: range of the share of
    patches that are masked then.  centre_momentum: the share of itself that a centre keeps at every use.
    teacher_momentum: at the first step; it ends at 1.  frozen_epochs: for so long the head's last layer is not trained.
    teacher_warmup_temperature: the teacher's temperature at the first step; it moves linearly to teacher_temperature
    within teacher_warmup_epochs.  out_weight, in_mim_weight, in_aff_weight: weights of the loss's terms.
    """

    name: Literal["ino"]
    size: Literal["tiny", "small", "base"]
    patch: Literal[8, 16]
    image_px: Annotated[int, at_least(8)]
    drop_path: Annotated[float, below_one()]
    outputs: Annotated[int, at_least(2)]
    head_hidden: Annotated[int, at_least(1)]
    bottleneck: Annotated[int, at_least(1)]
    feature_block: Annotated[int, between(1, DEPTH)]
    global_px: Annotated[int, at_least(8)]
    global_area: Annotated[tuple[float, float], span(0, 1)]
    local_px: Annotated[int, at_least(8)]
    local_area: Annotated[tuple[float, float], span(0, 1)]
    local_crops: Annotated[int, at_least(1)]
    mask_chance: Annotated[float, between(0, 1)]
    mask_share: Annotated[tuple[float, float], span(0, 1)]
    student_temperature: Annotated[float, above(0)]
    teacher_temperature: Annotated[float, above(0)]
    centre_momentum: Annotated[float, below_one()]
    teacher_momentum: Annotated[float, between(0, 1)]
    frozen_epochs: Annotated[int, at_least(0)]
    inference: Literal["student", "teacher"] = "student"
    teacher_warmup_temperature: Annotated[float | None, above(0)] = None
    teacher_warmup_epochs: Annotated[float, at_least(0)] = 0.0
    out_weight: Annotated[float, at_least(0)] = 1.0
    in_mim_weight: Annotated[float, at_least(0)] = 1.0
    in_aff_weight: Annotated[float, at_least(0)] = 1.0

    def check(self):
        warms = self.teacher_warmup_epochs > 0
        both = warms == (self.teacher_warmup_temperature is not None)
        self.require("teacher_warmup_temperature", both, "given if and only if method.teacher_warmup_epochs is above 0")
        for key in ("image_px", "global_px", "local_px"):
            whole = getattr(self, key) % self.patch == 0
            self.require(key, whole, f"a multiple of method.patch = {self.patch}")


class Views:
    """clip -> {"global" [T,3,g,g], "local" [T,L,3,l,l]}, uint8; every crop of every frame drawn on its own."""

    def __init__(self, config: Config):
        from torchvision.transforms import v2  # takes a second, for programs that make no views, too

        self.local_crops = config.local_crops
        self.global_view = random_crop(config.global_px, config.global_area)
        self.local_view = v2.Compose(
            [
                random_crop(config.local_px, config.local_area),
                v2.RandomHorizontalFlip(FLIP),
                v2.RandomApply([v2.ColorJitter(**COLOURS)], JITTER),
                v2.RandomGrayscale(GREY),
                v2.RandomApply([v2.GaussianBlur(BLUR_KERNEL_PX, BLUR_SIGMA_PX)], BLUR),
            ]
        )

    def __call__(self, frames, rng):
        with seeded(rng):
            views = [self._frame(torch.from_numpy(frame).permute(2, 0, 1)) for frame in frames]
        return {name: torch.stack([view[name] for view in views]) for name in ("global", "local")}

    def _frame(self, pixels):
        # Tensors take half the time of Pillow images, and torch's uint8 kernels antialias in the same way.
        local = torch.stack([self.local_view(pixels) for _ in range(self.local_crops)])
        return {"global": self.global_view(pixels), "local": local}


def random_crop(side, area):
    """A transform that crops a share in the range `area` of a frame, 3:4 to 4:3, and resizes it to side x side."""
    from torchvision.transforms import v2

    cubic = v2.InterpolationMode.BICUBIC
    return v2.RandomResizedCrop(side, scale=area, ratio=(3 / 4, 4 / 3), interpolation=cubic, antialias=True)


class Head(nn.Module):
    """[..,D] -> [..,K]: linear, GELU, linear, GELU, linear to the bottleneck, unit norm, `Directions`."""

    def __init__(self, channels, hidden, bottleneck, outputs):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.apply(initialise)
        self.last_layer = Directions(bottleneck, outputs)

    def forward(self, x):
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class Directions(nn.Module):
    """Linear layer without bias whose rows have the length weight_g, fixed at 1; only weight_v is learnt.

    Torch's weight_norm and the published weights have the same names.
    """

    def __init__(self, channels, outputs):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1), requires_grad=False)
        self.weight_v = nn.Parameter(nn.Linear(channels, outputs, bias=False).weight.detach())

    def forward(self, x):
        return F.linear(x, F.normalize(self.weight_v, dim=1) * self.weight_g)


class Network(nn.Module):
    """Backbone and head; the head is the same for class and patch tokens."""

    def __init__(self, config, drop_path):
        super().__init__()
        self.backbone = Backbone(config.size, config.patch, config.image_px, drop_path)
        self.head = Head(self.backbone.channels, config.head_hidden, config.bottleneck, config.outputs)

    def forward(self, images, mask=None, places=None):
        """images [R,3,H,W] -> outputs of the class token [R,K] and of the patches at flat `places` [R,n,K]; float32."""
        tokens = self.backbone(images, mask)
        patches = tokens[:, 1:1] if places is None else tokens[:, 1 + places]
        return self.head(tokens[:, 0]).float(), self.head(patches).float()


class Method(BaseMethod):
    """Student, teacher, and the loss between them."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.student = Network(config, config.drop_path)
        self.teacher = Network(config, drop_path=0.0).requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())
        self.register_buffer("centre_class", torch.zeros(config.outputs))
        self.register_buffer("centre_patch", torch.zeros(config.outputs))

    @property
    def extractor(self):
        network = self.teacher if self.config.inference == "teacher" else self.student
        return ViT(network.backbone, self.config.feature_block)

    def forward(self, batch):
        """batch: global [B,T,3,g,g], local [B,T,L,3,l,l], uint8, prepared or not.  -> Losses: out, in_mim, in_aff."""
        if "mask" not in batch:
            (batch,) = self.prepare([batch])
        whole, local = (normalise(batch[name]).transpose(0, 1) for name in ("global", "local"))  # [T,B,...]
        T, B, L = local.shape[:3]
        student = self.student(whole.flatten(0, 1), batch["mask"], batch["places"])
        local_TBLK = self.student(local.flatten(0, 2))[0].unflatten(0, (T, B, L))
        student_class, student_patch = (outputs.unflatten(0, (T, B)) for outputs in student)
        teacher_class, teacher_patch = batch["teacher_class"], batch["teacher_patch"]

        with torch.autocast(whole.device.type, enabled=False):
            tau = ino_losses.Temperatures(self.config.student_temperature, batch["teacher_temperature"])
            local_TLBK = local_TBLK.transpose(1, 2)
            terms = {
                "out": ino_losses.out_loss(student_class, local_TLBK, teacher_class, batch["centres_class"], tau),
                "in_mim": ino_losses.in_mim_loss(student_patch, teacher_patch, batch["centres_patch"], tau),
                "in_aff": ino_losses.in_aff_loss(student_patch, teacher_patch, tau),
            }
            total = torch.stack([getattr(self.config, f"{name}_weight") * term for name, term in terms.items()]).sum()
        return Losses(total, {name: term.detach() for name, term in terms.items()})

    @torch.no_grad()
    def prepare(self, parts, progress=None):
        """Add the mask, which is the same for the whole batch, and the teacher's outputs, centres and temperature.

        The teacher sees the whole batch before the student sees its first part: between two uses a centre moves by the
        mean of the batch.  progress: None = take the teacher's last temperature.  Raises UserError for clips of an odd
        number of frames.
        """
        T = parts[0]["global"].shape[1]
        if T % 2:
            raise UserError(f"clip.frames = {T}: must be even for ino, which pairs the frames of its two halves")
        crops = parts[0]["global"]
        mask = self._draw_mask(crops)
        places = mask.nonzero()[:, 0]  # on the CPU: on a device it would wait until the device has counted
        mask, places = (each.to(crops.device, non_blocking=True) for each in (mask, places))
        images = (normalise(part["global"]).transpose(0, 1).flatten(0, 1) for part in parts)
        seen = [[out.unflatten(0, (T, -1)) for out in self.teacher(each, places=places)] for each in images]
        class_means = [ino_losses.pair_means(of_class) for of_class, _ in seen]
        patch_means = [ino_losses.frame_means(of_patch) for _, of_patch in seen]
        shared = {
            "mask": mask,
            "places": places,
            "centres_class": self._move(self.centre_class, class_means),
            "centres_patch": self._move(self.centre_patch, patch_means),
            "teacher_temperature": torch.full((), self._teacher_temperature(progress), device=mask.device),
        }
        return [
            {**part, **shared, "teacher_class": of_class, "teacher_patch": of_patch}
            for part, (of_class, of_patch) in zip(parts, seen)
        ]

    def _move(self, centre, means):
        """Move a centre by the means [U,K] of each part of a batch.  Returns the centre at every use [U+1,K]."""
        # In validation the centre does not move: it must leave no trace, and each process validates other clips.
        momentum = self.config.centre_momentum if self.training else 1.0
        centres = ino_losses.trail(centre, distributed.mean(torch.stack(means).mean(0)), momentum)
        centre.copy_(centres[-1])  # in place: DistributedDataParallel keeps the buffers that it found
        return centres

    def _teacher_temperature(self, progress):
        first, last = self.config.teacher_warmup_temperature, self.config.teacher_temperature
        if first is None or progress is None:
            return last
        warmup = self.config.teacher_warmup_epochs * progress.steps_per_epoch
        return last if progress.step >= warmup else first + (last - first) * progress.step / warmup

    def before_step(self, progress):
        """Do not train the head's last layer in the first epochs."""
        if progress.epoch < self.config.frozen_epochs:
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None

    @torch.no_grad()
    def after_step(self, progress):
        """Move the teacher towards the student, slower and slower."""
        keep = schedule.cosine(progress.step, self.config.teacher_momentum, 1.0, progress.total_steps)
        follow(self.teacher, self.student, keep)

    @torch.no_grad()
    def pictures(self, batch):
        one = {name: value[0] for name, value in batch.items()}
        looks = self.teacher.backbone.class_attention(normalise(one["global"]))[:, :, 1:]
        return {"sample": training_sample(one, self._draw_mask(one["global"]).to(looks.device), looks)}

    def _draw_mask(self, crops):
        """The masked patches of this batch, bool [N] on the CPU: none, or a random share; the same on all ranks."""
        count = (crops.shape[-1] // self.config.patch) ** 2
        low, high = self.config.mask_share
        chance, share = torch.rand(2).tolist()
        masked = int((low + (high - low) * share) * count) if chance < self.config.mask_chance else 0
        mask = torch.zeros(count, dtype=torch.bool)
        mask[torch.randperm(count)[:masked]] = True
        return distributed.from_first(mask) if self.training else mask


def follow(teacher, student, keep):
    """teacher = keep * teacher + (1 - keep) * student, parameter by parameter."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - keep)


def training_sample(clip, mask, looks):
    """One clip as a sheet with a column for each frame.  -> uint8 [3, rows, columns].

    clip: "global" [T,3,g,g], "local" [T,L,3,l,l], uint8.  mask: bool [N].  looks [T,heads,N]: attention of the
    teacher's class token.  Rows: the global crop; the same crop with grey masked patches, as the student sees it; the
    attention of the teacher's class token, mean over the heads (brightest = most); the local crops.
    """
    whole = clip["global"].float() / 255
    cells, side = round(len(mask) ** 0.5), whole.shape[-1]
    hidden = _enlarge(mask.float().view(1, 1, cells, cells), side)
    looks = looks.float().mean(1)
    looks = _enlarge((looks / looks.amax(1, keepdim=True)).view(-1, 1, cells, cells), side)
    return sheet([whole, whole * (1 - hidden) + 0.5 * hidden, whole * (0.2 + 0.8 * looks), _small(clip["local"], side)])


def _enlarge(maps, side):
    return F.interpolate(maps, size=(side, side), mode="nearest")


def _small(local, side):
    """[T,L,3,l,l] -> [T,3,height,side]: PER_ROW crops in a row; places without a crop are black."""
    T, L = local.shape[:2]
    small = F.interpolate(local.flatten(0, 1).float() / 255, size=(side // PER_ROW,) * 2, mode="nearest")
    pictures = small.new_zeros(T, L + -L % PER_ROW, 3, *small.shape[-2:])
    pictures[:, :L] = small.unflatten(0, (T, L))
    rows = tiled(pictures, PER_ROW)
    return F.pad(rows, (0, side - rows.shape[-1]))
