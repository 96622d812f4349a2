"""A checkpoint and videos with first masks -> masks of every frame, and J&F where annotations exist.

    python infer_vos.py --checkpoint runs/ytvos/default/best.pth --dataset davis --data data/davis2017 \\
        --out results/davis/ytvos_default --key res4
"""

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import sys
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from core import config as configuration
from core import devices, distributed
from core.atomic import replacing
from core.errors import UserError, reported
from core.evaluation import davis, report
from datasets import vos_sequences
from labelprop import runner
from models import snapshots


def positive(text):
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0")
    return int(text)


def parse():
    parser = argparse.ArgumentParser(description="Propagate given masks through videos.")
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="PATH|timm:NAME|untrained",
        help="ours, a snapshot the authors published, or a network of timm (timm:NAME@FILE: its weights in a file)")
    add("--config", metavar="FILE", help="instead of the configuration in the checkpoint; needed for untrained")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--dataset", choices=("davis", "ytvos", "sample"))
    which.add_argument("--list", metavar="FILE", help="`flag image [mask]` a line; flag 0: not written")
    add("--data", required=True, metavar="ROOT", help="folder of the data set, or what the list's paths start from")
    add("--out", required=True, metavar="DIR", help="masks in DIR/<key>_vos, overlays in DIR/<key>_vis")
    add("--key", metavar="LAYER", help="feature layer (default: the network's first)")
    add("--protocol", choices=configuration.protocols(), help="how masks are propagated (default: the network's own)")
    add("--sequences", metavar="A,B", help="these only")
    add("--overwrite", action="store_true", help="do finished sequences again")
    add("--no-vis", action="store_true", help="no overlays")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--precision", default="auto", choices=("auto", *devices.DTYPES), help="auto: fp16 on a GPU, fp32 on a CPU")
    add("--batch", type=positive, metavar="FRAMES", help="through the network at a time (default: GPU 4, CPU 1)")
    add("--compile", action="store_true", help="torch.compile the network: pays for many frames of few sizes")
    add("--max-side", type=int, metavar="PX", help="work on larger frames at this size; masks keep the video's own")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    return parser.parse_args()


def sequences_of(args):
    """The videos that the arguments name."""
    names = None
    if args.sequences is not None:
        names = [name.strip() for name in args.sequences.split(",") if name.strip()]
        if not names:
            raise UserError(f"--sequences {args.sequences!r}: names no sequence")
    if args.list:
        return vos_sequences.listed(args.list, args.data, names)
    build = {"davis": vos_sequences.davis, "ytvos": vos_sequences.ytvos, "sample": vos_sequences.sample}
    return build[args.dataset](args.data, names=names)


def claim(out, key, origin, overwrite, some):
    """Keep masks of different origin apart: what made those in out/<key>_vos stands in out/<key>_origin.json.

    overwrite removes those of another origin, but not where only some sequences are about to be done.
    """
    path, folders = out / f"{key}_origin.json", [out / f"{key}_{kind}" for kind in ("vos", "vis", "given")]
    if folders[0].exists():
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError):
            before = {}
        other = [name for name in origin if before.get(name) != origin[name]]
        if other and not overwrite:
            raise UserError(
                f"{folders[0]}: holds masks of another origin (differs: {', '.join(other)}; see {path}); "
                "name another --out, or replace them with --overwrite"
            )
        if other and some:
            raise UserError(
                f"{folders[0]}: holds masks of another origin, of other sequences perhaps; --overwrite with "
                "--sequences would remove them all: name another --out, or leave out --sequences"
            )
        if other:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
    with replacing(path) as part:
        part.write_text(json.dumps(origin, indent=1) + "\n")


def origin_of(method, config, propagation, precision, args):
    """All that decides what the masks are, as plain values."""
    weights = hashlib.sha256()
    for name, value in sorted(method.state_dict().items()):
        weights.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return {
        "weights": weights.hexdigest(),
        "method": configuration.to_dict(config)["method"],
        "protocol": config.protocol,
        "propagation": dataclasses.asdict(propagation),
        "precision": precision,
        "dataset": args.dataset or str(Path(args.list).resolve()),
        "data": str(Path(args.data).resolve()),
    }


def warn(sequences: list[vos_sequences.VosSequence]) -> None:
    """Warn of what looks wrong about the given masks, each kind once.  UserError where one cannot be followed."""
    found = {}
    for sequence in sequences:
        for path, text in sequence.doubts():
            found.setdefault(text, []).append(path)
    for text, paths in found.items():
        more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
        warnings.warn(f"{paths[0]}{more}: {text}", stacklevel=2)


@contextmanager
def nothing_empty(out: Path):
    """On an error, remove origin files without masks in `out` and the empty folders that were made for it."""
    made = [folder for folder in (out, *out.parents) if not os.path.exists(folder)]
    try:
        yield
    except BaseException:
        for origin in out.glob("*_origin.json"):
            if not origin.with_name(origin.name.replace("_origin.json", "_vos")).exists():
                origin.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def score(sequences, masks, out):
    """Print and write J&F of the sequences that are annotated in full."""
    scored = [sequence for sequence in sequences if sequence.annotations and sequence.length >= 3]
    if not scored:
        print(f"no J&F: none of the {len(sequences)} sequences has 3 frames or more that are all annotated")
        return
    scores = davis.evaluate_folders([(s.annotations, masks / s.name) for s in scored])
    print(f"\n{report.table(scores)}")
    if len(scored) < len(sequences):
        print(f"left out: {len(sequences) - len(scored)} sequences that are short or not annotated in full")
    report.write(scores, out)
    print(f"tables: {out}")


def prepare(args, first):
    """What the arguments name: sequences and all that runner.run asks for, as keywords.

    first: whether this process is the one that clears masks of another origin, and says what is going to happen.
    """
    sequences = sequences_of(args)
    if first:
        warn(sequences)
    device = distributed.own(devices.pick(args.device))
    precision = devices.inference_precision(device, args.precision)
    overrides = [f"protocol={args.protocol}"] * bool(args.protocol) + args.overrides
    method, config = snapshots.restore(args.checkpoint, args.config, overrides)
    key, out = args.key or method.keys[0], Path(args.out)
    features = method.to(device, memory_format=torch.channels_last).extractor(key, precision, args.compile)
    propagation = config.propagation_on(args.dataset, method.cell_px(key))
    if args.max_side is not None:
        propagation = dataclasses.replace(propagation, max_side=args.max_side)
    if first:
        claim(out, key, origin_of(method, config, propagation, precision, args), args.overwrite, args.sequences)
        frames = sum(sequence.length for sequence in sequences)
        what = f"{config.method.name} {key} of {args.checkpoint} on {device} in {precision}"
        print(f"{what}: {len(sequences)} sequences, {frames} frames", flush=True)
    return {
        "sequences": sequences, "features": features, "cfg": propagation, "out": out, "key": key,
        "overwrite": args.overwrite, "visuals": not args.no_vis, "device": device, "batch": args.batch,
    }  # fmt: skip


@reported
def main():
    args = parse()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    with nothing_empty(Path(args.out)), distributed.team() as team:
        if team.rank > 0:  # the first process goes ahead, so that a mistake is told once
            team.meet("prepared")
        work = prepare(args, first=team.rank == 0)
        if team.rank == 0:
            team.meet("prepared")
        masks = work["out"] / f"{work['key']}_vos"
        try:
            runner.run(**work, team=team)
            team.meet("finished")
        except BaseException:
            if team.rank == 0 and masks.is_dir():
                print(f"finished sequences stay in {masks}; the same command goes on with the others", file=sys.stderr)
            raise
    if team.rank == 0:
        print(f"masks: {masks}")
        score(work["sequences"], masks, work["out"] / f"{work['key']}_scores")


if __name__ == "__main__":
    # As on Ctrl-C, nothing half-written stays: torchrun ends its processes so.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
