"""The picture of a validation sequence for TensorBoard.

Legend: D channels, H W pixels of a frame, h w cells.
"""

import cv2
import numpy as np
import torch

from core.palette import fitted, overlay, read_ids
from datasets.vos_sequences import read_frame
from labelprop.video import Video

COLUMNS = 4
SIDE_PX = 427  # of each frame at most


def shown(length):
    """The numbers of the frames in the picture of a sequence of `length` frames."""
    return [round(i * (length - 1) / (COLUMNS - 1)) for i in range(COLUMNS)]


def validation_sheet(sequence, annotations, results, tracker):
    """Four frames of a sequence as a sheet.  -> uint8 RGB [3, rows, columns].

    annotations: the folder of the annotated ids, a PNG a frame.  results: {number of a shown frame: (ids, confidence)},
    as the tracker gave them.  Rows: the annotation; the prediction; its confidence (blue = none, yellow = full); and
    where a cell of the first frame, which a white square marks there, is found again (the brighter, the more likely).
    """
    frames = {t: read_frame(sequence.images[t]) for t in results}
    place = middle(sequence.given()[0])
    found = [
        heat(frame, chance, cv2.COLORMAP_INFERNO)
        for frame, chance in zip(frames.values(), found_again(tracker, [*frames.values()], place))
    ]
    mark(found[0], place)
    rows = [
        [overlay(frame, read_ids(annotations / f"{sequence.frame_names[t]}.png")) for t, frame in frames.items()],
        [overlay(frame, results[t][0]) for t, frame in frames.items()],
        [heat(frame, results[t][1], cv2.COLORMAP_PLASMA) for t, frame in frames.items()],
        found,
    ]
    return np.vstack([np.hstack([fitted(picture, SIDE_PX) for picture in row]) for row in rows]).transpose(2, 0, 1)


def middle(ids_HW):
    """(y, x) of the pixel of the largest object that is nearest to the object's centre."""
    sizes = np.bincount(ids_HW.ravel(), minlength=256)
    pixels = np.argwhere(ids_HW == 1 + sizes[1:].argmax())
    return pixels[((pixels - pixels.mean(0)) ** 2).sum(1).argmin()]


@torch.no_grad()
def found_again(tracker, frames, place):
    """For every frame, how likely each cell is the cell at place (y, x) of the first frame: a list of numpy [h,w].

    The values are a softmax over the frame's cells with the protocol's temperature, scaled so that the largest is 1.
    """
    H, W = frames[0].shape[:2]
    video, chances = Video(tracker.features, tracker.propagation, tracker.backend, tracker.device), []
    for t, frame in enumerate(frames):
        features_Dhw = tracker.features(video.batch([frame], t))[0]
        _, h, w = features_Dhw.shape
        if not chances:
            cell_D = features_Dhw[:, place[0] * h // H, place[1] * w // W]
        logits_hw = torch.einsum("d,dhw->hw", cell_D, features_Dhw) / tracker.propagation.temperature
        chances.append((logits_hw - logits_hw.max()).exp().cpu().numpy())
    return chances


def heat(frame, values, colours):
    """The frame beneath values in [0,1], float32 of any size, in the colours of an OpenCV colour map."""
    levels = cv2.resize((values * 255).round().astype(np.uint8), frame.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return cv2.addWeighted(frame, 0.3, cv2.applyColorMap(levels, colours)[..., ::-1], 0.7, 0)


def mark(picture, place):
    """Draw a white square around a place (y, x) into the picture."""
    (y, x), reach = place, max(2, len(picture) // 60)
    cv2.rectangle(picture, (int(x) - reach, int(y) - reach), (int(x) + reach, int(y) + reach), (255, 255, 255), 2)
