"""Write the network of a run as weights to give away:

python -m models runs/ytvos/default/best.pth data/weights/NAME.safetensors
"""

import argparse

from core.errors import reported
from models import give_away


@reported
def main() -> None:
    parser = argparse.ArgumentParser(description="The network of a checkpoint as .safetensors, in float16.")
    parser.add_argument("checkpoint", help="best.pth or last.pth of a run")
    parser.add_argument("weights", help="FILE.safetensors; its SHA-256 goes into SHA256SUMS beside it")
    args = parser.parse_args()
    give_away(args.checkpoint, args.weights)
    print(f"written: {args.weights}")


main()
