"""Write a network into a file to give away: as weights, or as a program of torch.export that needs no other file.

python -m models runs/ytvos/default/best.pth data/weights/NAME.safetensors
python -m models data/weights/dul_resnet18.safetensors NAME.pt2 --key res4
"""

import argparse

from core.errors import UserError, reported
from models import give_away, load
from models.export import export, write


def size_of(text):
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r}: must be WIDTHxHEIGHT, as 848x480")
    return int(sides[1]), int(sides[0])


@reported
def main() -> None:
    parser = argparse.ArgumentParser(description="A network as .safetensors, in float16, or as a program, .pt2.")
    parser.add_argument("checkpoint", help="best.pth or last.pth of a run; for a program, any network of infer_vos.py")
    parser.add_argument("file", help="FILE.safetensors (its SHA-256 goes into SHA256SUMS beside it) or FILE.pt2")
    parser.add_argument("--key", metavar="LAYER", help="of a program (default: the network's first)")
    parser.add_argument("--size", type=size_of, help="of a vision transformer's frames in a program (default: 848x480)")
    args = parser.parse_args()
    if args.file.endswith(".pt2"):
        write(export(load(args.checkpoint), args.key, args.size or (480, 848)), args.file)
    elif args.file.endswith(".safetensors"):
        if args.key or args.size:
            raise UserError(f"{args.file}: weights serve every layer and size; leave --key and --size out")
        give_away(args.checkpoint, args.file)
    else:
        raise UserError(f"{args.file}: must end in .safetensors (weights) or .pt2 (a program of torch.export)")
    print(f"written: {args.file}")


if __name__ == "__main__":
    main()
