"""The two folders of an evaluation: whether they are what they were given as, and which sequences both hold.

Layout of either: <folder>/<sequence>/<frame>.png.  Names that begin with a dot are nobody's masks.
"""

import os
from itertools import islice, pairwise
from pathlib import Path

from core.errors import UserError
from core.suggest import suggestion

SEARCHED = 3  # levels below a folder that does not fit, for one that does
SPLITS = {"2017": ("2017",), "2016": ("480p", "2016")}  # folders of ImageSets


def masks_in(folder: Path) -> list[Path]:
    """The PNGs of a sequence, sorted by name."""
    return sorted(path for path in folder.glob("*.png") if not path.name.startswith("."))


def names_in(folder: Path) -> list[str]:
    """The folders inside a folder, sorted; none where they cannot be listed."""
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def check(annotations: Path, results: Path) -> None:
    """Raise UserError unless both hold masks, and these as annotations, those as results."""
    for folder in (annotations, results):
        check_layout(folder)
    if annotations.samefile(results):
        raise UserError(f"{results}: given as annotations and as results; name the folder of the masks to score")
    exchanged = "were annotations and results exchanged?"
    given = absolute(annotations)
    if given.name.endswith("_vos") or any(given.parent.glob("*_origin.json")):
        raise UserError(f"{annotations}: masks written by infer_vos.py (by name or record); {exchanged}")
    given = absolute(results)
    if given.parent.name == "Annotations" or given.name == "Annotations" and (given.parent / "JPEGImages").is_dir():
        raise UserError(f"{results}: holds the annotations of a data set, not results; {exchanged}")


def check_layout(folder):
    """Raise UserError, with the folder that was meant perhaps, unless it holds <sequence>/<frame>.png."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder of masks")
    if holds_masks(folder):
        return
    if masks_in(folder):
        what, meant = "holds the masks of one sequence", [folder.parent]
    else:
        pictures = any(folder.glob("*.jp*g")) or any(folder.glob("*/*.jp*g"))
        what = "holds frames (JPEG), not masks" if pictures else "holds no sequence of masks"
        meant = list(islice(fitting_inside(folder, SEARCHED), 5))
        beside = str(absolute(folder)).replace("JPEGImages", "Annotations")
        beside = Path(beside[:-4] + "_vos" if beside.endswith("_vis") else beside)
        meant += [beside] if holds_masks(beside) else []
    hint = f"; did you mean {' or '.join(map(str, meant))}?" if meant else ""
    raise UserError(f"{folder}: {what}; expected {folder}/<sequence>/<frame>.png{hint}")


def holds_masks(folder):
    return any(masks_in(folder / name) for name in names_in(folder))


def fitting_inside(folder, levels):
    """The folders at most so many levels below that hold masks of sequences."""
    for inside in (folder / name for name in names_in(folder)):
        if holds_masks(inside):
            yield inside
        elif levels > 1:
            yield from fitting_inside(inside, levels - 1)


def absolute(folder):
    return Path(os.path.abspath(folder))  # links stay: a data set is often one


def pairs(annotations: Path, results: Path, names=None) -> list[tuple[Path, Path]]:
    """(annotation, result), the two folders of every sequence to score.

    names: each must be annotated and have results; one named twice is scored once.  None = all that have both.
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
    return ", ".join(names[:10]) + f" and {len(names) - 10} more" * (len(names) > 10)


def unpaired(annotations: Path, results: Path) -> str:
    """A line for the sequences that only one of the folders holds; empty where there is none."""
    known, held = names_in(annotations), names_in(results)
    without = {
        "annotated, but without results": [name for name in known if name not in held],
        "without annotation": [name for name in held if name not in known],
    }
    return "\n".join(f"left out, {what}: {len(n)} sequences: {listed(n)}" for what, n in without.items() if n)


def check_numbering(annotation: Path) -> None:
    """Raise UserError naming the first number that a sequence's annotations leave out, counted in their usual step."""
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
    """The sequences of a text file: a name a line, or as DAVIS 2016 has it the path of a frame (first column)."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the list of sequences ({error})") from error
    names = [name_in(line.strip()) for line in lines if line.strip()]
    if not names:
        raise UserError(f"{path}: names no sequence; expected one name a line")
    return list(dict.fromkeys(names))


def name_in(line):
    if "/" not in line:
        return line
    path = Path(line.split()[0])
    return path.parent.name if path.suffix.lower() in (".jpg", ".jpeg", ".png") else path.name


def split_file(annotations: Path, split: str, year: str) -> Path:
    """ImageSets/<year's folder>/<split>.txt beside the annotations."""
    roots = absolute(annotations).parents[:2]
    places = [root / "ImageSets" / folder / f"{split}.txt" for root in roots[::-1] for folder in SPLITS[year]]
    for place in places:
        if place.is_file():
            return place
    raise UserError(f"{places[0]}: missing; --split {split} reads it, or use --sequences")
