"""The patches of every frame of a clip, as CRW trains on them."""

import torch
from torchvision.transforms import v2

# width / height
CROP_RATIO = (0.7, 1.3)
PATCH_RATIO = (3 / 4, 4 / 3)


class Views:
    """clip -> {"patches" uint8 [T,N,3,p,p]}: an overlapping grid, row by row; every crop drawn on its own.

    The crop of each patch, a little smaller than the patch, keeps the network from telling patches by their place.
    config: crop_px, crop_area, patch_px (p), stride_px, patch_area.
    """

    def __init__(self, config):
        self.patch_px, self.stride_px = config.patch_px, config.stride_px
        self.crop = v2.RandomResizedCrop(config.crop_px, config.crop_area, CROP_RATIO)
        self.jitter = v2.RandomResizedCrop(config.patch_px, config.patch_area, PATCH_RATIO)

    def __call__(self, frames, rng):
        # torchvision draws from torch's global generator, which is seeded for this sample only.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            return {"patches": torch.stack([self._patches(torch.from_numpy(f).permute(2, 0, 1)) for f in frames])}

    def _patches(self, pixels):
        """[3,H,W] -> [N,3,p,p]."""
        grid = self.crop(pixels)
        for axis in (1, 2):
            grid = grid.unfold(axis, self.patch_px, self.stride_px)
        return torch.stack([self.jitter(patch) for patch in grid.flatten(1, 2).unbind(1)])
