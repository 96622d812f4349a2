"""The terms of INO's loss, from head outputs.

Legend: T frames, B clips, V views, L local crops a frame, n masked patches, K outputs of the head.

A centre [K] keeps all teacher outputs from turning into one: it is taken from the teacher's outputs, and
follows their mean.  Functions that use one return (loss, the centre after use).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from core import distributed


@dataclass(frozen=True)
class Sharpness:
    """Temperatures of both softmaxes, and what the centre keeps of itself at every use (1: it stays)."""

    student: float
    teacher: float
    centre_momentum: float


def targets(teacher, centre, sharpness):
    """The teacher's distribution over the K outputs, centred and sharpened.  [..,K]; no gradient."""
    return ((teacher.detach() - centre) / sharpness.teacher).softmax(-1)


def moved(centre, teacher, sharpness):
    """The centre after use: EMA of the mean of the teacher's rows [..,K], those of all ranks."""
    if sharpness.centre_momentum == 1:
        return centre
    mean = distributed.mean(teacher.detach().flatten(0, -2).mean(0))
    return centre * sharpness.centre_momentum + mean * (1 - sharpness.centre_momentum)


def between_views(student_VBK, teacher_UBK, centre, sharpness):
    """Mean cross entropy over all pairs of different views; the first U views of the student are the teacher's."""
    U, V, B = len(teacher_UBK), len(student_VBK), student_VBK.shape[1]
    logs = (student_VBK / sharpness.student).log_softmax(-1)
    entropy = -torch.einsum("ubk,vbk->uv", targets(teacher_UBK, centre, sharpness), logs) / B
    same = torch.eye(U, V, device=entropy.device, dtype=torch.bool)
    loss = entropy.masked_fill(same, 0).sum() / (U * V - U)
    return loss, moved(centre, teacher_UBK, sharpness)


def out_loss(student_TBK, local_TLBK, teacher_TBK, centre, sharpness):
    """Class tokens of global and local crops; frame t is paired with t + T/2, mean over the pairs."""
    half, losses = len(student_TBK) // 2, []
    for t in range(half):
        pair = [t, t + half]
        views = torch.cat([student_TBK[pair], local_TLBK[pair].flatten(0, 1)])
        loss, centre = between_views(views, teacher_TBK[pair], centre, sharpness)
        losses.append(loss)
    return torch.stack(losses).mean(), centre


def in_mim_loss(student_TBnK, teacher_TBnK, centre, sharpness):
    """Masked patches, same place: the student, who does not see it, tells what the teacher sees there.

    0 when nothing is masked.  The centre moves frame by frame.
    """
    if student_TBnK.shape[2] == 0:
        return student_TBnK.sum(), centre
    losses = []
    for student, teacher in zip(student_TBnK, teacher_TBnK):
        logs = (student / sharpness.student).log_softmax(-1)
        losses.append(-(targets(teacher, centre, sharpness) * logs).sum(-1).mean())
        centre = moved(centre, teacher, sharpness)
    return torch.stack(losses).mean(), centre


def in_aff_loss(student_TBnK, teacher_TBnK, sharpness):
    """Masked patches of frame t among those of t + 1: the student's affinity follows the teacher's.  0 without any."""
    if student_TBnK.shape[2] == 0:
        return student_TBnK.sum()
    logs = (affinity(student_TBnK) / sharpness.student).log_softmax(-1)
    wanted = (affinity(teacher_TBnK.detach()) / sharpness.teacher).softmax(-1)
    return -(wanted * logs).sum(-1).mean()


def affinity(rows_TBnK):
    """Cosines of every row with every row of the next frame, [T-1,B,n,n]."""
    rows = F.normalize(rows_TBnK, dim=-1)
    return rows[:-1] @ rows[1:].transpose(-1, -2)
