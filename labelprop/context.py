"""What a video has to remember: the last frames' features and soft masks, and the groups of objects.

Objects whose masks were given at the same frame are a group; its frame of birth is its reference for good.
Features are kept once, whatever the number of groups.  Nothing here grows with the length of the video.
Legend: M channels (0 = background), D feature dimensions, h w cells of the feature grid.
"""

from collections import deque
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from labelprop.backends import choose, propagate_groups
from labelprop.walk import Group


@dataclass(frozen=True)
class Birth:
    """A group of objects: frame t where their masks were given, that frame (prepared) and the masks [hw,last-first].

    first, last: the group's channels are first..last-1.
    """

    t: int
    frame: object
    masks: Tensor
    first: int
    last: int


class Context:
    """Propagates frame by frame.  cfg: core.schema.Propagation; backend as in labelprop.propagate."""

    def __init__(self, cfg, backend="auto"):
        self.cfg, self.backend = cfg, backend
        self.engine = self.first = None  # chosen for the video's first frame, and that frame
        self.frames = deque(maxlen=cfg.context)  # as the engine prepares them, oldest first
        self.masks = deque(maxlen=cfg.context)  # [hw,M]; M grows with births
        self.births = []
        self.t = 0

    @torch.no_grad()
    def step(self, features_Dhw, born_mhw=None):
        """Soft masks of the next frame [M,h,w], or None before the first mask.

        features [D,h,w], unit norm over D.  born [m,h,w]: masks in [0,1] of the channels that begin here; the first
        of all is the background.
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
        """Each group votes for its own channels.  Returns [hw,M]."""
        groups, labels = [], []
        for birth in self.births:
            frames, copies = context_of(self.t - birth.t, self.cfg)
            groups.append(Group(birth.frame, frames, copies))
            recent = islice(self.masks, len(self.masks) - frames, None)
            labels.append([birth.masks, *(masks[:, birth.first : birth.last] for masks in recent)])
        return torch.cat(propagate_groups(frame, list(self.frames), groups, labels, self.cfg, self.engine), dim=1)

    def _begin(self, frame, masks, born):
        """Starts a group with masks [hw,m]; masks [hw,M] of the older groups, if any, give way.  Returns [hw,M+m]."""
        older = 0
        if masks is not None:
            older, cover = masks.shape[1], born.sum(1, keepdim=True)
            born = cover * born
            masks = (1 - cover) * masks
        self.births.append(Birth(self.t, frame, born, older, older + born.shape[1]))
        return born if masks is None else torch.cat([masks, born], dim=1)


def context_of(age, cfg):
    """How many of the last frames are context, `age` frames after a group's birth, and how often the oldest counts.

    With repeat_reference the frame of birth is itself context, and stands in for the frames before it.
    """
    if not cfg.repeat_reference:
        return min(age - 1, cfg.context), 1
    return min(age, cfg.context), 1 + max(0, cfg.context - age)
