"""INO's losses against plain loops and reference values.  Legend: as in models/methods/ino_losses.py."""

import math

import pytest
import torch

from models.methods.ino_losses import (
    Temperatures,
    between_views,
    frame_means,
    in_aff_loss,
    in_mim_loss,
    out_loss,
    pair_means,
    trail,
)

TAU = Temperatures(student=0.1, teacher=0.04)


def close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, torch.as_tensor(theirs), atol=atol, rtol=1e-5, check_dtype=False)


def entropy(teacher, student, centre):
    """Cross entropy of two rows, computed with Python floats."""
    t = [(a - c) / 0.04 for a, c in zip(teacher.tolist(), centre.tolist())]
    s = [a / 0.1 for a in student.tolist()]
    norm_t = sum(math.exp(a - max(t)) for a in t)
    log_s = max(s) + math.log(sum(math.exp(a - max(s)) for a in s))
    return sum(math.exp(a - max(t)) / norm_t * (log_s - b) for a, b in zip(t, s))


def mean(values):
    return sum(values) / len(values)


def moved_loop(centre, rows):
    return 0.9 * centre + 0.1 * torch.stack(rows).mean(0)


def out_loop(student, local, teacher, centre):
    T, L, B = local.shape[:3]
    pairs = []
    for a, b in [(t, t + T // 2) for t in range(T // 2)]:
        views = [student[a], student[b]] + [local[f, c] for f in (a, b) for c in range(L)]
        pairs.append(
            mean(
                [
                    mean([entropy(teacher[(a, b)[u]][i], views[v][i], centre) for i in range(B)])
                    for u in range(2)
                    for v in range(len(views))
                    if u != v
                ]
            )
        )
        centre = moved_loop(centre, [teacher[f][i] for f in (a, b) for i in range(B)])
    return mean(pairs), centre


def mim_loop(student, teacher, centre):
    frames = []
    for s, t in zip(student.flatten(1, 2), teacher.flatten(1, 2)):
        frames.append(mean([entropy(t[i], s[i], centre) for i in range(len(s))]))
        centre = moved_loop(centre, list(t))
    return mean(frames), centre


def aff_loop(student, teacher):
    T, B, n = student.shape[:3]
    cosine = lambda x, y: float(x @ y / (x.norm() * y.norm()))
    rows, zero = [], torch.zeros(n)
    for t in range(T - 1):
        for b in range(B):
            for i in range(n):
                s, w = (
                    torch.tensor([cosine(x[t, b, i], x[t + 1, b, j]) for j in range(n)], dtype=torch.float64)
                    for x in (student, teacher)
                )
                rows.append(entropy(w, s, zero))
    return mean(rows)


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(3)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64) / 3


@pytest.mark.parametrize("T, B, L", [(4, 2, 3), (2, 1, 1), (6, 1, 2)])
def test_out_is_its_definition(draw, T, B, L):
    student, local, teacher, centre = draw(T, B, 8), draw(T, L, B, 8), draw(T, B, 8), draw(8)
    centres = trail(centre, pair_means(teacher), 0.9)
    wanted, wanted_after = out_loop(student, local, teacher, centre)
    close(out_loss(student, local, teacher, centres, TAU), wanted, 1e-9)
    close(centres[-1], wanted_after, 1e-12)


def test_in_terms_are_their_definitions(draw):
    student, teacher, centre = draw(3, 2, 4, 6), draw(3, 2, 4, 6), draw(6)
    centres = trail(centre, frame_means(teacher), 0.9)
    wanted, wanted_after = mim_loop(student, teacher, centre)
    close(in_mim_loss(student, teacher, centres, TAU), wanted, 1e-9)
    close(centres[-1], wanted_after, 1e-12)
    close(in_aff_loss(student, teacher, TAU), aff_loop(student, teacher), 1e-9)


def test_nothing_masked_costs_nothing_and_leaves_the_centre(draw):
    student, teacher, centre = draw(4, 2, 0, 6).requires_grad_(), draw(4, 2, 0, 6), draw(6)
    centres = trail(centre, frame_means(teacher), 0.9)
    loss = in_mim_loss(student, teacher, centres, TAU)
    (loss + in_aff_loss(student, teacher, TAU)).backward()
    assert loss == 0 and in_aff_loss(student, teacher, TAU) == 0 and torch.equal(centres, centre[None])


def test_a_centre_kept_in_full_stays(draw):
    centre = draw(6)
    assert torch.equal(trail(centre, draw(4, 6), 1.0), centre.expand(5, -1))


def test_dino_loss_and_its_centre_agree_with_reference(golden):
    reference = golden("g6_dino_center3")
    centre = torch.zeros(64)
    for step in range(3):
        student = torch.from_numpy(reference[f"student{step}"]).requires_grad_()
        teacher = torch.from_numpy(reference[f"teacher{step}"])
        loss = between_views(student.unflatten(0, (18, 2)), teacher.unflatten(0, (2, 2)), centre, TAU)
        loss.backward()
        centre = trail(centre, teacher.mean(0, keepdim=True), 0.9)[-1]
        close(loss, reference[f"loss{step}"])
        close(student.grad, reference[f"grad{step}"], 1e-6)
        close(centre, reference[f"center{step}"][0])


def test_out_agrees_with_reference(golden):
    reference = {name: torch.from_numpy(array) for name, array in golden("g6_cross_frame").items()}
    student, local = reference["glb_student"].requires_grad_(), reference["local_student"].requires_grad_()
    teacher = reference["glb_teacher"]
    centres = trail(torch.zeros(64), pair_means(teacher), 0.9)
    loss = out_loss(student, local.unflatten(1, (8, 2)), teacher, centres, TAU)
    loss.backward()
    close(loss, reference["loss"])
    close(student.grad, reference["grad_glb"], 1e-6)
    close(local.grad, reference["grad_loc"], 1e-6)
    close(centres[-1], reference["center"][0])


@pytest.mark.parametrize("name", ["g6_mim", "g6_affine"])
def test_in_terms_agree_with_reference(golden, name):
    inputs, reference = golden("g6_mim"), golden(name)
    student = torch.from_numpy(inputs["student_hw"]).requires_grad_()
    (places,) = inputs["mask"][0].nonzero()
    assert (inputs["mask"] == inputs["mask"][0]).all(), "one mask for the batch"
    masked, teacher = student[:, :, places], torch.from_numpy(inputs["teacher_hw"])[:, :, places]
    if name == "g6_mim":
        centres = trail(torch.zeros(64), frame_means(teacher), 0.9)
        loss = in_mim_loss(masked, teacher, centres, TAU)
        close(centres[-1], reference["center"][0])
    else:
        loss = in_aff_loss(masked, teacher, TAU)
    loss.backward()
    close(loss, reference["loss"])
    close(student.grad, reference["grad_student"], 1e-6)
