"""Masks -> J&F.  Example:

    python evaluate.py --annotations data/davis2017/Annotations/480p --results results/davis/.../res4_vos \\
        --sequences data/davis2017/ImageSets/2017/val.txt --out results/davis/...
"""

import argparse
from pathlib import Path

from core.errors import UserError, reported
from core.evaluation import davis, report


def arguments():
    parser = argparse.ArgumentParser(description="J&F of masks as DAVIS 2017 (semi-supervised) measures it.")
    add = parser.add_argument
    add("--annotations", required=True, metavar="DIR", help="DIR/<sequence>/<frame>.png, every frame")
    add("--results", required=True, metavar="DIR", help="DIR/<sequence>/<frame>.png, the masks to score")
    add("--sequences", metavar="FILE", help="text file, one name a line (default: all of --annotations)")
    add("--out", metavar="DIR", help="write both CSV files and scores.json here")
    add("--workers", type=int, metavar="N", help="processes (default: one a core, fewer for little to score)")
    return parser.parse_args()


def read_names(path):
    """The words of a text file, one a line."""
    try:
        names = Path(path).read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the list of sequences ({error})") from error
    if not names:
        raise UserError(f"{path}: names no sequence; expected one name a line")
    return names


@reported
def main():
    args = arguments()
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: must be 1 or more")
    names = read_names(args.sequences) if args.sequences else None
    scores = davis.evaluate(args.annotations, args.results, names, args.workers)
    print(report.table(scores))
    if args.out:
        report.write(scores, args.out)
        print(f"\nwritten: {args.out}/{{{report.GLOBAL_CSV},{report.SEQUENCE_CSV},{report.SCORES_JSON}}}")


if __name__ == "__main__":
    main()
