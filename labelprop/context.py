"""What a video has to remember: features and soft masks of its last frames, and its groups of objects.

Objects whose masks are given at the same frame are a group; that frame is the group's reference for good.  All groups
share the features.  Nothing here grows with the length of the video.
Legend: M channels (0 = background), D feature dimensions, h w cells of the feature grid.
"""

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from core.schema import Propagation
from labelprop.backends import choose, propagate_groups
from labelprop.walk import Group


@dataclass(frozen=True)
class Birth:
    """A group of objects: the frame t of their masks, as the engine prepares it, their channels, the masks [hw,m]."""

    t: int
    frame: object
    channels: slice
    masks: Tensor


class Context:
    """Propagates frame by frame.  backend: as for labelprop.propagate."""

    def __init__(self, cfg: Propagation, backend: str = "auto"):
        self.cfg, self.backend = cfg, backend
        self.engine: Any = None  # chosen for the video's first frame
        self.first: Any = None  # that frame, as the engine prepares it
        self.frames: deque = deque(maxlen=cfg.context)  # as the engine prepares them, oldest first
        self.masks: deque[Tensor] = deque(maxlen=cfg.context)  # [hw,M]; M grows with births
        self.births: list[Birth] = []
        self.t = 0

    @torch.no_grad()
    def step(self, features_Dhw: Tensor, born_mhw: Tensor | None = None) -> Tensor | None:
        """Soft masks of the next frame [M,h,w], or None before the first mask.

        features [D,h,w], unit norm over D.  born [m,h,w]: masks in [0,1] of the channels that begin here; the very
        first channel is the background.
        """
        _, h, w = features_Dhw.shape
        self.engine = self.engine or choose(self.backend, features_Dhw)
        frame = self.engine.prepare(features_Dhw.permute(1, 2, 0).contiguous(), self.first)
        self.first = frame if self.first is None else self.first
        masks = self._predict(frame) if self.births else None
        if born_mhw is not None:
            masks = self._begin(frame, masks, born_mhw.flatten(1).T)
        if masks is not None:
            self.frames.append(frame)
            self.masks.append(masks)
        self.t += 1
        return None if masks is None else masks.T.reshape(-1, h, w)

    def _predict(self, frame):
        """The masks [hw,M] of a frame; each group votes for its own channels."""
        groups, labels = [], []
        for birth in self.births:
            frames, copies = context_of(self.t - birth.t, self.cfg)
            groups.append(Group(birth.frame, frames, copies))
            recent = islice(self.masks, len(self.masks) - frames, None)
            labels.append([birth.masks, *(masks[:, birth.channels] for masks in recent)])
        return torch.cat(propagate_groups(frame, list(self.frames), groups, labels, self.cfg, self.engine), dim=1)

    def _begin(self, frame, masks, born):
        """Start a group with masks born [hw,m]; masks [hw,M] of the older groups give way.  Returns [hw,M+m]."""
        older = 0
        if masks is not None:
            older, cover = masks.shape[1], born.sum(1, keepdim=True)
            born = cover * born
            masks = (1 - cover) * masks
        self.births.append(Birth(self.t, frame, slice(older, older + born.shape[1]), born))
        return born if masks is None else torch.cat([masks, born], dim=1)


def context_of(age: int, cfg: Propagation) -> tuple[int, int]:
    """How many of the last frames are context, `age` frames after a group's birth, and how often the oldest counts.

    With repeat_reference the frame of birth is itself context, and stands in for the frames before it.
    """
    if not cfg.repeat_reference:
        return min(age - 1, cfg.context), 1
    return min(age, cfg.context), 1 + max(0, cfg.context - age)
