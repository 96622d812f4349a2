"""report.html: the scores of an evaluation as a page that a browser shows without a network.

page.html beside this file is the page, with its style and its script; the data are put into it as JSON.
"""

import base64
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from core.atomic import replacing
from core.evaluation import davis, report
from core.evaluation import folders as layout
from core.palette import OVERLAY_PALETTE, VOID, overlay

NAME = "report.html"
TEMPLATE = Path(__file__).with_name("page.html")
#: Bytes of all curves and pictures.  Each sequence may take an equal part, at most 1 / FEW.
PAGE_BYTES, FEW = 9_800_000, 15
#: How many frames of a sequence have pictures: the worst, and evenly spaced frames.
WORST, EVEN = 6, 6
SIDE_PX, QUALITY = 320, 70
#: Photos are read as networks see them: masks do not follow a photo's EXIF orientation.
AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


def write(
    path: str | Path,
    scores: Sequence[davis.ObjectScores],
    folders: Sequence[tuple[Path, Path]],
    photos: Mapping[str, Sequence[Path]],
    single: bool = False,
) -> None:
    """Write the page.

    scores: what davis.evaluate_folders(folders, single=single) returned.  photos: name of a sequence -> files of its
    frames; a frame without a file is shown black.  Raises UserError where the page cannot be written.
    """
    head, tail = TEMPLATE.read_text(encoding="utf-8").split("{{data}}")
    room = PAGE_BYTES // max(FEW, len(folders))
    by_sequence = [list(group) for _, group in groupby(scores, lambda score: score.sequence)]
    with replacing(path) as part, open(part, "w", encoding="utf-8") as file:
        top = {"facts": facts(folders, single), "mean": percent(report.row(davis.overall(scores)))}
        file.write(f'{head}{_json(top)[:-1]},"sequences":[')
        for number, ((annotation, result), objects) in enumerate(zip(folders, by_sequence)):
            files = {photo.stem: photo for photo in photos.get(result.name, ())}
            content = described(annotation, objects)
            spare = room - len(_json(content))
            content["shown"] = pictures(annotation, result, files, objects, spare, single)
            file.write(("," if number else "") + _json(content))
        file.write(f"]}}{tail}")


def _json(value: Any) -> str:
    """The value as JSON that cannot end the HTML script element which holds it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def percent(values) -> list[float]:
    """Fractions of 1 in percent, with one decimal."""
    return [round(100 * value, 1) for value in values]


def facts(folders: Sequence[tuple[Path, Path]], single: bool) -> list[tuple[str, str]]:
    """(name, text) lines about the folders, the measure and, for masks of infer_vos.py, how they were made."""
    annotations, results = ({str(folder.parent): None for folder in side} for side in zip(*folders))
    found = [
        ("command", shlex.join(["python", *sys.argv])),
        ("written", time.strftime("%Y-%m-%d %H:%M")),
        ("annotations", ", ".join(annotations)),
        ("results", ", ".join(results)),
        ("measure", f"DAVIS {'2016: all ids are one object' if single else '2017, semi-supervised'}; the first and the "
                    "last frame are not scored; means are over objects"),
    ]  # fmt: skip
    masks = folders[0][1].parent
    try:
        origin = json.loads(masks.with_name(masks.name.removesuffix("_vos") + "_origin.json").read_text())
        numbers = ", ".join(f"{key} {value}" for key, value in origin["propagation"].items())
        found.append(("protocol", f"{origin['protocol']}: {numbers}"))
        made = ("network", "precision", "weights", "dataset", "remark")
        found += [(name, str(origin[name])) for name in made if origin.get(name)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # masks of another program
    return found


def described(annotation: Path, objects: Sequence[davis.ObjectScores]) -> dict[str, Any]:
    """The scores of a sequence, in percent, as the script of the page reads them."""
    return {
        "name": objects[0].sequence,
        "frames": [path.stem for path in layout.masks_in(annotation)[1:-1]],
        "objects": [
            {
                "id": score.id,
                "colour": "#" + OVERLAY_PALETTE[score.id].tobytes().hex(),
                "statistics": percent(report.row(score)),
                "J": percent(J for J, _ in score.by_frame),
                "F": percent(F for _, F in score.by_frame),
            }
            for score in objects
        ],
    }


def pictures(annotation, result, photos, objects, spare, single) -> list[dict[str, Any]]:
    """Annotation and prediction of the chosen frames of a sequence, as many as fit into `spare` bytes.

    photos: {stem of the frame's name: file}.  Void is not drawn.
    """
    paths = layout.masks_in(annotation)
    read_truth, read_prediction = davis.readers(paths[0], single)
    shown = []
    for t in chosen(np.mean([score.by_frame for score in objects], axis=(0, 2))):
        path = paths[t + 1]
        truth, prediction = read_truth(path), read_prediction(result / path.name)
        photo = cv2.imread(str(photos[path.stem]), AS_STORED) if path.stem in photos else None
        if photo is None:
            photo = np.zeros((*truth.shape, 3), np.uint8)
        entry = {"t": t, "truth": thumbnail(photo, truth), "result": thumbnail(photo, prediction)}
        spare -= len(_json(entry)) + 1
        if spare < 0:
            break
        shown.append(entry)
    return sorted(shown, key=lambda entry: entry["t"])


def chosen(scores_T) -> list[int]:
    """The frames to show: in turn, one of the worst frames that lie apart, and one of evenly spaced frames.

    scores_T: the score of every scored frame.
    """
    T = len(scores_T)
    worst: list[int] = []
    for t in np.argsort(scores_T, kind="stable").tolist():
        if len(worst) < WORST and all(abs(t - other) > T // (4 * WORST) for other in worst):
            worst.append(t)
    even = np.linspace(0, T - 1, min(T, EVEN)).round().astype(int).tolist()
    return list(dict.fromkeys(t for pair in zip_longest(worst, even) for t in pair if t is not None))


def thumbnail(photo: np.ndarray, ids: np.ndarray) -> str:
    """A photo, uint8 BGR [H,W,3], with the objects of ids, uint8 [h,w], as a small JPEG in a data URI."""
    height, width = ids.shape
    scale = min(1.0, SIDE_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    ids = cv2.resize(np.where(ids == VOID, np.uint8(0), ids), size, interpolation=cv2.INTER_NEAREST)
    picture = overlay(cv2.resize(photo, size, interpolation=cv2.INTER_AREA)[..., ::-1].copy(), ids)
    jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
