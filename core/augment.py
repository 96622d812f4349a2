"""The operations of views: resizing, cropping and flipping frames, ImageNet normalisation, and theta.

Frames are resized, cropped and flipped as uint8, in an eighth of the time of floats, and become floats at the very end.
Legend: frame [H,W,3] uint8 RGB; T frames; theta [2,3] as torch's affine_grid reads it, coordinates in [-1, 1].
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
#: The colour of padding.  Normalised it is 0, up to half a grey level.
MEAN_COLOUR = tuple(round(255 * mean) for mean in IMAGENET_MEAN)


def normalise(frames: torch.Tensor, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> torch.Tensor:
    """(frames - mean) / std per channel.  frames [..,3,H,W]: floats in [0, 1], or uint8.  New floats, contiguous."""
    scale = 255.0 if frames.dtype == torch.uint8 else 1.0
    kind = torch.float32 if frames.dtype == torch.uint8 else frames.dtype
    frames = frames.to(kind, memory_format=torch.contiguous_format, copy=True)
    mean, std = (scale * frames.new_tensor(values)[:, None, None] for values in (mean, std))
    return frames.sub_(mean).div_(std)


def short_side_size(height: int, width: int, short: int) -> tuple[int, int]:
    """(height, width) in the same proportion with the given short side; the long side is rounded down."""
    return (short, int(width * short / height)) if width >= height else (int(height * short / width), short)


def resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """frame [H,W,3] uint8 -> [height,width,3] uint8: the pixels of Pillow's antialiased BILINEAR."""
    if frame.shape[:2] == (height, width):
        return frame
    if _exact_in_torch(frame.shape[0], height) and _exact_in_torch(frame.shape[1], width):
        pixels = torch.from_numpy(frame).permute(2, 0, 1)[None]
        pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
        return pixels[0].permute(1, 2, 0).contiguous().numpy()
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))


def _exact_in_torch(size, new_size):
    """Whether torch's resizing, three times as fast, gives Pillow's pixels.

    torch's weights have 15 bits.  Enlarging to 2^n makes all weights multiples of 2^-(n+1), which 15 bits hold.  Other
    weights are rounded, which changes values that lie half-way between two grey levels.
    """
    return size <= new_size <= 1 << 12 and new_size & (new_size - 1) == 0


def crop(frame: np.ndarray, top: int, left: int, side: int, fill=MEAN_COLOUR) -> np.ndarray:
    """The square frame[top:top+side, left:left+side], [side,side,3]; top and left may be negative.

    fill: the colour of pixels outside the frame.
    """
    height, width = frame.shape[:2]
    rows = slice(max(top, 0), min(top + side, height))
    columns = slice(max(left, 0), min(left + side, width))
    inside = frame[rows, columns]
    if inside.shape[:2] == (side, side):
        return inside
    out = np.empty((side, side, 3), np.uint8)
    out[:] = fill
    out[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = inside
    return out


def flip(frame: np.ndarray) -> np.ndarray:
    """frame mirrored left to right."""
    return np.ascontiguousarray(frame[:, ::-1])


def theta_flip_zoom(flipped: bool, zoom: float, top: float, left: float, zoom_px: float, side: int) -> torch.Tensor:
    """theta [2,3] of "flip a side x side frame, then enlarge its crop at (top, left) of zoom_px pixels to side".

    grid_sample(frame, affine_grid(theta)) gives that crop, up to a pixel: as in the authors' code theta has the zoom
    that was drawn, while the crop has a whole number of pixels.
    """
    sign = -1.0 if flipped else 1.0
    shift_y, shift_x = ((corner + zoom_px / 2 - side / 2) / (side / 2) for corner in (top, left))
    return torch.tensor([[sign * zoom, 0, sign * shift_x], [0, zoom, shift_y]], dtype=torch.float32)
