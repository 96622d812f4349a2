"""The two folders of an evaluation: check that they are the intended ones, and find the sequences to score.

Layout of both: <folder>/<sequence>/<frame>.png.  Names that begin with a dot are ignored.
"""

import os
import re
from glob import iglob
from itertools import pairwise
from pathlib import Path

from core.errors import UserError
from core.suggest import suggestion

MASKS = "*/*.png"
SPLITS = {"2017": ("2017",), "2016": ("480p", "2016")}  # {year: folders of ImageSets}


def masks_in(folder: Path) -> list[Path]:
    """The PNGs of a sequence, sorted by name."""
    return sorted(folder / name for name in iglob("*.png", root_dir=folder))


def names_in(folder: Path) -> list[str]:
    """The names of the folders inside a folder, sorted; none if it cannot be read."""
    return sorted(name.rstrip(os.sep) for name in iglob("*/", root_dir=folder))


def holds(folder: Path, *patterns: str) -> bool:
    """Whether the folder holds a file or a folder that one of the glob patterns matches."""
    return any(any(iglob(pattern, root_dir=folder)) for pattern in patterns)


def absolute(folder):
    """The absolute path of a folder."""
    return Path(os.path.abspath(folder))  # links are not followed: a data set is often a link


def check(annotations: Path, results: Path) -> None:
    """Raise UserError if a folder holds no masks, or if annotations and results were exchanged."""
    for folder in (annotations, results):
        check_layout(folder)
    if annotations.samefile(results):
        raise UserError(f"{results}: given as annotations and as results; name the folder of the masks to score")
    exchanged = "were annotations and results exchanged?"
    given = absolute(annotations)
    if given.name.endswith("_vos") or holds(given.parent, "*_origin.json"):
        raise UserError(f"{annotations}: masks written by infer_vos.py (by name or record); {exchanged}")
    given = absolute(results)
    if given.parent.name == "Annotations" or (given.name == "Annotations" and (given.parent / "JPEGImages").is_dir()):
        raise UserError(f"{results}: holds the annotations of a data set, not results; {exchanged}")


def check_layout(folder):
    """Raise UserError if the folder has another layout; the message names folders nearby that fit."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder of masks")
    if holds(folder, MASKS):
        return
    if masks_in(folder):
        what, fitting = "holds the masks of one sequence", [folder.parent]
    else:
        what = "holds frames (JPEG), not masks" if holds(folder, "*.jp*g", "*/*.jp*g") else "holds no sequence of masks"
        deeper = (mask for above in ("*/", "*/*/", "*/*/*/") for mask in iglob(above + MASKS, root_dir=folder))
        fitting = sorted({(folder / mask).parents[1] for mask in deeper})[:5]
        beside = Path(re.sub("_vis$", "_vos", str(absolute(folder)).replace("JPEGImages", "Annotations")))
        fitting += [beside] if holds(beside, MASKS) else []
    hint = f"; did you mean {' or '.join(map(str, fitting))}?" if fitting else ""
    raise UserError(f"{folder}: {what}; expected {folder}/<sequence>/<frame>.png{hint}")


def pairs(annotations: Path, results: Path, names=None) -> list[tuple[Path, Path]]:
    """(annotation, result), the two folders of every sequence to score.

    names: the sequences; None = all that are in both folders.  Raises UserError for a sequence that one of the folders
    lacks.
    """
    known, held = names_in(annotations), names_in(results)
    chosen = [name for name in known if name in held] if names is None else list(dict.fromkeys(names))
    for name in chosen:
        if name not in known:
            raise UserError(f"{annotations / name}: there is no such sequence{suggestion(name, known)}")
    lacking = [name for name in chosen if name not in held]
    if lacking:
        raise UserError(f"{results}: no results for {len(lacking)} of {len(chosen)} sequences: {listed(lacking)}")
    if not chosen:
        raise UserError(
            f"{results}: no sequence in common with {annotations}; results: {listed(held)}; annotated: {listed(known)}"
        )
    return [(annotations / name, results / name) for name in chosen]


def listed(names):
    """The first ten names in words, and how many more there are."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def photos(annotation: Path) -> list[Path]:
    """The frames of a sequence from JPEGImages, the folder beside Annotations; [] where there is no such folder."""
    parts = absolute(annotation).parts
    if "Annotations" not in parts:
        return []
    beside = Path(*("JPEGImages" if part == "Annotations" else part for part in parts))
    return sorted(beside / name for name in iglob("*.*", root_dir=beside))


def unpaired(annotations: Path, results: Path) -> list[str]:
    """Lines of text that name the sequences which only one of the folders holds."""
    known, held = set(names_in(annotations)), set(names_in(results))
    left_out = {"annotated, but without results": known - held, "without annotation": held - known}
    return [f"left out, {why}: {len(n)} sequences: {listed(sorted(n))}" for why, n in left_out.items() if n]


def check_numbering(annotation: Path) -> None:
    """Raise UserError for the first frame number that is missing, if the frames are numbered in equal steps."""
    paths = masks_in(annotation)
    if not all(path.stem.isdecimal() for path in paths):
        return
    numbers = sorted({int(path.stem) for path in paths})
    step = min((after - before for before, after in pairwise(numbers)), default=1)
    for before, after in pairwise(numbers):
        if after - before != step:
            missing = annotation / f"{before + step:0{len(paths[0].stem)}d}.png"
            raise UserError(f"{missing}: the numbers of the annotations leave out this frame; every frame is needed")


def read_names(path: Path) -> list[str]:
    """The names of sequences in a text file.  A line is a name, or begins with the path of a frame as in DAVIS 2016."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the list of sequences ({error})") from error
    names = [Path(line.split()[0]).parent.name if "/" in line else line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"{path}: names no sequence; expected one name a line")
    return list(dict.fromkeys(names))


def split_file(annotations: Path, split: str, year: str) -> Path:
    """ImageSets/<folder of the year>/<split>.txt beside the annotations.  Raises UserError if it is missing."""
    roots = absolute(annotations).parents[1::-1]
    places = [root / "ImageSets" / folder / f"{split}.txt" for root in roots for folder in SPLITS[year]]
    for place in places:
        if place.is_file():
            return place
    raise UserError(f"{places[0]}: missing; --split {split} reads it, or use --sequences")
