"""A network that tracks: given masks are carried through a video, or through frames as they come."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from copy import copy, deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from core import devices, protocols
from core.errors import UserError
from core.schema import Propagation
from core.suggest import suggestion
from labelprop.backends import choose
from labelprop.video import Video, as_ids

BATCH = {"cpu": 1, "cuda": 4}  # frames through the network at a time; a CPU gains nothing by more
AHEAD = 2  # batches that are read in advance
MOVING = threading.Lock()  # torch replaces weights one by one: a tracker made meanwhile would compute with half of them


class Tracker:
    """Carries masks through videos by the features of one network.

    extractor: an nn.Module with
        layers                  tuple of names, the default first
        protocol, changes       name of the protocol that it was published with, {key: value} that differs from it
        cell_px(layer)          pixels per side of a cell
        forward(frames, layer)  float32 RGB in [0,1] [B,3,H,W] -> [B,D,h,w], unit norm over D
    It is moved to the device, channels last, and set to evaluation mode.
    layer: of the extractor, None = its default.  protocol: a file of configs/protocols by its name or a
    core.schema.Propagation, None = the extractor's own; its norm_frames takes effect by `adapted` alone.
    device: "auto", "cpu", "cuda" or a torch.device.  precision: of the network, "fp32", "bf16" or "fp16".
    batch: frames through the network at a time in `segment`, None = BATCH.  compiled: by torch.compile.
    backend: as for labelprop.propagate.  max_side: larger frames are tracked at this size, None = as the protocol has
    it; masks keep the size of the video.

    Raises UserError for an argument that is not allowed.
    """

    def __init__(
        self, extractor: Any, layer: str | None = None, protocol: str | Propagation | None = None,
        device: str | torch.device = "auto", *, precision: str = "fp32", batch: int | None = None,
        compiled: bool = False, backend: str = "auto", max_side: int | None = None,
    ):  # fmt: skip
        self.layer = extractor.layers[0] if layer is None else _one_of("layer", layer, extractor.layers)
        self.precision = _one_of("precision", precision, devices.DTYPES)
        if batch is not None and batch < 1:
            raise UserError(f"batch = {batch}: must be 1 or more")
        self.propagation = _propagation(extractor, protocol, extractor.cell_px(self.layer), max_side)
        self.device = _device(device)
        self.batch, self.backend = batch or BATCH[self.device.type], backend
        choose(backend, torch.empty(0, device=self.device))  # an error comes now, not with the first frame
        with MOVING:
            self.extractor = extractor.to(self.device, memory_format=torch.channels_last).eval()
        self._ready = _compiled if compiled else lambda network: network
        self._network = self._ready(self.extractor)
        self.reset()

    def adapted(self, length: int, frame: Callable[[int], np.ndarray]) -> "Tracker":
        """A tracker for one video: its network is a copy whose batch norm has means and variances of the video.

        They are the mean over frames of every frame's own (AdaBN, arXiv 1603.04779).  Batch norms of maps that are no
        finer than the cells keep their own: these follow what a video shows more than its light and its blur.  The
        protocol's norm_frames says how many frames, evenly spread; where it is 0, or the network has no batch norm,
        the answer is this tracker.
        length: of the video.  frame(t): its frame t, uint8 RGB [H,W,3]; one that raises UserError, or has another size
        than those before it, is left out.
        """
        count = min(self.propagation.norm_frames, length)
        if not count or not _norms(self.extractor):
            return self
        tracker, video, network = copy(self), self._new_video(), deepcopy(self.extractor)
        cell_px, fresh = self.extractor.cell_px(self.layer), set(_norms(network))  # fresh: those no frame has reached
        # 1.5 lies between maps of the cells' size and maps twice as fine, whatever their sizes are rounded to
        fine = lambda maps: maps.ndim == 4 and maps.shape[-1] > 1.5 * -(-video.working[1] // cell_px)
        hooks = [norm.register_forward_pre_hook(partial(_measure, fresh, fine)) for norm in _norms(network)]
        tracker._network = network  # compiled when its batch norm is in evaluation mode
        for i in range(count):
            t = round(i * (length - 1) / max(count - 1, 1))
            with suppress(UserError):  # following the video reports it, at its place
                tracker.features(video.batch([frame(t)], t))
        for hook in hooks:
            hook.remove()
        tracker._network = self._ready(network.eval())
        tracker.reset()
        return tracker

    def segment(
        self, frames: Iterable[np.ndarray], masks: dict[int, np.ndarray], confidence: bool = False
    ) -> Iterator[Any]:
        """Carry masks through a whole video.  Yields the ids of every frame in order, uint8 [H,W].

        frames: uint8 RGB arrays [H,W,3] of one size; a thread reads them ahead, and none is kept.  masks: {frame
        index: ids, integers 0-255 [H,W]}, 0 = background.  An id counts from the first mask that holds it; later
        masks may hold it or not.  Frames before the first mask are all background.  The ids of frame 0 are its mask;
        objects of later masks are read from the feature grid at once.
        confidence: yield (ids, confidence), float32 [H,W]: the share of the pixel's id in the sum of all soft masks
        there, 1 / (objects + 1) to 1.  It is 1 where the ids are a given mask and before the first mask.
        Close the generator to stop early.  Raises UserError for masks and frames that do not fit.
        """
        return self._new_video().segment(frames, masks, self.batch, AHEAD, confidence)

    def step(self, frame: np.ndarray, mask: np.ndarray | None = None, confidence: bool = False) -> Any:
        """Ids of the next frame, uint8 [H,W], of a video that comes frame by frame.

        frame: uint8 RGB [H,W,3]; mask: ids given for this frame; confidence: return a pair; as in `segment`.
        """
        video = self._video
        mask = None if mask is None else as_ids(mask, video.t)
        (features_Dhw,) = video.features(video.batch([frame], video.t))
        (result,) = video.landed([video.step(features_Dhw, mask, confidence)])
        return result

    def reset(self) -> None:
        """Forget the video of `step`: its next frame is the first of another one."""
        self._video = self._new_video()

    def _new_video(self):
        return Video(self.features, self.propagation, self.backend, self.device)

    @torch.no_grad()
    def features(self, frames: torch.Tensor) -> torch.Tensor:
        """frames [B,3,H,W], RGB in [0,1], on the tracker's device -> features [B,D,h,w], float32."""
        # Convolutions are fastest with channels last, and propagation reads features so.
        frames = frames.contiguous(memory_format=torch.channels_last)
        with devices.autocast(self.device, self.precision):
            return self._network(frames, self.layer).float()


def _norms(network):
    """The batch norms of a network."""
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def _measure(fresh, fine, norm, inputs):
    """Let a batch norm average the means and variances of its inputs; one whose maps are not fine keeps its own."""
    norm.train(fine(inputs[0]))
    if norm.training and norm in fresh:
        fresh.remove(norm)
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all inputs


def _one_of(key, value, allowed):
    """The value, which must be one of those allowed."""
    if value not in allowed:
        raise UserError(f"{key} = {value!r}: must be one of {', '.join(allowed)}{suggestion(value, allowed)}")
    return value


def _propagation(extractor, protocol, cell_px, max_side):
    """The Propagation of a protocol for cells of cell_px pixels."""
    if protocol is None:
        found = protocols.named(extractor.protocol, extractor.changes)
    else:
        found = protocol if isinstance(protocol, Propagation) else protocols.named(protocol)
    found = found if found.multiple else replace(found, multiple=cell_px)
    return found if max_side is None else replace(found, max_side=max_side)


def _device(device):
    """The device by its name, or as it is."""
    with suppress(RuntimeError):  # torch knows no such name
        found = devices.pick(device)
        if found.type in BATCH:
            devices.pick(found.type)  # "cuda:1" needs a GPU as "cuda" does
            return found
    raise UserError(f"device = '{device}': must be auto, cpu or cuda")


def _compiled(extractor):
    """The extractor by torch.compile; it compiles as sizes of frames come."""
    fast = torch.compile(extractor)

    def call(*inputs):
        try:
            return fast(*inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"--compile: does not work here ({reason}); leave it out") from error

    return call
