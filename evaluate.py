"""Measure J&F of masks, in percent.  Example:

    python evaluate.py --annotations data/davis2017/Annotations/480p --results results/davis/.../res4_vos \\
        --split val --out results/davis/...
"""

import argparse
import os
from pathlib import Path

from core.errors import UserError, reported
from core.evaluation import davis, folders, page, report


def arguments():
    parser = argparse.ArgumentParser(description="J&F of masks as DAVIS 2017 (semi-supervised) measures it.")
    add = parser.add_argument
    add("--annotations", required=True, type=Path, metavar="DIR", help="DIR/<sequence>/<frame>.png, every frame")
    add("--results", required=True, type=Path, metavar="DIR", help="DIR/<sequence>/<frame>.png, the masks to score")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--sequences", metavar="A,B|FILE", help="score these; FILE: a text file, one name a line "
                       "(default: all that are in both folders)")  # fmt: skip
    which.add_argument("--split", metavar="NAME", help="score those of the data set's ImageSets/.../NAME.txt, as val")
    add("--year", choices=tuple(folders.SPLITS), default="2017", help="2016: all ids are one object")
    add("--out", metavar="DIR", help="write the CSV files, scores.json and report.html here")
    add("--workers", type=int, metavar="N", help="processes (default: one per core, fewer for few frames)")
    return parser.parse_args()


def chosen(args):
    """The names of the sequences to score, None = all that are in both folders."""
    if args.split is not None:
        return folders.read_names(folders.split_file(args.annotations, args.split, args.year))
    if args.sequences is None:
        return None
    if os.path.isfile(args.sequences) or args.sequences.endswith(".txt"):
        return folders.read_names(args.sequences)
    names = [name.strip() for name in args.sequences.split(",") if name.strip()]
    if not names:
        raise UserError(
            f"--sequences {args.sequences!r}: names no sequence; expected A,B or a text file, one name a line"
        )
    return names


@reported
def main():
    args = arguments()
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: must be 1 or more")
    folders.check(args.annotations, args.results)
    names = chosen(args)
    pairs = folders.pairs(args.annotations, args.results, names)
    for annotation, _ in pairs:
        folders.check_numbering(annotation)
    left_out = folders.unpaired(args.annotations, args.results) if names is None else []
    print(f"annotations: {args.annotations}", f"results:     {args.results}", *left_out, sep="\n", flush=True)
    single = args.year == "2016"
    scores = davis.evaluate_folders(pairs, args.workers, single)
    print(f"scored:      {report.amount(scores)}\n\n{report.table(scores)}")
    if args.out:
        report.write(scores, args.out)
        photos = {result.name: folders.photos(annotation) for annotation, result in pairs}
        page.write(Path(args.out) / page.NAME, scores, pairs, photos, single)
        print(f"\nwritten, as fractions: {args.out}/{{{report.GLOBAL_CSV},{report.SEQUENCE_CSV},{report.SCORES_JSON}}}")
        print(f"to look at:            {args.out}/{page.NAME}")


if __name__ == "__main__":
    main()
