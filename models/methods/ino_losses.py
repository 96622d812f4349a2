"""The terms of INO's loss, from head outputs.

Legend: T frames, B clips, V views, L local crops a frame, n masked patches, K outputs of the head.

A centre [K] keeps all teacher outputs from turning into one: it is taken from the teacher's outputs, and
follows their mean; `momentum` is the share of itself that it keeps at every use (1: it stays).  Functions that use one
return (loss, the centre after use).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from core import distributed


class Temperatures(NamedTuple):
    """Of the student's softmax and of the teacher's."""

    student: float
    teacher: float


def targets(teacher, centre, temperature):
    """The teacher's distribution over the K outputs, centred and sharpened.  [..,K]; no gradient."""
    return ((teacher.detach() - centre) / temperature).softmax(-1)


def moved(centre, teacher, momentum):
    """The centre after use: EMA of the mean of the teacher's rows [..,K], those of all ranks."""
    if momentum == 1:
        return centre
    mean = distributed.mean(teacher.detach().flatten(0, -2).mean(0))
    return centre * momentum + mean * (1 - momentum)


def between_views(student_VBK, teacher_UBK, centre, temperatures, momentum):
    """Mean cross entropy over all pairs of different views; the first U views of the student are the teacher's."""
    U, V, B = len(teacher_UBK), len(student_VBK), student_VBK.shape[1]
    logs = (student_VBK / temperatures.student).log_softmax(-1)
    entropy = -torch.einsum("ubk,vbk->uv", targets(teacher_UBK, centre, temperatures.teacher), logs) / B
    same = torch.eye(U, V, device=entropy.device, dtype=torch.bool)
    loss = entropy.masked_fill(same, 0).sum() / (U * V - U)
    return loss, moved(centre, teacher_UBK, momentum)


def out_loss(student_TBK, local_TLBK, teacher_TBK, centre, temperatures, momentum):
    """Class tokens of global and local crops; frame t is paired with t + T/2, mean over the pairs."""
    half, losses = len(student_TBK) // 2, []
    for t in range(half):
        pair = [t, t + half]
        views = torch.cat([student_TBK[pair], local_TLBK[pair].flatten(0, 1)])
        loss, centre = between_views(views, teacher_TBK[pair], centre, temperatures, momentum)
        losses.append(loss)
    return torch.stack(losses).mean(), centre


def in_mim_loss(student_TBnK, teacher_TBnK, centre, temperatures, momentum):
    """Masked patches, same place: the student, who does not see it, tells what the teacher sees there.

    0 when nothing is masked.  The centre moves frame by frame.
    """
    if student_TBnK.shape[2] == 0:
        return student_TBnK.sum(), centre
    losses = []
    for student, teacher in zip(student_TBnK, teacher_TBnK):
        logs = (student / temperatures.student).log_softmax(-1)
        losses.append(-(targets(teacher, centre, temperatures.teacher) * logs).sum(-1).mean())
        centre = moved(centre, teacher, momentum)
    return torch.stack(losses).mean(), centre


def in_aff_loss(student_TBnK, teacher_TBnK, temperatures):
    """Masked patches of frame t among those of t + 1: the student's affinity follows the teacher's.  0 without any."""
    if student_TBnK.shape[2] == 0:
        return student_TBnK.sum()
    logs = (affinity(student_TBnK) / temperatures.student).log_softmax(-1)
    wanted = (affinity(teacher_TBnK.detach()) / temperatures.teacher).softmax(-1)
    return -(wanted * logs).sum(-1).mean()


def affinity(rows_TBnK):
    """Cosines of every row with every row of the next frame, [T-1,B,n,n]."""
    rows = F.normalize(rows_TBnK, dim=-1)
    return rows[:-1] @ rows[1:].transpose(-1, -2)
