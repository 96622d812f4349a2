"""The two views of a clip that DUL trains on: plain, and flipped and zoomed.

Legend: T frames of one clip, c = crop_px, the side of both views.
"""

from dataclasses import dataclass

import numpy as np
import torch

from core.augment import crop, flip, resize, short_side_size, theta_flip_zoom


@dataclass(frozen=True)
class Draws:
    """The random draws for one clip, the same for all its frames; lengths are in pixels.

    height, width: size that the frames are resized to.  top, left: corner of the crop there, negative where the frame
    is smaller than the crop.  flip: both views are flipped.  zoom_flip, zoom (share of the side), zoom_top, zoom_left:
    the flip and the crop that turn the plain view into the transformed view.
    """

    height: int
    width: int
    top: int
    left: int
    flip: bool
    zoom_flip: bool
    zoom: float
    zoom_top: int
    zoom_left: int


class Views:
    """clip -> {"plain", "transformed" uint8 [T,3,c,c], "theta" [T,2,3]}.

    grid_sample(plain, affine_grid(theta)) = transformed, up to interpolation.  Padding has the mean colour, which is 0
    up to half a grey level when normalised.
    config: crop_px, resize_px (lowest and highest short side), random_crop, flip (probability), zoom (lowest and
    highest share of the side).
    """

    def __init__(self, config):
        self.config = config

    def __call__(self, frames, rng):
        return self.apply(frames, self.draw(rng, frames[0].shape[:2]))

    def draw(self, rng, size):
        """Draw for one clip.  size: (height, width) of the frames.  rng: numpy Generator."""
        side, (low, high) = self.config.crop_px, self.config.resize_px
        short = int(low + (high - low) * rng.random()) if high > low else low
        height, width = short_side_size(*size, short)
        top, left = (self._place(rng, extent) for extent in (height, width))
        flipped, zoom_flipped = (rng.random() >= 1 - self.config.flip for _ in range(2))
        zoom = rng.uniform(*self.config.zoom)
        zoom_top, zoom_left = (int(rng.integers(0, side - int(zoom * side) + 1)) for _ in range(2))
        return Draws(height, width, top, left, flipped, zoom_flipped, zoom, zoom_top, zoom_left)

    def _place(self, rng, extent):
        """The corner of the crop along an axis; a frame smaller than the crop lies anywhere inside the crop."""
        spare = extent - self.config.crop_px
        return int(rng.integers(min(0, spare), max(0, spare) + 1)) if self.config.random_crop else round(spare / 2)

    def apply(self, frames, draws):
        """The training sample of T frames, uint8 RGB [H,W,3], for given draws."""
        side, zoom_px = self.config.crop_px, int(draws.zoom * self.config.crop_px)
        plain = np.empty((len(frames), side, side, 3), np.uint8)
        transformed = np.empty_like(plain)

        for frame, plain_frame, transformed_frame in zip(frames, plain, transformed):
            pixels = crop(resize(frame, draws.height, draws.width), draws.top, draws.left, side)
            plain_frame[:] = flip(pixels) if draws.flip else pixels
            pixels = flip(plain_frame) if draws.zoom_flip else plain_frame
            corner = pixels[draws.zoom_top :, draws.zoom_left :]
            transformed_frame[:] = resize(corner[:zoom_px, :zoom_px], side, side)

        theta = theta_flip_zoom(draws.zoom_flip, draws.zoom, draws.zoom_top, draws.zoom_left, zoom_px, side)
        return {
            "plain": _channels_first(plain),
            "transformed": _channels_first(transformed),
            "theta": theta.repeat(len(frames), 1, 1),
        }


def _channels_first(frames):
    """[T,c,c,3] -> [T,3,c,c]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
