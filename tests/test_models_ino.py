"""INO: losses, steps, mask, teacher, centres, features and views."""

import dataclasses

import numpy as np
import pytest
import torch

import models
from core.augment import normalise
from core.errors import UserError
from core.schedule import Progress
from core.schema import Optim
from models.methods import ino
from models.methods.ino_losses import (
    Temperatures,
    frame_means,
    in_aff_loss,
    in_mim_loss,
    out_loss,
    pair_means,
    trail,
)
from tests.small import ino_config
from training import optim

START = Progress(step=0, steps_per_epoch=5, total_steps=10)


def method_of(**changes):
    torch.manual_seed(1)
    return ino.Method(ino_config(**changes))


def batch_of(clips=2, frames=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randint(0, 256, (clips, frames, *shape), generator=generator, dtype=torch.uint8)
    return {"global": draw(3, 32, 32), "local": draw(2, 3, 16, 16)}


def adamw(method, lr=1e-3):
    return optim.build(method, Optim("adamw", lr, 0.04, betas=(0.9, 0.999), bias_lr_factor=1, decay_norm_weights=False))


def step(method, optimiser, batch, progress):
    losses = method(batch)
    optimiser.zero_grad()
    losses.total.backward()
    method.before_step(progress)
    optimiser.step()
    method.after_step(progress)
    return losses


def test_the_loss_is_the_sum_of_three_terms_of_the_outputs():
    method, batch = method_of(drop_path=0.0, mask_chance=1.0), batch_of()
    with torch.no_grad():
        method.centre_class.normal_(std=0.01)
        method.centre_patch.normal_(std=0.01)
        for parameter in method.teacher.parameters():
            parameter.mul_(1.1)
    centre_class, centre_patch = method.centre_class.clone(), method.centre_patch.clone()
    torch.manual_seed(5)
    mask = method._draw_mask(batch["global"])
    torch.manual_seed(5)
    losses = method(batch)

    (places,) = mask.nonzero(as_tuple=True)
    student, teacher = torch.zeros(2, 4, 32), torch.zeros(2, 4, 32)
    student_patch, teacher_patch = torch.zeros(2, 4, len(places), 32), torch.zeros(2, 4, len(places), 32)
    local = torch.zeros(2, 4, 2, 32)
    run = lambda network, image, mask=None: network.head(network.backbone(normalise(image[None]), mask))[0]
    with torch.no_grad():
        for b in range(2):
            for t in range(4):
                masked = run(method.student, batch["global"][b, t], mask)
                plain = run(method.teacher, batch["global"][b, t])
                student[b, t], teacher[b, t] = masked[0], plain[0]
                student_patch[b, t], teacher_patch[b, t] = masked[1:][places], plain[1:][places]
                for crop in range(2):
                    local[b, t, crop] = run(method.student, batch["local"][b, t, crop])[0]
    tau = Temperatures(0.1, 0.04)
    frames = lambda x: x.transpose(0, 1)
    centres_class = trail(centre_class, pair_means(frames(teacher)), 0.9)
    centres_patch = trail(centre_patch, frame_means(frames(teacher_patch)), 0.9)
    out = out_loss(frames(student), local.permute(1, 2, 0, 3), frames(teacher), centres_class, tau)
    in_mim = in_mim_loss(frames(student_patch), frames(teacher_patch), centres_patch, tau)
    in_aff = in_aff_loss(frames(student_patch), frames(teacher_patch), tau)
    close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    close(losses.terms["out"], out)
    close(losses.terms["in_mim"], in_mim)
    close(losses.terms["in_aff"], in_aff)
    close(losses.total.detach(), out + in_mim + in_aff)
    close(method.centre_class, centres_class[-1])
    close(method.centre_patch, centres_patch[-1])
    assert out > 0 and in_mim > 0 and in_aff > 0


def test_the_terms_are_weighted():
    plain, weighted = (method_of(drop_path=0.0, mask_chance=1.0, **weights) for weights in ({}, WEIGHTS))
    losses = []
    for method in (plain, weighted):
        torch.manual_seed(5)
        losses.append(method(batch_of()))
    terms = losses[1].terms
    assert all(torch.equal(terms[name], value) for name, value in losses[0].terms.items())
    torch.testing.assert_close(losses[0].total, sum(terms.values()))
    torch.testing.assert_close(losses[1].total, 0.5 * terms["out"] + 2 * terms["in_aff"])


WEIGHTS = {"out_weight": 0.5, "in_mim_weight": 0.0, "in_aff_weight": 2.0}


def test_the_teachers_temperature_warms_up():
    method = method_of(teacher_warmup_temperature=0.02, teacher_warmup_epochs=2, teacher_temperature=0.04)
    at = lambda step: float(method.prepare([batch_of()], Progress(step, 5, 30))[0]["teacher_temperature"])
    assert [at(step) for step in (0, 5, 10, 20)] == pytest.approx([0.02, 0.03, 0.04, 0.04])
    validated = method.prepare([batch_of()])[0]  # validation passes no progress
    assert float(validated["teacher_temperature"]) == pytest.approx(0.04)
    assert float(method_of().prepare([batch_of()], START)[0]["teacher_temperature"]) == pytest.approx(0.04)
    for half in ({"teacher_warmup_temperature": 0.02}, {"teacher_warmup_epochs": 2}):
        with pytest.raises(UserError, match="method.teacher_warmup_temperature"):
            method_of(**half)


def test_steps_lower_the_loss_towards_a_teacher_that_stays():
    method, batch = method_of(mask_chance=1.0, frozen_epochs=0, teacher_momentum=1.0), batch_of(clips=1)
    optimiser = adamw(method)
    totals = [step(method, optimiser, batch, Progress(n, 5, 30)).total.item() for n in range(12)]
    assert np.mean(totals[-3:]) < 0.8 * totals[0]


def test_a_step_moves_all_of_the_teacher_but_the_fixed_lengths():
    method = method_of(mask_chance=1.0, frozen_epochs=0, teacher_momentum=0.9)
    before = {name: value.clone() for name, value in method.teacher.named_parameters()}
    step(method, adamw(method), batch_of(clips=1), START)
    moved = [name for name, value in method.teacher.named_parameters() if not torch.equal(value, before[name])]
    assert set(before) - set(moved) == {"head.last_layer.weight_g"}
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


def test_teacher_starts_as_the_student_and_follows_it(golden):
    method = method_of()
    for ours, theirs in zip(method.teacher.parameters(), method.student.parameters()):
        assert torch.equal(ours, theirs)
    reference = golden("g6_schedules_ema_clip")
    student, teacher = torch.nn.Linear(4, 3, bias=False), torch.nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        teacher.weight.copy_(torch.from_numpy(reference["ema_seq"][0]))
        for weights, wanted in zip(reference["ema_students"], reference["ema_seq"][1:]):
            student.weight.copy_(torch.from_numpy(weights))
            ino.follow(teacher, student, float(reference["ema_m"]))
            torch.testing.assert_close(teacher.weight.data, torch.from_numpy(wanted), atol=1e-6, rtol=0)


def test_momentum_rises_to_one():
    method = method_of(teacher_momentum=0.5)
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(1.0)
    weight = lambda: method.teacher.backbone.cls_token.clone()
    start = weight()
    method.after_step(START)
    assert torch.allclose(weight() - start, torch.tensor(0.5))
    end = weight()
    method.after_step(dataclasses.replace(START, step=10))
    assert torch.equal(weight(), end)


def test_last_layer_waits_for_the_first_epoch():
    method = method_of()
    optimiser, last = adamw(method), method.student.head.last_layer.weight_v
    before = last.detach().clone()
    step(method, optimiser, batch_of(), dataclasses.replace(START, step=4))
    assert torch.equal(last, before)
    step(method, optimiser, batch_of(), dataclasses.replace(START, step=5))
    assert not torch.equal(last, before)


def test_mask_is_none_or_a_share_of_the_patches():
    method = method_of(mask_chance=0.5, mask_share=(0.1, 0.5))
    crops = torch.zeros(1, 3, 224, 224)
    torch.manual_seed(0)
    masks = torch.stack([method._draw_mask(crops) for _ in range(400)])
    counts = masks.sum(1)
    masked = counts[counts > 0]
    assert masks.shape == (400, 784)
    assert 160 < len(masked) < 240
    assert 78 <= masked.min() < 100 and 370 < masked.max() <= 392
    assert masks[counts > 0].float().mean(0).min() > 0.1  # every patch is masked at times


def test_validation_leaves_the_centres_alone():
    method = method_of(mask_chance=1.0).eval()
    method(batch_of())
    assert not method.centre_class.any() and not method.centre_patch.any()
    method.train()(batch_of())
    assert method.centre_class.any() and method.centre_patch.any()


def test_an_odd_number_of_frames_is_refused():
    with pytest.raises(UserError, match=r"clip.frames = 3: must be even"):
        method_of()(batch_of(frames=3))


@pytest.mark.parametrize("inference", ["student", "teacher"])
def test_features_are_unit_patch_tokens_of_the_network_asked_for(inference):
    method = method_of(inference=inference).eval()
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.mul_(1.2)
    extractor, frames = method.extractor, torch.rand(2, 3, 24, 40)
    with torch.no_grad():
        maps = extractor(frames, "block7")
        tokens = getattr(method, inference).backbone(normalise(frames), blocks=7)[1, 1 + 2 * 5 + 3]  # row 2, column 3
    assert maps.shape == (2, 192, 3, 5)
    torch.testing.assert_close(maps.norm(dim=1), torch.ones(2, 3, 5))
    torch.testing.assert_close(maps[1, :, 2, 3], tokens / tokens.norm())
    assert extractor.layers[:2] == ("block7", "block12") and len(extractor.layers) == 12
    with pytest.raises(UserError, match="propagation.multiple = 8"):
        extractor(frames[..., :36], "block7")


def test_parameter_groups_have_the_official_sizes(golden):
    config = models.read_config(models.ROOT / "configs/charades.yaml")
    groups = optim.parameter_groups(ino.Method(config.method), config.optim)
    sizes = lambda chosen: (sum(len(g["params"]) for g in chosen), sum(p.numel() for g in chosen for p in g["params"]))
    ours = [sizes([g for g in groups if g["decays"]]), sizes([g for g in groups if not g["decays"]])]
    assert ours == [tuple(group[:2]) for group in golden("g7_ino_checkpoint_layout.json")["param_groups"]]


def test_pictures_leave_the_method_alone():
    method = method_of(mask_chance=1.0)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    sheet = method.pictures(batch_of())["sample"]
    assert sheet.dtype == torch.uint8 and sheet.shape == (3, 3 * 32 + 8, 4 * 32)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


FRAMES = [np.random.default_rng(t).integers(0, 256, (48, 64, 3), dtype=np.uint8) for t in range(4)]


def test_views_have_their_sizes_and_depend_on_the_seed_alone():
    views = ino.Views(ino_config())
    first = views(FRAMES, np.random.default_rng(7))
    state = torch.get_rng_state()
    torch.rand(3)
    again, other = views(FRAMES, np.random.default_rng(7)), views(FRAMES, np.random.default_rng(8))
    assert {name: tuple(value.shape) for name, value in first.items()} == {
        "global": (4, 3, 32, 32),
        "local": (4, 2, 3, 16, 16),
    }
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["global"], other["global"])
    assert not torch.equal(first["local"][0, 0], first["local"][0, 1])
    torch.set_rng_state(state)
    drawn = torch.rand(1)
    torch.set_rng_state(state)
    views(FRAMES, np.random.default_rng(7))
    assert torch.equal(torch.rand(1), drawn), "views must not draw from the run's generator"


def test_global_crops_keep_their_share_of_the_frame_and_its_colours():
    y, x = np.mgrid[0:200, 0:240]
    frame = np.stack([y, x, np.full_like(y, 90)], axis=-1).astype(np.uint8)
    views = ino.Views(ino_config(local_crops=1))
    shares = []
    for seed in range(30):
        crop = views([frame, frame], np.random.default_rng(seed))["global"][0].float()
        height, width = (crop[0, -1] - crop[0, 0]).mean(), (crop[1, :, -1] - crop[1, :, 0]).mean()
        shares.append(float(height * width) / (200 * 240) * (32 / 31) ** 2)
        assert width > 0 and (crop[2] - 90).abs().max() <= 1
    assert min(shares) > 0.74 and max(shares) < 0.99


def test_local_crops_are_flipped_recoloured_and_greyed_as_often_as_said():
    y, x = np.mgrid[0:96, 0:128]
    frame = np.stack([80 + x // 2, 90 + y // 2, np.full_like(x, 60)], axis=-1).astype(np.uint8)
    views = ino.Views(ino_config(local_crops=100))
    crops = views([frame, frame], np.random.default_rng(0))["local"].float().flatten(0, 1)
    grey = (crops[:, 0] - crops[:, 2]).abs().flatten(1).amax(1) <= 1
    flipped = (crops[:, 0, :, -1] - crops[:, 0, :, 0]).mean(1) < 0
    recoloured = (crops[:, 2] - 60).abs().flatten(1).amax(1) > 1
    assert 0.12 < grey.float().mean() < 0.28
    assert 0.4 < flipped[~grey].float().mean() < 0.6
    assert 0.72 < recoloured[~grey].float().mean() < 0.88
