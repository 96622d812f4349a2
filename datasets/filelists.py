"""Write the lists of a data set on this disk, for training (data.list) and for inference (--list).

    python -m datasets.filelists NAME [--root DIR] [--out DIR]

Prints how many videos there are, and how many there should be.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from core.atomic import replacing
from core.errors import UserError, reported
from datasets import vos_sequences
from datasets.listing import cached, check_found
from datasets.readers import frames
from datasets.vos_sequences import VosSequence

#: the lines of a list, and how many videos they name
Found = tuple[list[str], int]


class Part(NamedTuple):
    """One list of a data set.

    name: the second part of the list's name, after the data set's.  found: a function that makes the list for a folder.
    folder: where the paths in the list start, relative to the data set's folder.  videos: how many there should be;
    about: this number is not exact.
    """

    name: str
    found: Callable[[Path], Found]
    folder: str
    videos: int
    about: bool = False

    @property
    def total(self) -> str:
        return f"{'about ' if self.about else ''}{self.videos:,} videos"

    def told(self, videos: int) -> str:
        """In words, how many videos there are and how many there should be."""
        missing = 0 if self.about else self.videos - videos
        verdict = f", {missing:,} are missing" if missing > 0 else f", {-missing:,} too many" if missing < 0 else ""
        return f"{videos:,} of {self.total}{verdict}"


def frame_folders(root: Path) -> Found:
    """A folder of frames a line."""
    names = frames.Reader(root).names
    return [quoted(name) for name in names], len(names)


def video_files(root: Path) -> Found:
    """A video file a line."""
    from datasets.readers import videos  # needs a package that folders of frames do without

    with cached(root, "videos") as known:
        names = videos.scan(root, known)
    check_found(names, root, "video files", videos.SUFFIXES, "--root")
    return [quoted(name) for name in names], len(names)


def davis(root: Path, split: str) -> Found:
    """`flag image mask` a line, with every mask, so that infer_vos.py measures J&F, and no sequence without frames."""
    path = root / "ImageSets" / "2017" / f"{split}.txt"
    names = vos_sequences.text_of(path).split() if path.is_file() else []
    here = [name for name in names if (root / "JPEGImages" / "480p" / name).is_dir()]
    return inference(root, vos_sequences.davis(root, split, here or None, births=True))


def ytvos(root: Path) -> Found:
    return inference(root, vos_sequences.ytvos(root))


def inference(root: Path, sequences: list[VosSequence]) -> Found:
    """`flag image mask` a line, `-` where no mask is given."""
    lines = []
    relative = lambda path: quoted(os.path.relpath(path, root)) if path else "-"
    for sequence in sequences:
        rows = zip(sequence.written, sequence.images, sequence.masks)
        lines += [f"{int(written)} {relative(image)} {relative(mask)}" for written, image, mask in rows]
    return lines, len(sequences)


def quoted(name: str) -> str:
    """A name for a list: in quotes where it holds white space, a comma, a quote or a #.

    Raises UserError for a name that no list can hold.
    """
    if ("'" in name and '"' in name) or name.splitlines() != [name] or name.encode(errors="replace").decode() != name:
        raise UserError(f"the name {name!r} cannot stand in a list (both quotes, a line break, or no UTF-8): rename it")
    if not any(sign.isspace() or sign in "\"',#" for sign in name):
        return name
    return f"'{name}'" if '"' in name else f'"{name}"'


#: {name: (the folder where data/README.md puts the data set, its lists)}
SETS = {
    "ytvos": ("data/ytvos", (Part("train", frame_folders, "train/JPEGImages", 3471), Part("valid", ytvos, ".", 474))),
    "oxuva": ("data/OxUvA/images/dev", (Part("train", frame_folders, ".", 200, about=True),)),
    "track": ("data/tracking/train/jpegs", (Part("train", frame_folders, ".", 30132),)),
    "kinetics": ("data/kinetics400/video_jpeg/train", (Part("train", frame_folders, ".", 240_000, about=True),)),
    "charades": ("data/Charades_v1_480", (Part("train", video_files, ".", 9848),)),
    "ino_kinetics": ("data/Kinetics_400", (Part("train", video_files, ".", 240_000, about=True),)),
    "davis": (
        "data/davis2017",
        (Part("val", partial(davis, split="val"), ".", 30), Part("train", partial(davis, split="train"), ".", 60)),
    ),
    "sample": ("data/sample", (Part("val", partial(davis, split="val"), ".", 8),)),
}


def write(name: str, part: Part, root: Path, out: Path) -> str:
    """Write one list of the data set `name` at root.  Returns the text to print about it.  Raises UserError."""
    folder = root / part.folder
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; data/README.md says where the data come from")
    lines, videos = part.found(folder)
    path = out / f"{name}_{part.name}.txt"
    with replacing(path) as new:
        new.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    use = f"python infer_vos.py --list {path} --data {folder} --out results/{path.stem}"
    if part.found in (frame_folders, video_files):
        use = f"bash launch/train.sh {name} data.list={path} data.root={folder}"
    return f"{path}: {part.told(videos)}\n  {use}"


@reported
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", metavar="NAME", choices=SETS, help=", ".join(SETS))
    parser.add_argument("--root", metavar="DIR", help="where the data set lies (default: as data/README.md says)")
    parser.add_argument("--out", default="data/filelists", metavar="DIR", help="default: %(default)s")
    args = parser.parse_args(argv)
    home, parts = SETS[args.name]
    errors = []
    for part in parts:
        try:
            print(write(args.name, part, Path(args.root or home), Path(args.out)))
        except UserError as error:
            errors.append(f"no {args.name}_{part.name}.txt ({part.total}): {error}")
    if len(errors) == len(parts):
        raise UserError("\n".join(errors))
    print(*errors, sep="\n", end="\n" if errors else "")


if __name__ == "__main__":
    main()
