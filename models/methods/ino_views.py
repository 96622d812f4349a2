"""Global and local crops of every frame of a clip, as INO trains on them."""

import torch
from torchvision.transforms import v2

# Probabilities and strengths of the changes to local crops; the order is flip, colours, grey, blur.
FLIP, JITTER, GREY, BLUR = 0.5, 0.8, 0.2, 0.5
COLOURS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
BLUR_SIGMA_PX = (0.1, 2.0)
BLUR_KERNEL_PX = 13  # three of the largest sigmas to either side


class Views:
    """clip -> {"global" [T,3,g,g], "local" [T,L,3,l,l]}, uint8; every crop of every frame drawn on its own.

    config: global_px (g), global_area, local_px (l), local_area (lowest and highest share of the frame's
    area), local_crops (L).
    """

    def __init__(self, config):
        self.local_crops = config.local_crops
        self.global_view = random_crop(config.global_px, config.global_area)
        self.local_view = v2.Compose(
            [
                random_crop(config.local_px, config.local_area),
                v2.RandomHorizontalFlip(FLIP),
                v2.RandomApply([v2.ColorJitter(**COLOURS)], JITTER),
                v2.RandomGrayscale(GREY),
                v2.RandomApply([v2.GaussianBlur(BLUR_KERNEL_PX, BLUR_SIGMA_PX)], BLUR),
            ]
        )

    def __call__(self, frames, rng):
        # torchvision draws from torch's global generator.  It is seeded for this sample only, so that the sample does
        # not depend on the number of workers and on other draws of the process.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            views = [self._frame(torch.from_numpy(frame).permute(2, 0, 1)) for frame in frames]
        return {name: torch.stack([view[name] for view in views]) for name in ("global", "local")}

    def _frame(self, pixels):
        # Tensors take half the time of Pillow images, and torch's uint8 kernels antialias in the same way.
        local = torch.stack([self.local_view(pixels) for _ in range(self.local_crops)])
        return {"global": self.global_view(pixels), "local": local}


def random_crop(side, area):
    """A transform that crops a share in the range `area` of a frame, 3:4 to 4:3, and resizes it to side x side."""
    cubic = v2.InterpolationMode.BICUBIC
    return v2.RandomResizedCrop(side, scale=area, ratio=(3 / 4, 4 / 3), interpolation=cubic, antialias=True)
