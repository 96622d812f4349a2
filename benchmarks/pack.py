"""Make a pack of real video that is small enough to take to another machine.

    python -m benchmarks.pack --clips DIR --davis DIR --out data/pack [--frames 11] [--sequences a,b,c]

OUT/clips: the first frames of every clip (a folder of frames), as JPEG with a short side of 192 px, and the files
beside the clips.  OUT/davis: three sequences of a data set in DAVIS layout, unchanged.  To train on the pack:
    DATA=data/pack/clips bash launch/train.sh ytvos validation.root=data/pack/davis 'validation.sequences=[]'
"""

import argparse
import shutil
from pathlib import Path

import cv2
from PIL import Image

from core.errors import UserError, reported
from datasets import vos_sequences
from labelprop.runner import whole_folder

SHORT_SIDE, SEQUENCES, LIMIT_MIB = 192, 3, 60


def pack_clips(source, count, out):
    """Write the first `count` frames of every clip at the small size."""
    out.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file():
            shutil.copy(path, out)
            continue
        (out / path.name).mkdir()
        for frame in vos_sequences.pictures(path)[:count]:
            picture = vos_sequences.read_frame(frame)
            scale = min(1, SHORT_SIDE / min(picture.shape[:2]))
            small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            Image.fromarray(small).save(out / path.name / f"{frame.stem}.jpg", quality=80, optimize=True)


def pack_sequences(source, names, out):
    """Copy sequences of a data set in DAVIS layout."""
    sequences = vos_sequences.davis(source, names=names)[:SEQUENCES]
    for sequence in sequences:
        if sequence.annotations is None:
            raise UserError(f"{source}: {sequence.name} has frames without a mask; name others by --sequences")
        for kind in ("JPEGImages", "Annotations"):
            shutil.copytree(source / kind / "480p" / sequence.name, out / kind / "480p" / sequence.name)
    (out / "ImageSets/2017").mkdir(parents=True)
    (out / "ImageSets/2017/val.txt").write_text("".join(f"{sequence.name}\n" for sequence in sequences))


@reported
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--clips", "--davis", "--out"):
        parser.add_argument(name, required=True, type=Path, metavar="DIR")
    parser.add_argument("--sequences", help=f"names, separated by commas; default: the first {SEQUENCES}")
    parser.add_argument("--frames", type=int, default=11, help="of each clip (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.out.exists():
        raise UserError(f"--out {args.out}: is there already; delete it or choose another")
    if args.frames < 1:
        raise UserError(f"--frames {args.frames}: must be 1 or more")
    if not args.clips.is_dir():
        raise UserError(f"--clips {args.clips}: there is no such folder")
    with whole_folder(args.out) as part:
        pack_sequences(args.davis, args.sequences.split(",") if args.sequences else None, part / "davis")
        pack_clips(args.clips, args.frames, part / "clips")
        mib = sum(path.stat().st_size for path in part.rglob("*") if path.is_file()) / 2**20
        if mib > LIMIT_MIB:
            raise UserError(f"the pack has {mib:.0f} MiB, more than {LIMIT_MIB}; take fewer --frames")
    print(f"{args.out}: {mib:.1f} MiB")


if __name__ == "__main__":
    main()
