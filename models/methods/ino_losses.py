"""The terms of INO's loss, from head outputs.

Legend: T frames, B clips, V views of the student, U views of the teacher or uses of a centre, L local crops a frame,
n masked patches, K outputs of the head.

A centre [K] keeps the teacher's outputs from becoming all the same: it is subtracted from the teacher's outputs, and
moves towards their mean after each use.  `trail` gives the centre at every use.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Temperatures(NamedTuple):
    """The temperatures of the student's softmax and of the teacher's."""

    student: float
    teacher: float


def targets(teacher, centre, temperature):
    """The teacher's distribution over the K outputs, centred and sharpened.  [..,K]; no gradient."""
    return ((teacher.detach() - centre) / temperature).softmax(-1)


def trail(centre, means_UK, momentum):
    """The centre at each of U uses and after the last, [U+1,K]: a moving average.

    means_UK: the means of the teacher's outputs at each use.  momentum: the share of itself that the centre keeps, 1 =
    it does not move.
    """
    centres = [centre]
    for mean in means_UK:
        centres.append(centres[-1] * momentum + mean * (1 - momentum))
    return torch.stack(centres)


def pair_means(teacher_TBK):
    """The mean of the teacher's outputs over each pair of frames t and t + T/2, [T/2,K]: for `out_loss`'s centre."""
    return teacher_TBK.unflatten(0, (2, -1)).mean((0, 2))


def frame_means(teacher_TBnK):
    """The mean of the teacher's outputs over each frame, [T,K], or [0,K] without masked patches: for `in_mim_loss`."""
    means = teacher_TBnK.mean((1, 2))
    return means if teacher_TBnK.shape[2] else means[:0]


def between_views(student_VBK, teacher_UBK, centre, temperatures):
    """Mean cross entropy over all pairs of different views; the student's first U views are those of the teacher."""
    U, V, B = len(teacher_UBK), len(student_VBK), student_VBK.shape[1]
    logs = (student_VBK / temperatures.student).log_softmax(-1)
    entropy = -torch.einsum("ubk,vbk->uv", targets(teacher_UBK, centre, temperatures.teacher), logs) / B
    same = torch.eye(U, V, device=entropy.device, dtype=torch.bool)
    return entropy.masked_fill(same, 0).sum() / (U * V - U)


def out_loss(student_TBK, local_TLBK, teacher_TBK, centres, temperatures):
    """Loss of the class tokens of all crops: mean over the pairs of frames t and t + T/2.  centres: one a pair."""
    half, losses = len(student_TBK) // 2, []
    for t in range(half):
        pair = [t, t + half]
        views = torch.cat([student_TBK[pair], local_TLBK[pair].flatten(0, 1)])
        losses.append(between_views(views, teacher_TBK[pair], centres[t], temperatures))
    return torch.stack(losses).mean()


def in_mim_loss(student_TBnK, teacher_TBnK, centres, temperatures):
    """Loss of masked patches: the student predicts the teacher's outputs.  0 without any.  centres: one a frame."""
    if student_TBnK.shape[2] == 0:
        return student_TBnK.sum()
    losses = []
    for student, teacher, centre in zip(student_TBnK, teacher_TBnK, centres):
        logs = (student / temperatures.student).log_softmax(-1)
        losses.append(-(targets(teacher, centre, temperatures.teacher) * logs).sum(-1).mean())
    return torch.stack(losses).mean()


def in_aff_loss(student_TBnK, teacher_TBnK, temperatures):
    """Loss of masked patches' affinity to those of the next frame: student's against teacher's.  0 without any."""
    if student_TBnK.shape[2] == 0:
        return student_TBnK.sum()
    logs = (affinity(student_TBnK) / temperatures.student).log_softmax(-1)
    wanted = (affinity(teacher_TBnK.detach()) / temperatures.teacher).softmax(-1)
    return -(wanted * logs).sum(-1).mean()


def affinity(rows_TBnK):
    """Cosines of every row with every row of the next frame, [T-1,B,n,n]."""
    rows = F.normalize(rows_TBnK, dim=-1)
    return rows[:-1] @ rows[1:].transpose(-1, -2)
