"""What a video has to remember: the last frames' features and soft masks, and the groups of objects.

Objects whose masks were given at the same frame are a group; its frame of birth is its reference for good.
Features are kept once, whatever the number of groups.  Nothing here grows with the length of the video.
Legend: M channels (0 = background), D feature dimensions, h w cells of the feature grid.
"""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from labelprop.backends import choose, propagate_groups
from labelprop.walk import Group


@dataclass(frozen=True)
class Birth:
    """A group: frame t where its masks were given, that frame (prepared) and its masks [hw,last-first].

    first, last: its channels are first..last-1.
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
        self.first = None  # frame of the video
        self.frames = deque(maxlen=cfg.context)  # as the backend prepares them, oldest first
        self.masks = deque(maxlen=cfg.context)  # [hw,M]; M grows with births
        self.births = []
        self.t = 0

    @torch.no_grad()
    def step(self, features_Dhw, given_Mhw=None):
        """Soft masks of the next frame [M,h,w], or None before the first mask.

        features [D,h,w], unit norm over D.  given [m,h,w]: masks of the channels that are born here, in [0,1],
        the background first in the first call that gives any.
        """
        _, h, w = features_Dhw.shape
        module = choose(self.backend, features_Dhw)
        frame = module.prepare(features_Dhw.permute(1, 2, 0).contiguous(), self.first)
        self.first = frame if self.first is None else self.first
        masks = self._predict(frame, module) if self.births else None
        if given_Mhw is not None:
            masks = self._born(frame, masks, given_Mhw.flatten(1).T)
        if masks is not None:
            self.frames.append(frame)
            self.masks.append(masks)
        self.t += 1
        return None if masks is None else masks.T.reshape(-1, h, w)

    def _predict(self, frame, module):
        """Each group votes for its own channels.  Returns [hw,M]."""
        groups, labels = [], []
        for birth in self.births:
            frames, copies = context_of(self.t - birth.t, self.cfg)
            groups.append(Group(birth.frame, frames, copies))
            # a list, for a deque cannot be sliced
            recent = list(self.masks)[len(self.masks) - frames :]
            labels.append([birth.masks, *(masks[:, birth.first : birth.last] for masks in recent)])
        return torch.cat(propagate_groups(frame, list(self.frames), groups, labels, self.cfg, module), dim=1)

    def _born(self, frame, masks, given):
        """Starts a group; masks [hw,M] or None of the older ones give way.  Returns [hw,M+m]."""
        older = 0
        if masks is not None:
            older = masks.shape[1]
            cover = given.sum(1, keepdim=True)
            given = cover * given
            given = torch.cat([(1 - cover) * masks, given], dim=1)
        self.births.append(Birth(self.t, frame, given[:, older:].clone(), older, given.shape[1]))
        return given


def context_of(age, cfg):
    """How many of the last frames are context, `age` frames after a group's birth, and how often the oldest counts.

    With repeat_reference the frame of birth is itself context, and stands in for the frames before it.
    """
    if not cfg.repeat_reference:
        return min(age - 1, cfg.context), 1
    return min(age, cfg.context), 1 + max(0, cfg.context - age)
