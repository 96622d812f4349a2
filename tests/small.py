"""Small configurations, videos and data sets, for fast tests."""

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from core.palette import write_indexed
from models.methods import crw, dul, ino


def dul_config(**changes):
    """DUL at 64 px with small grids."""
    values = dict(
        name="dul",
        embedding=16,
        temperature=0.05,
        anchor_grid=4,
        cross_grid=2,
        cross_weight=0.1,
        crop_px=64,
        resize_px=(64, 80),
        random_crop=True,
        flip=0.5,
        zoom=(0.5, 1.0),
    )
    return dul.Config(**{**values, **changes})


def ino_config(**changes):
    """INO at 32 px: ViT-T with patches of 8 px, a narrow head, two local crops."""
    values = dict(
        name="ino",
        size="tiny",
        patch=8,
        image_px=16,
        drop_path=0.1,
        outputs=32,
        head_hidden=24,
        bottleneck=16,
        feature_block=7,
        global_px=32,
        global_area=(0.8, 0.95),
        local_px=16,
        local_area=(0.05, 0.8),
        local_crops=2,
        mask_chance=0.5,
        mask_share=(0.1, 0.5),
        student_temperature=0.1,
        teacher_temperature=0.04,
        centre_momentum=0.9,
        teacher_momentum=0.996,
        frozen_epochs=1,
    )
    return ino.Config(**{**values, **changes})


def crw_config(**changes):
    """CRW at 32 px: 2 x 2 patches of 16 px, eight channels."""
    values = dict(
        name="crw",
        embedding=8,
        temperature=0.05,
        edge_dropout=0.1,
        crop_px=32,
        crop_area=(0.8, 0.95),
        patch_px=16,
        stride_px=16,
        patch_area=(0.7, 0.9),
    )
    return crw.Config(**{**values, **changes})


def run_of(method, accumulate):
    """A stand-in for a Run: only the attributes that training.step.gradients reads."""
    parts = SimpleNamespace(data=SimpleNamespace(accumulate=accumulate), optim=SimpleNamespace(precision="fp32"))
    optimiser = torch.optim.SGD(method.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return SimpleNamespace(method=method, optimiser=optimiser, scaler=scaler, device=torch.device("cpu"), config=parts)


def write_videos(root, videos=6, frames=8, size=(72, 96), seed=0):
    """Folders of JPEG frames: a smooth random texture that drifts.  size: (height, width)."""
    rng = np.random.default_rng(seed)
    height, width = size
    for video in range(videos):
        folder = root / f"video{video}"
        folder.mkdir(parents=True)
        coarse = rng.integers(0, 255, (height // 8 + 4, width // 8 + 4, 3), dtype=np.uint8)
        texture = np.array(Image.fromarray(coarse).resize((width + 2 * frames, height + 2 * frames), Image.BICUBIC))
        for t in range(frames):
            frame = texture[t : t + height, 2 * t : 2 * t + width]
            Image.fromarray(frame).save(folder / f"{t:05d}.jpg", quality=95)
    return root


def write_davis(root, videos=2, frames=6, listed=2, seed=0):
    """Videos of 48x40 px in DAVIS layout.  The first `listed` are in val.txt and have the same mask for every frame."""
    write_videos(root / "JPEGImages/480p", videos, frames, size=(40, 48), seed=seed)
    mask = np.zeros((40, 48), np.uint8)
    mask[10:30, 12:36] = 1
    names = [f"video{video}" for video in range(listed)]
    for name in names:
        for t in range(frames):
            write_indexed(root / "Annotations/480p" / name / f"{t:05d}.png", mask)
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("\n".join(names))
    return root
