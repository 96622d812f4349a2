"""A whole video: frames in, ids out, one at a time."""

import warnings
from collections import deque
from contextlib import closing
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F

from core.errors import UserError
from labelprop import pipeline
from labelprop.context import Context
from labelprop.readout import nearest, to_grid, to_ids, working_size

#: pixels by which the sides of a mask may differ from its frame's; data sets have such masks
SLACK_PX = 2
#: results on their way from a GPU at a time: it works on while the host waits for an older one
LANDING = 4


class Video:
    """One video as it comes: `batch` takes frames, `features` describes them, `step` gives the ids of the next one.

    Arguments as for segment_video.
    """

    def __init__(self, network, cfg, backend, device):
        self.network, self.cfg, self.device = network, cfg, device
        self.context = Context(cfg, backend)
        self.size = None  # (H, W) of all its frames
        self.t = 0  # of the next frame that `step` gives the ids of
        self.ids, self.channels = [], None  # the id of each channel, as a list and as a tensor on the device

    def batch(self, frames, first):
        """B frames uint8 [H,W,3], from number `first` on -> float32 [B,3,h8,w8] at the working size, on the device."""
        for t, frame in enumerate(frames, first):
            size = _frame_size(frame, t)
            self.size = self.size or size
            if size != self.size:
                raise UserError(
                    f"frame {t} is {_text(size)}, the frames before it {_text(self.size)}: "
                    "all frames of a video must have one size; split the video there"
                )
        return _inputs(frames, working_size(*self.size, self.cfg), self.device)

    def features(self, inputs):
        """Features [B,D,h,w] of a batch."""
        with torch.no_grad():
            features_BDhw = self.network(inputs)
        if features_BDhw.ndim != 4 or len(features_BDhw) != len(inputs):
            shape = tuple(features_BDhw.shape)
            raise ValueError(f"features returned {shape} for {len(inputs)} frames: must be [B,D,h,w]")
        # Once a video: a GPU would have to wait for the answer every time.
        if self.t == 0 and not features_BDhw.isfinite().all():
            raise UserError(
                "the network's features are not finite numbers; in fp16 they may overflow: compute them in fp32 "
                "(--precision fp32), or else the checkpoint is damaged"
            )
        return features_BDhw

    def step(self, features_Dhw, mask=None):
        """Ids of the next frame [H,W]: an array, or a uint8 tensor on the device, perhaps not computed yet.

        mask: ids uint8 [H,W] that are given for this frame; those that are new begin here.
        """
        t, mask = self.t, None if mask is None else _fitted(mask, self.t, self.size)
        new = self._new_ids(mask)
        given = to_grid(mask, new, features_Dhw.shape[1:], self.device) if new else None
        soft_Mhw = self.context.step(features_Dhw, given)
        self.t += 1
        if new:
            self.ids += new
            self.channels = torch.tensor(self.ids, dtype=torch.uint8, device=self.device)
        if soft_Mhw is None:
            return np.zeros(self.size, np.uint8)
        if t == 0:
            return mask.copy()
        return to_ids(soft_Mhw, self.channels, self.size, working_size(*self.size, self.cfg), self.cfg)

    def _new_ids(self, mask):
        """Ids that a mask brings in; the first mask brings the background (0) along."""
        if mask is None:
            return []
        new = [int(i) for i in np.unique(mask) if i and i not in self.ids]
        return new if self.ids else [0, *new]


def segment_video(frames, given, features, cfg, backend="auto", device="cpu", batch=1, ahead=0):
    """Carry given masks through a video.  Yields the ids of every frame in order, uint8 [H,W].

    As Tracker.segment, for features as a function: float32 RGB in [0,1] [B,3,h8,w8] at the working size, on `device`
    -> [B,D,h,w], unit norm over D.  It is called in order, with `batch` frames at most.  cfg: core.schema.Propagation.
    ahead: batches that a thread reads from `frames`, resizes and copies to the device in advance.
    Memory does not depend on the video's length.
    """
    device = torch.empty(0, device=device).device  # with its number: in another thread "cuda" may be another GPU
    given = {t: as_ids(mask, t) for t, mask in given.items()}
    video = Video(features, cfg, backend, device)
    with closing(_segmented(video, frames, given, batch, ahead)) as results:
        yield from landed(results, LANDING if device.type == "cuda" else 0)
    late = sorted(t for t in given if t >= video.t)
    if late:
        warnings.warn(f"masks given for frames {late}, but the video has {video.t} frames", stacklevel=2)


def _segmented(video, frames, given, batch, ahead):
    """The ids of every frame, as Video.step returns them.  Keeps no frame."""
    with closing(pipeline.ahead(_batches(video, frames, batch), ahead)) as batches:
        for inputs in batches:
            features_BDhw = video.features(inputs)
            del inputs
            for features_Dhw in features_BDhw:
                yield video.step(features_Dhw, given.get(video.t))
                del features_Dhw
            del features_BDhw


def _batches(video, frames, batch):
    """Inputs of the network for `batch` frames at a time."""
    frames, t = iter(frames), 0
    while chosen := list(islice(frames, batch)):
        inputs = video.batch(chosen, t)
        t += len(chosen)
        del chosen
        yield inputs
        del inputs


def landed(results, lag=0):
    """Results as arrays, in order.  Those on a GPU are copied while up to `lag` newer ones are computed."""
    pending = deque()
    for ids in results:
        pending.append(_departed(ids))
        if len(pending) > lag:
            yield _arrived(*pending.popleft())
    while pending:
        yield _arrived(*pending.popleft())


def _departed(ids):
    """(array or tensor on the host, event after which its values are there, or None)."""
    if isinstance(ids, np.ndarray) or ids.device.type != "cuda":
        return ids, None
    host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True).copy_(ids, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(ids.device))
    return host, event


def _arrived(ids, event):
    if event is None:
        return np.asarray(ids)
    event.synchronize()
    return ids.numpy().copy()  # page-locked memory is for passage, not to be kept


def _inputs(frames, working, device):
    """B frames uint8 [H,W,3] -> float32 [B,3,h8,w8] in [0,1] on the device."""
    frames = torch.from_numpy(np.stack(frames))
    if device.type == "cuda":
        frames = frames.pin_memory().to(device, non_blocking=True)
    frames = frames.permute(0, 3, 1, 2).float() / 255
    if frames.shape[2:] == working:
        return frames
    return F.interpolate(frames, working, mode="bilinear", align_corners=False)


def _frame_size(frame, t):
    if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3):
        what = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise UserError(f"frame {t} is {what}: must be an RGB array, uint8 [H,W,3]")
    return frame.shape[:2]


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
