"""One video: frames in, ids out."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from core.errors import UserError
from core.schema import Propagation
from labelprop import pipeline
from labelprop.context import Context
from labelprop.readout import nearest, to_grid, to_ids, working_size

#: pixels by which the sides of a mask may differ from its frame's; data sets have such masks
SLACK_PX = 2
#: results on their way from a GPU at a time: it works on while the host waits for an older one
LANDING = 4


class Video:
    """One video.  `segment` takes all its frames; or `batch`, `features` and `step` take them as they come.

    network: a function of frames, float32 RGB in [0,1] [B,3,height,width] at the working size, on the device.  It
    returns their features [B,D,h,w], unit norm over D.  backend: as for labelprop.propagate.
    """

    def __init__(
        self, network: Callable[[Tensor], Tensor], cfg: Propagation, backend: str = "auto",
        device: str | torch.device = "cpu",
    ):  # fmt: skip
        self.network, self.cfg = network, cfg
        self.device = torch.empty(0, device=device).device  # with its number: another thread's "cuda" may differ
        self.context = Context(cfg, backend)
        self.size: Any = None  # (H, W) of all its frames
        self.working: Any = None  # (height, width) at which the network sees them
        self.t = 0  # the frame whose ids `step` gives next
        self.ids: list[int] = []  # the id of each channel
        self.channels: Any = None  # the same as a tensor on the device
        self.finite = torch.ones((), dtype=torch.bool, device=self.device)  # all features so far

    def segment(
        self, frames: Iterable[np.ndarray], masks: dict[int, np.ndarray], batch: int = 1, ahead: int = 0,
        confidence: bool = False,
    ) -> Iterator[Any]:  # fmt: skip
        """Yields the ids of every frame in order, uint8 [H,W].  frames, masks, confidence: as for Tracker.segment.

        batch: frames through the network at a time.  ahead: batches that a thread reads, resizes and copies to the
        device in advance.  Memory does not depend on the video's length.
        """
        masks = {t: as_ids(mask, t) for t, mask in masks.items()}
        with closing(self._segmented(frames, masks, batch, ahead, confidence)) as results:
            yield from self.landed(results, LANDING if self.device.type == "cuda" else 0)
        late = sorted(t for t in masks if t >= self.t)
        if late:
            warnings.warn(f"masks given for frames {late}, but the video has {self.t} frames", stacklevel=2)

    def _segmented(self, frames, masks, batch, ahead, confidence):
        """The ids of every frame, as `step` returns them.  Keeps no frame."""
        with closing(pipeline.ahead(self._batches(iter(frames), batch), ahead)) as batches:
            for inputs in batches:
                features_BDhw = self.features(inputs)
                del inputs
                for features_Dhw in features_BDhw:
                    yield self.step(features_Dhw, masks.get(self.t), confidence)
                    del features_Dhw
                del features_BDhw

    def _batches(self, frames, batch):
        """The inputs of the network, `batch` frames at a time."""
        t = 0
        while chosen := list(islice(frames, batch)):
            inputs = self.batch(chosen, t)
            t += len(chosen)
            del chosen
            yield inputs
            del inputs

    def batch(self, frames: list[np.ndarray], first: int) -> Tensor:
        """The input of the network for frames uint8 [H,W,3], the first of which has the number `first`."""
        for t, frame in enumerate(frames, first):
            size = _frame_size(frame, t)
            if self.size is None:
                self.size, self.working = size, working_size(size[0], size[1], self.cfg)
            if size != self.size:
                raise UserError(
                    f"frame {t} is {_text(size)}, the frames before it {_text(self.size)}: "
                    "all frames of a video must have one size; split the video there"
                )
        if self.cfg.resize == "bicubic" and self.size != self.working:
            sides = self.working[::-1]
            frames = [np.asarray(Image.fromarray(frame).resize(sides, Image.Resampling.BICUBIC)) for frame in frames]
        inputs = torch.from_numpy(np.stack(frames))
        if self.device.type == "cuda":
            inputs = inputs.pin_memory().to(self.device, non_blocking=True)
        inputs = inputs.permute(0, 3, 1, 2).float() / 255
        if inputs.shape[2:] == self.working:
            return inputs
        return F.interpolate(inputs, self.working, mode="bilinear", align_corners=False)

    def features(self, inputs: Tensor) -> Tensor:
        """Features [B,D,h,w] of a batch."""
        with torch.no_grad():
            features_BDhw = self.network(inputs)
        if features_BDhw.ndim != 4 or len(features_BDhw) != len(inputs):
            shape = tuple(features_BDhw.shape)
            raise ValueError(f"features returned {shape} for {len(inputs)} frames: must be [B,D,h,w]")
        # A sum of unit vectors is finite where all of them are; it takes a twentieth of the time of asking each number.
        self.finite = self.finite & features_BDhw.sum().isfinite()
        return features_BDhw

    def landed(self, results: Iterable[Any], lag: int = 0) -> Iterator[Any]:
        """What `step` returned, as arrays, see `landed`.  UserError where features are no finite numbers.

        The answer comes with the result: a GPU need not wait for it.
        """
        for result, finite in landed(((result, self.finite) for result in results), lag):
            if not finite:
                raise UserError(
                    "the network's features are not finite numbers; in fp16 they may overflow: compute them in fp32 "
                    "(--precision fp32), or else the checkpoint is damaged"
                )
            yield result

    def step(self, features_Dhw: Tensor, mask: np.ndarray | None = None, confidence: bool = False) -> Any:
        """Ids of the next frame, uint8 [H,W]: an array, or a tensor on the device, perhaps not computed yet.

        mask: ids uint8 [H,W] given for this frame; its new ids begin here.  confidence: return (ids, confidence).
        """
        t, mask = self.t, None if mask is None else _fitted(mask, self.t, self.size)
        new = self._new_ids(mask)
        born_mhw = None
        if mask is not None and new:
            born_mhw = to_grid(mask, new, features_Dhw.shape[1:], self.cfg, self.device)
        soft_Mhw = self.context.step(features_Dhw, born_mhw)
        self.t += 1
        if new:
            self.ids += new
            self.channels = torch.tensor(self.ids, dtype=torch.uint8, device=self.device)
        if soft_Mhw is not None and (t or mask is None):
            return to_ids(soft_Mhw, self.channels, self.size, self.working, self.cfg, confidence)
        ids = np.zeros(self.size, np.uint8) if mask is None or soft_Mhw is None else mask.copy()
        return (ids, np.ones(self.size, np.float32)) if confidence else ids

    def _new_ids(self, mask):
        """The ids that a mask brings in; the first mask brings the background (0) along."""
        if mask is None:
            return []
        new = [int(i) for i in np.unique(mask) if i and i not in self.ids]
        return new if self.ids else [0, *new]


def landed(results, lag=0):
    """Results, arrays or tuples of arrays, in order.  Those on a GPU are copied while newer ones (`lag`) are made."""
    pending = deque()
    for result in results:
        pending.append(_departed(result))
        if len(pending) > lag:
            yield _arrived(*pending.popleft())
    while pending:
        yield _arrived(*pending.popleft())


def _departed(ids):
    """(array or tensor on the host, event after which its values are there, or None)."""
    if isinstance(ids, tuple):
        return tuple(map(_departed, ids)), None
    if isinstance(ids, np.ndarray) or ids.device.type != "cuda":
        return ids, None
    host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True).copy_(ids, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(ids.device))
    return host, event


def _arrived(ids, event):
    if isinstance(ids, tuple):
        return tuple(_arrived(*part) for part in ids)
    if event is None:
        return np.asarray(ids)
    event.synchronize()
    return ids.numpy().copy()  # page-locked memory is for passage, not to be kept


def _frame_size(frame, t):
    if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3):
        what = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise UserError(f"frame {t} is {what}: must be an RGB array, uint8 [H,W,3]")
    return frame.shape[0], frame.shape[1]


def as_ids(mask, t):
    """The mask given at frame t as uint8 [H,W]."""
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise UserError(f"the mask given at frame {t} is {mask.dtype} {mask.shape}: must be ids, integers [H,W]")
    if mask.size and not 0 <= mask.min() <= mask.max() <= 255:
        raise UserError(f"the mask given at frame {t} holds {mask.min()} to {mask.max()}: ids must be 0 to 255")
    if t < 0:
        raise UserError(f"a mask given at frame {t}: frames count from 0")
    return mask.astype(np.uint8)


def _fitted(mask, t, size):
    """The mask given at frame t, at the frame's size; off by a pixel or two: nearest, with a warning."""
    if mask.shape == size:
        return mask
    if any(abs(a - b) > SLACK_PX for a, b in zip(mask.shape, size)):
        raise UserError(
            f"the mask given at frame {t} is {_text(mask.shape)}, its frame {_text(size)}: "
            f"sizes may differ by {SLACK_PX} pixels at most; give the mask at the video's size"
        )
    warnings.warn(f"the mask given at frame {t} is {_text(mask.shape)}, its frame {_text(size)}: resized", stacklevel=3)
    return nearest(mask, size)


def _text(size):
    """(H, W) as people say it."""
    return f"{size[1]}x{size[0]}"
