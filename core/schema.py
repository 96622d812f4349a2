"""The sections of a configuration that several rooms share, as frozen values that check themselves.

Every YAML in configs/ has these sections; `method` is described by the method's own module.  What a paper
states has no default here: a configuration that leaves it out is refused.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from core.errors import UserError


def checker(section, title):
    """check(key, ok, allowed): UserError "title.key = value: must be allowed" unless ok."""

    def check(key, ok, allowed):
        if not ok:
            raise UserError(f"{title}.{key} = {getattr(section, key)!r}: must be {allowed}")

    return check


@dataclass(frozen=True)
class Clip:
    """How T frames are taken from a video.

    frames: T.  gap: frames between two sampled frames at most; the window is min(length, gap * T) frames.
    fps: sampled frames per second of the video, instead of gap; folders of frames then need data.folder_fps.
    step: with gap, "whole" = window // T frames, "fraction" = window / T frames, rounded down per frame.
    order: "random" = any frame can be the reference (index 0), "kept" = as in the video.
    clips_per_video: clips, at random places, that an epoch takes from one video at most.
    """

    frames: int
    order: Literal["random", "kept"]
    gap: int | None = None
    step: Literal["whole", "fraction"] | None = None
    fps: float | None = None
    clips_per_video: int = 1

    def __post_init__(self):
        check = checker(self, "clip")
        check("frames", self.frames >= 2, "2 or more")
        check("gap", self.gap is None or self.gap >= 1, "1 or more")
        check("fps", self.fps is None or self.fps > 0, "above 0")
        check("fps", (self.gap is None) != (self.fps is None), "given if and only if clip.gap is left out")
        check("step", (self.gap is None) == (self.step is None), "given if and only if clip.gap is")
        check("clips_per_video", self.clips_per_video >= 1, "1 or more")


@dataclass(frozen=True)
class Data:
    """Where the training video lies and how it is read.

    root: folder of frame folders or of video files.  list: optional text file naming frames or videos.
    reader: a module of datasets/readers.  folder_fps: frames a second of the video that a folder of frames holds,
    asked for with clip.fps.  bad_share: share of unreadable clips above which training stops.
    """

    root: str
    reader: str
    batch_size: int
    list: str | None = None
    workers: int = 4
    folder_fps: float | None = None
    bad_share: float = 0.05

    def __post_init__(self):
        check = checker(self, "data")
        check("batch_size", self.batch_size >= 1, "1 or more")
        check("workers", self.workers >= 0, "0 or more")
        check("folder_fps", self.folder_fps is None or self.folder_fps > 0, "above 0, or null")
        check("bad_share", 0 <= self.bad_share <= 1, "between 0 and 1")


@dataclass(frozen=True)
class Optim:
    """Optimiser.  bias_lr_factor: learning rate of biases relative to lr; biases are never decayed.

    decay_norm_weights: whether the weights (not biases) of normalisation layers are decayed too.
    clip_norm: per-parameter gradient norm bound, or null.  precision: autocast type of the forward pass;
    auto = bf16 where the hardware has it, else fp32.
    lr_per_1024_frames: lr is meant for a batch of 1024 frames and scaled to the actual one (RunConfig.base_lr).
    """

    name: Literal["adam", "adamw", "sgd"]
    lr: float
    weight_decay: float
    bias_lr_factor: float
    decay_norm_weights: bool
    betas: tuple[float, float] | None = None
    momentum: float | None = None
    clip_norm: float | None = None
    lr_per_1024_frames: bool = False
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"

    def __post_init__(self):
        check = checker(self, "optim")
        check("lr", self.lr > 0, "above 0")
        check("weight_decay", self.weight_decay >= 0, "0 or more")
        check("bias_lr_factor", self.bias_lr_factor > 0, "above 0")
        check("clip_norm", self.clip_norm is None or self.clip_norm > 0, "above 0, or null")
        if self.name == "sgd":
            check("momentum", self.momentum is not None and 0 <= self.momentum < 1, "in [0, 1) for sgd")
            check("betas", self.betas is None, "left out for sgd")
        else:
            ok = self.betas is not None and all(0 <= b < 1 for b in self.betas)
            check("betas", ok, f"two numbers in [0, 1) for {self.name}")
            check("momentum", self.momentum is None, f"left out for {self.name}")


@dataclass(frozen=True)
class Schedule:
    """Learning rate and weight decay over the run; lengths in epochs, applied by global step.

    kind "step": lr times `factor` every `every_epochs`.  kind "cosine": linear warm-up from 0 over
    `warmup_epochs`, then half a cosine to `final_lr`; weight decay by cosine to `final_weight_decay`.
    steps: stop after so many steps (null: run all epochs).
    """

    kind: Literal["step", "cosine"]
    epochs: int
    factor: float | None = None
    every_epochs: int | None = None
    warmup_epochs: float = 0.0
    final_lr: float | None = None
    final_weight_decay: float | None = None
    steps: int | None = None

    def __post_init__(self):
        check = checker(self, "schedule")
        check("epochs", self.epochs >= 1, "1 or more")
        check("steps", self.steps is None or self.steps >= 1, "1 or more, or null")
        check("warmup_epochs", 0 <= self.warmup_epochs <= self.epochs, "between 0 and schedule.epochs")
        if self.kind == "step":
            check("factor", self.factor is not None and 0 < self.factor <= 1, "in (0, 1] for kind step")
            check("every_epochs", self.every_epochs is not None and self.every_epochs >= 1, "1 or more for kind step")
        else:
            check("final_lr", self.final_lr is not None and self.final_lr >= 0, "0 or more for kind cosine")


@dataclass(frozen=True)
class Propagation:
    """Label propagation (five numbers), and the way from mask to feature grid and back (protocol).

    window: "disc" = distance < radius, "closed_disc" = distance <= radius, "square" = |dy|, |dx| <= radius;
    radius in cells.
    window_reference: whether the window applies to the reference frame too.
    context: frames before the query that vote besides the reference.  repeat_reference: indices before the
    group's birth are replaced by the reference (DUL, CRW) instead of left out (INO, DINO).
    readout: "smooth" = soft mask bilinear (align_corners) to the video's size, argmax (DUL, CRW);
    "grid" = bilinear by the patch size, argmax there, nearest to the video's size (INO, DINO).
    min_max: every channel stretched to [0, 1] before the argmax ("grid" only).
    short_side: frames resized to this short side first, or null = native.  multiple: both sides rounded
    down to a multiple, null = of the network's cells (see InferenceConfig.propagation_on).
    hd_to_720: 1920x1080 and 1920x816 frames first become 1280x720 (INO, YouTube-VOS).
    max_side: what is still larger than this is resized to it, for memory and time; null = whatever comes.
    """

    window: Literal["disc", "closed_disc", "square"]
    radius: int
    window_reference: bool
    temperature: float
    top_k: int
    context: int
    repeat_reference: bool
    readout: Literal["smooth", "grid"] = "smooth"
    min_max: bool = False
    short_side: int | None = None
    multiple: int | None = 1
    hd_to_720: bool = False
    max_side: int | None = None

    def __post_init__(self):
        check = checker(self, "propagation")
        windows = ("disc", "closed_disc", "square")
        check("window", self.window in windows, f"one of {', '.join(windows)}")
        least = 1 if self.window == "disc" else 0
        check("radius", self.radius >= least, f"{least} or more for a {self.window}")
        check("temperature", self.temperature > 0, "above 0")
        check("top_k", self.top_k >= 1, "1 or more")
        check("context", self.context >= 0, "0 or more")
        check("readout", self.readout in ("smooth", "grid"), "'smooth' or 'grid'")
        check("min_max", not (self.min_max and self.readout == "smooth"), "false with readout 'smooth'")
        check("short_side", self.short_side is None or self.short_side >= 16, "16 or more, or null")
        check("multiple", self.multiple is None or self.multiple >= 1, "1 or more, or null")
        least = max(16, self.multiple or 1)
        check("max_side", self.max_side is None or self.max_side >= least, f"{least} or more, or null")


@dataclass(frozen=True)
class Validation:
    """What is measured during training, every `every_epochs` epochs (and at the end).

    root: a data set in DAVIS layout, or null for no validation.  clips_gap: gap of the clips whose loss is
    measured.  sequences: a short list of names, empty = all.  keys: feature layers whose J&F is measured;
    the best snapshot is chosen by the first.
    """

    every_epochs: int
    root: str | None
    clips_gap: int
    keys: tuple[str, ...]
    sequences: tuple[str, ...] = ()

    def __post_init__(self):
        check = checker(self, "validation")
        check("every_epochs", self.every_epochs >= 1, "1 or more")
        check("clips_gap", self.clips_gap >= 1, "1 or more")
        check("keys", len(self.keys) >= 1, "at least one feature layer")


@dataclass(frozen=True)
class Log:
    """How often things are written, in steps.  checkpoint_steps: last.pth; picture_steps: TensorBoard pictures."""

    scalar_steps: int = 10
    picture_steps: int = 500
    checkpoint_steps: int = 200

    def __post_init__(self):
        check = checker(self, "log")
        for name in ("scalar_steps", "picture_steps", "checkpoint_steps"):
            check(name, getattr(self, name) >= 1, "1 or more")


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """What it takes to use a network.  `method` is the Config of models/methods/<method.name>.py.

    propagation_ytvos: what YouTube-VOS is segmented with where that differs; null = as every other data set.
    protocol: the file of configs/protocols that these two are taken from, but for what the configuration itself
    says of them; null = from none.
    """

    method: Any
    propagation: Propagation
    propagation_ytvos: Propagation | None = None
    protocol: str | None = None
    seed: int = 0

    def __post_init__(self):
        if self.seed < 0:
            raise UserError(f"seed = {self.seed}: must be 0 or more")

    def propagation_on(self, dataset, cell_px):
        """The Propagation of a data set by its name ("davis", "ytvos", ...), for a network with cells of cell_px."""
        chosen = (dataset == "ytvos" and self.propagation_ytvos) or self.propagation
        return chosen if chosen.multiple else replace(chosen, multiple=cell_px)


@dataclass(frozen=True, kw_only=True)
class RunConfig(InferenceConfig):
    """One run: every section of one YAML file."""

    data: Data
    clip: Clip
    optim: Optim
    schedule: Schedule
    validation: Validation
    log: Log = field(default_factory=Log)

    @property
    def base_lr(self):
        """The learning rate that the schedule starts from, for the batch of this run."""
        frames = self.data.batch_size * self.clip.frames
        return self.optim.lr * (frames / 1024 if self.optim.lr_per_1024_frames else 1)
