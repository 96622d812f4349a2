"""The sections of a configuration.

Limits stand beside the fields.  What a paper states has no default here: a configuration that leaves it out is
refused.  The section `method` is described by the method's own module.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from core.strict import Section, above, at_least, below_one, between


@dataclass(frozen=True)
class Clip(Section):
    """How T frames are taken from a video.

    frames: T.  gap: frames between two sampled frames at most; the window is min(length, gap * T) frames.
    fps: sampled frames per second of the video, instead of gap; folders of frames then need data.folder_fps.
    Where gap and fps are given, fps serves video files and data.folder_fps, gap all other frames.
    step: with gap, "whole" = window // T frames, "fraction" = window / T frames, rounded down per frame.
    order: "random" = any frame can be the reference (index 0), "kept" = as in the video.
    clips_per_video: clips, at random places, that an epoch takes from one video at most.
    """

    frames: Annotated[int, at_least(2)]
    order: Literal["random", "kept"]
    gap: Annotated[int | None, at_least(1)] = None
    step: Literal["whole", "fraction"] | None = None
    fps: Annotated[float | None, above(0)] = None
    clips_per_video: Annotated[int, at_least(1)] = 1

    def check(self):
        self.require("fps", (self.gap or self.fps) is not None, "given where clip.gap is left out")
        self.require("step", (self.gap is None) == (self.step is None), "given if and only if clip.gap is")


@dataclass(frozen=True)
class Data(Section):
    """Where the training video lies and how it is read.

    root: folder of frame folders or of video files.  list: optional text file naming frames or videos.
    reader: a name of datasets.readers, or "auto" for the one that reads the files there.  folder_fps: frames a second
    of the video that a folder of frames holds, asked for with clip.fps.  bad_share: share of unreadable clips above
    which training stops.
    batch_size: clips of one step, of all processes together.  accumulate: equal parts in which each process computes
    its share of them, one after another, for memory: their gradients are added up.
    """

    root: str
    reader: str
    batch_size: Annotated[int, between(1, 1 << 16)]
    list: str | None = None
    workers: Annotated[int, between(0, 512)] = 4
    folder_fps: Annotated[float | None, above(0)] = None
    bad_share: Annotated[float, between(0, 1)] = 0.05
    accumulate: Annotated[int, at_least(1)] = 1


@dataclass(frozen=True)
class Optim(Section):
    """Optimiser.  bias_lr_factor: learning rate of biases relative to lr; biases are never decayed.

    decay_norm_weights: whether the weights (not biases) of normalisation layers are decayed too.
    clip_norm: per-parameter gradient norm bound, or null.  precision: autocast type of the forward pass;
    auto = bf16 where the hardware has it, else fp32.
    lr_per_1024_frames: lr is meant for a batch of 1024 frames and scaled to the actual one (RunConfig.base_lr).
    compile: torch.compile network and loss; where that fails, a warning, and they run as they are.
    checkpointing: keep no activations inside the network's blocks, and compute them again in the backward pass: the
    same gradients for less memory and more time.
    """

    name: Literal["adam", "adamw", "sgd"]
    lr: Annotated[float, above(0)]
    weight_decay: Annotated[float, at_least(0)]
    bias_lr_factor: Annotated[float, above(0)]
    decay_norm_weights: bool
    betas: tuple[float, float] | None = None
    momentum: Annotated[float | None, below_one()] = None
    clip_norm: Annotated[float | None, above(0)] = None
    lr_per_1024_frames: bool = False
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    compile: bool = False
    checkpointing: bool = False

    def check(self):
        # torch's compiler decides by itself what it computes again.
        self.require("checkpointing", not (self.checkpointing and self.compile), "false with optim.compile")
        if self.name == "sgd":
            self.require("momentum", self.momentum is not None, "in [0, 1) for sgd")
            self.require("betas", self.betas is None, "left out for sgd")
        else:
            betas = self.betas or (-1,)
            self.require("betas", all(0 <= b < 1 for b in betas), f"two numbers in [0, 1) for {self.name}")
            self.require("momentum", self.momentum is None, f"left out for {self.name}")


@dataclass(frozen=True)
class Schedule(Section):
    """Learning rate and weight decay over the run; lengths in epochs, applied by global step.

    kind "step": lr times `factor` every `every_epochs`.  kind "cosine": linear warm-up from 0 over
    `warmup_epochs`, then half a cosine to `final_lr`; weight decay by cosine to `final_weight_decay`.
    steps: stop after so many steps (null: run all epochs).
    """

    kind: Literal["step", "cosine"]
    epochs: Annotated[int, at_least(1)]
    factor: Annotated[float | None, above(0)] = None
    every_epochs: Annotated[int | None, at_least(1)] = None
    warmup_epochs: Annotated[float, at_least(0)] = 0.0
    final_lr: Annotated[float | None, at_least(0)] = None
    final_weight_decay: Annotated[float | None, at_least(0)] = None
    steps: Annotated[int | None, at_least(1)] = None

    def check(self):
        self.require("warmup_epochs", self.warmup_epochs <= self.epochs, "between 0 and schedule.epochs")
        if self.kind == "step":
            self.require("factor", self.factor is not None and self.factor <= 1, "in (0, 1] for kind step")
            self.require("every_epochs", self.every_epochs is not None, "1 or more for kind step")
        else:
            self.require("final_lr", self.final_lr is not None, "0 or more for kind cosine")


@dataclass(frozen=True)
class Propagation(Section):
    """A protocol: label propagation (the first seven), and the way from mask to feature grid and back.

    window: "disc" = distance < radius, "closed_disc" = distance <= radius, "square" = |dy|, |dx| <= radius;
    radius in cells.
    window_reference: whether the window applies to the reference frame too.
    context: frames before the query that vote besides the reference.  repeat_reference: indices before the
    group's birth are replaced by the reference (DUL, CRW) instead of left out (INO, DINO).
    norm_frames: this many frames of the video, evenly spread, give means and variances to the batch norms of maps
    finer than the cells; 0 = they keep those of their training, as the others do.  Validation leaves it out.
    readout: "smooth" = soft mask bilinear (align_corners) to the video's size, argmax (DUL, CRW);
    "grid" = bilinear by the patch size, argmax there, nearest to the video's size (INO, DINO); "nearest" = nearest
    to the video's size, argmax, and nearest from the given mask to the grid instead of bilinear (DINOv3).
    min_max: every channel stretched to [0, 1] before the argmax (not with "smooth").
    short_side: frames resized to this short side first, or null = native.  multiple: both sides become
    multiples of it, null = of the network's cells.  rounding: "down", or "up" = the short side up, and the long one,
    in proportion to that, too.
    resize: "bilinear" on the device, or "bicubic" of the 8-bit picture, as Pillow computes it, antialiased.
    hd_to_720: 1920x1080 and 1920x816 frames first become 1280x720 (INO, YouTube-VOS).
    max_side: what is still larger than this is resized to it, for memory and time; null = whatever comes.
    """

    window: Literal["disc", "closed_disc", "square"]
    radius: Annotated[int, at_least(0)]
    window_reference: bool
    temperature: Annotated[float, above(0)]
    top_k: Annotated[int, at_least(1)]
    context: Annotated[int, at_least(0)]
    repeat_reference: bool
    norm_frames: Annotated[int, at_least(0)] = 0
    readout: Literal["smooth", "grid", "nearest"] = "smooth"
    min_max: bool = False
    short_side: Annotated[int | None, at_least(16)] = None
    multiple: Annotated[int | None, at_least(1)] = 1
    rounding: Literal["down", "up"] = "down"
    resize: Literal["bilinear", "bicubic"] = "bilinear"
    hd_to_720: bool = False
    max_side: Annotated[int | None, at_least(16)] = None

    def check(self):
        self.require("radius", self.radius >= 1 or self.window != "disc", "1 or more for a disc")
        self.require("min_max", not (self.min_max and self.readout == "smooth"), "false with readout 'smooth'")
        least = self.multiple or 1
        self.require("max_side", self.max_side is None or self.max_side >= least, f"{least} or more, or null")


@dataclass(frozen=True)
class Validation(Section):
    """What is measured during training, every `every_epochs` epochs (and at the end).

    root: a data set in DAVIS layout, or null for no validation.  clips_gap: gap of the clips whose loss is
    measured.  sequences: a short list of names, empty = all.  layers: feature layers whose J&F is measured;
    the best snapshot is chosen by the first.
    """

    every_epochs: Annotated[int, at_least(1)]
    root: str | None
    clips_gap: Annotated[int, at_least(1)]
    layers: tuple[str, ...]
    sequences: tuple[str, ...] = ()

    def check(self):
        self.require("layers", len(self.layers) >= 1, "at least one feature layer")


@dataclass(frozen=True)
class Log(Section):
    """How often things are written, in steps.  checkpoint_steps: last.pth; picture_steps: TensorBoard pictures.

    keep_every_epochs: epochs from one kept network (epoch0010.pth, ...) to the next; null = none is kept.
    """

    scalar_steps: Annotated[int, at_least(1)] = 10
    picture_steps: Annotated[int, at_least(1)] = 500
    checkpoint_steps: Annotated[int, at_least(1)] = 200
    keep_every_epochs: Annotated[int | None, at_least(1)] = None


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """One run: a YAML file of configs/ with what it is based on.

    method: the Config of one of models.methods.  protocol: a file of configs/protocols, how masks are propagated;
    propagation: what differs from it.
    """

    method: Any
    data: Data
    clip: Clip
    optim: Optim
    schedule: Schedule
    validation: Validation
    protocol: str
    propagation: dict[str, Any] = field(default_factory=dict)
    log: Log = field(default_factory=Log)
    seed: Annotated[int, between(0, (1 << 32) - 1)] = 0

    @property
    def base_lr(self) -> float:
        """The learning rate that the schedule starts from, for the batch of this run."""
        frames = self.data.batch_size * self.clip.frames
        return self.optim.lr * (frames / 1024 if self.optim.lr_per_1024_frames else 1)


def as_plain(config) -> dict[str, Any]:
    """A configuration -> plain dicts, lists and scalars, which models.configured turns into an equal one."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
