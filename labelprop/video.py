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


def segment_video(frames, given, features, cfg, backend="auto", device="cpu", batch=1, ahead=0):
    """Carry given masks through a video.  Yields ids, uint8 array [H,W] at the video's size, one per frame, in order.

    frames: any iterable of uint8 RGB arrays [H,W,3], all of one size.  given: {frame index: ids, integers 0-255
    [H,W]}; an id counts from the first mask that holds it, later masks may hold it or not.  features: float32 RGB
    in [0,1] [B,3,h8,w8] at the working size, on `device` -> [B,D,h,w], unit norm over D; called in order, with
    `batch` frames at most.  cfg: core.schema.Propagation; backend as in labelprop.propagate.  ahead: batches that
    a thread of its own reads from `frames`, resizes and copies to the device in advance.
    Frames before any mask: all background.  Frame 0 is the mask given there; later births are read from the grid.
    Memory does not depend on the video's length.  Raises UserError for masks and frames that do not fit.
    """
    device = torch.empty(0, device=device).device  # with its number: in another thread "cuda" may be another GPU
    given = {t: _mask(t, mask) for t, mask in given.items()}
    with closing(_segmented(frames, given, features, cfg, backend, device, batch, ahead)) as results:
        yield from _landed(results, LANDING if device.type == "cuda" else 0)


def _segmented(frames, given, features, cfg, backend, device, batch, ahead):
    """The ids of every frame: an array, or a uint8 tensor [H,W] on the device, perhaps not computed yet."""
    context, ids, names, t = Context(cfg, backend), [], None, -1
    with closing(pipeline.ahead(_batches(frames, cfg, device, batch), ahead)) as batches:
        for t, (size, working, cells) in enumerate(_described(batches, features)):
            mask = _fitted(given[t], t, size) if t in given else None
            born = _born(mask, ids)
            on_grid = to_grid(mask, born, cells.shape[1:], device) if born else None
            soft = context.step(cells, on_grid)
            if born:
                ids += born
                names = torch.tensor(ids, dtype=torch.uint8, device=device)
            if soft is None:
                yield np.zeros(size, np.uint8)
            elif t == 0:
                yield mask.copy()
            else:
                yield to_ids(soft, names, size, working, cfg)
            del cells, soft
    late = sorted(key for key in given if key > t)
    if late:
        warnings.warn(f"masks given for frames {late}, but the video has {t + 1} frames", stacklevel=2)


def _batches(frames, cfg, device, batch):
    """(size of the frames, working size, float32 [B,3,h8,w8] on the device) of `batch` frames at a time."""
    frames, first_size, t = iter(frames), None, 0
    while True:
        chosen = []
        for frame in islice(frames, batch):
            size = _frame_size(frame, t + len(chosen))
            first_size = first_size or size
            if size != first_size:
                raise UserError(
                    f"frame {t + len(chosen)} is {_text(size)}, the frames before it {_text(first_size)}: "
                    "all frames of a video must have one size; split the video there"
                )
            chosen.append(frame)
            del frame
        if not chosen:
            return
        t += len(chosen)
        working = working_size(*first_size, cfg)
        inputs = _inputs(chosen, working, device)
        del chosen
        yield first_size, working, inputs
        del inputs


def _described(batches, features):
    """(size of the frame, working size, features [D,h,w]) of every frame.  Keeps no frame."""
    first = True
    for size, working, inputs in batches:
        with torch.no_grad():
            cells_BDhw = features(inputs)
        if cells_BDhw.ndim != 4 or len(cells_BDhw) != len(inputs):
            raise ValueError(f"features returned {tuple(cells_BDhw.shape)} for {len(inputs)} frames: must be [B,D,h,w]")
        del inputs
        # Once a video: a GPU would have to wait for the answer every time.
        if first and not cells_BDhw.isfinite().all():
            raise UserError(
                "the network's features are not finite numbers; in fp16 they may overflow: compute them in fp32 "
                "(--precision fp32), or else the checkpoint is damaged"
            )
        first = False
        for cells in cells_BDhw:
            yield size, working, cells
            del cells
        del cells_BDhw


def _landed(results, lag):
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


def _mask(t, mask):
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
    """The mask given at frame t as uint8 [H,W] of the frame's size; off by a pixel or two: nearest, with a warning."""
    if mask.shape == size:
        return mask
    if any(abs(a - b) > SLACK_PX for a, b in zip(mask.shape, size)):
        raise UserError(
            f"the mask given at frame {t} is {_text(mask.shape)}, its frame {_text(size)}: "
            f"sizes may differ by {SLACK_PX} pixels at most; give the mask at the video's size"
        )
    warnings.warn(
        f"the mask given at frame {t} is {_text(mask.shape)}, its frame {_text(size)}: resized", stacklevel=3
    )
    return nearest(mask, size)


def _born(mask, known):
    """Ids that a mask brings in; the first mask brings the background (0) along."""
    if mask is None:
        return []
    new = [int(i) for i in np.unique(mask) if i and i not in known]
    return new if known else [0, *new]


def _text(size):
    """(H, W) as people say it."""
    return f"{size[1]}x{size[0]}"
