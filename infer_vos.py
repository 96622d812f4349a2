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

import models
from core import devices, distributed, protocols, strict
from core.atomic import replacing
from core.errors import UserError, reported
from core.evaluation import davis, report
from datasets import vos_sequences
from labelprop import Tracker, runner


def positive(text):
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0")
    return int(text)


def parse():
    parser = argparse.ArgumentParser(description="Propagate given masks through videos.")
    add = parser.add_argument
    add(
        "--checkpoint",
        default=models.DEFAULT,
        metavar="PATH|timm:NAME|untrained",
        help="ours, a snapshot the authors published, or a network of timm (timm:NAME@FILE: its weights in a file); "
        "default: the weights that come with this project",
    )
    add("--config", metavar="FILE", help="with untrained: the network to draw (default: DUL's ResNet-18)")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--dataset", choices=("davis", "ytvos", "sample"))
    which.add_argument("--list", metavar="FILE", help="`flag image [mask]` a line; flag 0: not written")
    add("--data", required=True, metavar="ROOT", help="folder of the data set, or what the list's paths start from")
    add("--out", required=True, metavar="DIR", help="masks in DIR/<key>_vos, overlays in DIR/<key>_vis")
    add("--key", metavar="LAYER", help="feature layer (default: the network's first)")
    add("--protocol", choices=protocols.names(), help="how masks are propagated (default: the network's own)")
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


def origin_of(tracker, protocol, args):
    """All that decides what the masks are, as plain values."""
    weights = hashlib.sha256()
    for name, value in sorted(tracker.extractor.state_dict().items()):
        weights.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return {
        "weights": weights.hexdigest(),
        "network": type(tracker.extractor).__name__,
        "protocol": protocol,
        "propagation": dataclasses.asdict(tracker.propagation),
        "precision": tracker.precision,
        "dataset": args.dataset or str(Path(args.list).resolve()),
        "data": str(Path(args.data).resolve()),
    }


def warn(sequences: list[vos_sequences.VosSequence]) -> None:
    """Warn of what looks wrong about the given masks, each kind once.  UserError where one cannot be followed."""
    found: dict[str, list[Path]] = {}
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


def tracker_of(args, device):
    """The tracker that the arguments name, and the name of its protocol."""
    own = [text for text in args.overrides if not text.startswith("propagation.")]
    changed = [text for text in args.overrides if text.startswith("propagation.")]
    extractor = models.load(args.checkpoint, args.config, own)
    protocol = args.protocol or protocols.on(args.dataset, extractor.protocol)
    values = {"propagation": {} if args.protocol else extractor.changes}
    propagation = protocols.named(protocol, strict.override(values, changed, ["propagation"])["propagation"])
    tracker = Tracker(
        extractor, args.key, propagation, device,
        precision=args.precision, batch=args.batch, compiled=args.compile, max_side=args.max_side,
    )  # fmt: skip
    return tracker, protocol


def prepare(args, device, first):
    """The sequences and the tracker that the arguments name.

    first: whether this process is the one that clears masks of another origin, and says what is going to happen.
    """
    sequences = sequences_of(args)
    if first:
        warn(sequences)
    tracker, protocol = tracker_of(args, device)
    if first:
        claim(Path(args.out), tracker.layer, origin_of(tracker, protocol, args), args.overwrite, args.sequences)
        frames = sum(sequence.length for sequence in sequences)
        what = f"{tracker.layer} of {args.checkpoint} by protocol {protocol} on {device} in {tracker.precision}"
        print(f"{what}: {len(sequences)} sequences, {frames} frames", flush=True)
    return sequences, tracker


def follow(args, out):
    """Masks of every sequence.  -> (sequences, folder of masks, layer)."""
    device = distributed.start(devices.pick(args.device))
    rank = distributed.rank()
    if rank > 0:  # the first process goes ahead, so that a mistake is told once
        distributed.barrier()
    sequences, tracker = prepare(args, device, first=rank == 0)
    if rank == 0:
        distributed.barrier()
    masks = out / f"{tracker.layer}_vos"
    try:
        runner.run(
            sequences, tracker, out, overwrite=args.overwrite, visuals=not args.no_vis,
            rank=rank, world=distributed.world_size(),
        )  # fmt: skip
        distributed.barrier()
    except BaseException:
        if rank == 0 and masks.is_dir():
            print(f"finished sequences stay in {masks}; the same command goes on with the others", file=sys.stderr)
        raise
    return sequences, masks, tracker.layer


@reported
def main():
    args = parse()
    out = Path(args.out)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    with nothing_empty(out):
        sequences, masks, layer = follow(args, out)
    first = distributed.rank() == 0
    distributed.stop()
    if first:
        print(f"masks: {masks}")
        score(sequences, masks, out / f"{layer}_scores")


if __name__ == "__main__":
    # As on Ctrl-C, nothing half-written stays: torchrun ends its processes so.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
