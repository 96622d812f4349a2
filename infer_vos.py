"""Masks of every frame from a network and videos with first masks, and J&F where annotations exist.

    python infer_vos.py --checkpoint runs/ytvos/default/best.pth --dataset davis --data data/davis2017 \\
        --out results/davis/ytvos_default --key res4
    python infer_vos.py --video clip.mp4 --mask first.png --out out
"""

import argparse
import dataclasses
import hashlib
import json
import os
import signal
import sys
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

import models
from core import devices, distributed, protocols, strict, submission
from core.atomic import replacing
from core.errors import UserError, reported
from core.evaluation import davis, page, report
from datasets import own_video, vos_sequences
from labelprop import Tracker, follow, runner

#: --max-side for --video, where neither the user nor the protocol says one
OWN_SIDE_PX = 960
#: options for data sets only, and options for --video only
OF_SETS, OF_VIDEO = ("data", "sequences", "no_vis"), ("mask", "box", "start", "end", "every")


def positive(text):
    """The whole number above 0 in an argument."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0")
    return int(text)


def number(text):
    """The whole number, 0 or more, in an argument."""
    return int(text) if text == "0" else positive(text)


def parse():
    parser = argparse.ArgumentParser(description="Propagate given masks through videos.")
    add = parser.add_argument
    sources = "ours, a snapshot of the authors, or timm:NAME[@FILE]; default: the weights in the box"
    add("--checkpoint", default=models.DEFAULT, metavar="PATH|timm:NAME|untrained", help=sources)
    add("--config", metavar="FILE", help="with untrained: the network to draw (default: DUL's ResNet-18)")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--dataset", choices=("davis", "ytvos", "sample"))
    which.add_argument("--list", metavar="FILE", help="`flag image [mask]` a line; flag 0: not written")
    which.add_argument("--video", metavar="FILE|DIR", help="your own: a video file, or a folder of frames")
    add("--data", metavar="ROOT", help="folder of the data set, or what the list's paths start from")
    places = (
        "masks in DIR/<layer>_vos, overlays in DIR/<layer>_vis; ytvos: a zip; a video: masks, overlay.mp4, objects.json"
    )
    add("--out", required=True, metavar="DIR", help=places)
    own = parser.add_argument_group("with --video")
    mask = "what to follow, a picture (PNG, ...); of the first frame, or of frame number FRAME; may be given again"
    own.add_argument("--mask", action="append", metavar="[FRAME:]FILE", help=mask)
    box = "an object to follow, cut out of a box by GrabCut (see DIR/given); may be given again"
    own.add_argument("--box", action="append", metavar="[FRAME@]ID:x,y,w,h", help=box)
    own.add_argument("--start", type=number, metavar="FRAME", help="the first frame that is followed (default: 0)")
    own.add_argument("--end", type=positive, metavar="FRAME", help="the frame before which to end")
    own.add_argument("--every", type=positive, metavar="N", help="follow only every N-th frame")
    add("--key", metavar="LAYER", help="feature layer (default: the network's first)")
    default = "the network's own; with --video best instead of DUL"
    add("--protocol", choices=protocols.names(), help=f"how masks are propagated (default: {default})")
    add("--sequences", metavar="A,B", help="segment only these")
    add("--overwrite", action="store_true", help="segment finished sequences again")
    add("--no-vis", action="store_true", help="write no overlays")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--precision", default="fp32", choices=devices.DTYPES, help="of the network (default: fp32)")
    add("--batch", type=positive, metavar="FRAMES", help="frames in the network at a time (default: GPU 4, CPU 1)")
    add("--compile", action="store_true", help="torch.compile the network: worth it for many frames of few sizes")
    add("--max-side", type=int, metavar="PX", help="work on larger frames at this size; masks keep the video's own")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    args = parser.parse_args()
    given = {name for name in (*OF_SETS, *OF_VIDEO) if getattr(args, name)}
    for name in sorted(given & {*(OF_SETS if args.video else OF_VIDEO)}):
        parser.error(f"--{name.replace('_', '-')} {'does not serve --video' if args.video else 'serves --video alone'}")
    if not (args.video or args.data):
        parser.error("--data ROOT is needed: the folder of the data set, or what the list's paths start from")
    return args


def sequences_of(args):
    """The videos that the arguments name."""
    names = None if args.sequences is None else [name.strip() for name in args.sequences.split(",") if name.strip()]
    if names == []:
        raise UserError(f"--sequences {args.sequences!r}: names no sequence; expected A,B")
    if args.list:
        return vos_sequences.listed(args.list, args.data, names)
    return getattr(vos_sequences, args.dataset)(args.data, names=names)


def claim(out, layer, origin, overwrite, some):
    """Record in out/<layer>_origin.json the origin of the masks in out/<layer>_vos, so that no two origins mix.

    overwrite: remove masks of another origin.  some: only some of the sequences will be segmented.  Raises UserError
    where masks of another origin are there and stay.
    """
    path, folders = out / f"{layer}_origin.json", [out / f"{layer}_{kind}" for kind in ("vos", "vis", "given")]
    if folders[0].exists():
        _, other = runner.recorded(path, origin)
        if other and (some or not overwrite):
            cure = "--overwrite for all sequences: leave out --sequences" if overwrite else "--overwrite"
            raise UserError(
                f"{folders[0]}: holds masks of another origin (differs: {', '.join(other)}; see {path}); "
                f"name another --out, or replace them with {cure}"
            )
        if other:
            runner.remove(*folders)
    with replacing(path) as part:
        part.write_text(json.dumps(origin, indent=1) + "\n")


def origin_of(tracker, protocol, **data):
    """Everything that decides the masks, as plain values.  data: further entries, about the videos."""
    weights = hashlib.sha256()
    for name, value in sorted(tracker.extractor.state_dict().items()):
        weights.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return {
        "weights": weights.hexdigest(),
        "network": type(tracker.extractor).__name__,
        "protocol": protocol,
        "propagation": dataclasses.asdict(tracker.propagation),
        "precision": tracker.precision,
        **data,
    }


def warn(sequences: list[vos_sequences.VosSequence]) -> None:
    """Print the remark about the data set, and one warning for each way in which given masks look wrong.

    Raises UserError where a sequence has no object to follow.
    """
    if sequences[0].remark:
        warnings.warn(sequences[0].remark, stacklevel=2)
    found: dict[str, list[Path]] = {}
    for sequence in sequences:
        for path, text in sequence.doubts():
            found.setdefault(text, []).append(path)
    for text, paths in found.items():
        more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
        warnings.warn(f"{paths[0]}{more}: {text}", stacklevel=2)


@contextmanager
def nothing_empty(out: Path):
    """On an error, remove origin files without masks from `out`, and empty folders that were made for `out`."""
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
    """Print and write J&F of the sequences with an annotation of every frame.  masks, out: folders."""
    reasons = {}
    for sequence in sequences:
        reasons.setdefault(sequence.unscored(), []).append(sequence.name)
    if scored := [s for s in sequences if s.name in reasons.get("", ())]:
        pairs = [(s.annotations, masks / s.name) for s in scored]
        scores = davis.evaluate_folders(pairs)
        print(f"\n{report.table(scores)}")
        report.write(scores, out)
        page.write(out / page.NAME, scores, pairs, {s.name: s.images for s in scored})
        print(f"tables: {out}\nto look at: {out / page.NAME}")
    for reason, names in reasons.items():
        if reason:
            more = ", ..." if len(names) > 3 else ""
            print(f"no J&F of {', '.join(names[:3])}{more} ({len(names)} of {len(sequences)} sequences): {reason}")


def submit(sequences, masks, path, some):
    """Pack the masks of YouTube-VOS for its server.  some: only some sequences were segmented, so pack nothing."""
    if some:
        print(f"no {path.name}: --sequences names a part of the set; leave it out for a zip of all")
        return
    count = submission.write(path, masks, sequences)
    print(f"ready to be submitted: {path} ({count} masks; videos: {len(sequences)})")


def tracker_of(args: argparse.Namespace, device: torch.device) -> tuple[Tracker, str]:
    """The tracker that the arguments describe, and the name of its protocol.  Raises UserError."""
    own = [text for text in args.overrides if not text.startswith("propagation.")]
    changed = [text for text in args.overrides if text.startswith("propagation.")]
    extractor = models.load(args.checkpoint, args.config, own)
    protocol = args.protocol or protocols.on("video" if args.video else args.dataset, extractor.protocol)
    values = {"propagation": {} if args.protocol else extractor.changes}
    propagation = protocols.named(protocol, strict.override(values, changed, ["propagation"])["propagation"])
    max_side = args.max_side
    if max_side is None and args.video and not (propagation.short_side or propagation.max_side):
        max_side = OWN_SIDE_PX
    try:
        tracker = Tracker(
            extractor, args.key, propagation, device,
            precision=args.precision, batch=args.batch, compiled=args.compile, max_side=max_side,
        )  # fmt: skip
    except UserError as error:
        option = {"layer": "--key: ", "propagation.max_side": "--max-side: "}.get(str(error).split(" = ")[0], "")
        raise UserError(f"{option}{error}") from error
    return tracker, protocol


def prepare(args, device):
    """The sequences and the tracker that the arguments describe.

    The first process goes ahead, so that each error is printed once; only it removes masks of another origin.
    """
    first = distributed.rank() == 0
    if not first:
        distributed.barrier()
    sequences = sequences_of(args)
    if first:
        warn(sequences)
    tracker, protocol = tracker_of(args, device)
    if first:
        out, dataset = Path(args.out), args.dataset or str(Path(args.list).resolve())
        data, remark = str(Path(args.data).resolve()), sequences[0].remark
        origin = origin_of(tracker, protocol, dataset=dataset, data=data, remark=remark)
        claim(out, tracker.layer, origin, args.overwrite, args.sequences)
        if args.dataset == "ytvos":
            (out / submission.NAME).unlink(missing_ok=True)  # its masks may be about to change
        frames = sum(sequence.length for sequence in sequences)
        made = f"{tracker.layer} of {args.checkpoint} by protocol {protocol} on {device} in {tracker.precision}"
        print(f"{made}: {len(sequences)} sequences, {frames} frames", flush=True)
        distributed.barrier()
    return sequences, tracker


def follow_video(args, device):
    """Run with --video: write masks, overlay.mp4, preview.gif and objects.json into --out."""
    if distributed.world_size() > 1:
        raise UserError("--video: one process follows a video; start it without torchrun")
    chosen = {name: getattr(args, name) for name in ("start", "end", "every") if getattr(args, name)}
    task = own_video.task(args.video, args.mask or (), args.box or (), **chosen)
    tracker, protocol = tracker_of(args, device)
    origin = origin_of(tracker, protocol, layer=tracker.layer, **task.origin())
    follow.run(task, tracker, Path(args.out), origin, args.overwrite)


@reported
def main():
    args = parse()
    out = Path(args.out)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    memory = devices.enough_memory(
        "a frame needs more memory than the device has; try --batch 1, or a smaller --max-side"
    )
    with nothing_empty(out), distributed.peers(), memory:
        if args.video:
            return follow_video(args, distributed.start(devices.pick(args.device)))
        sequences, tracker = prepare(args, distributed.start(devices.pick(args.device)))
        rank, world, masks = distributed.rank(), distributed.world_size(), out / f"{tracker.layer}_vos"
        try:
            visuals = not args.no_vis
            runner.run(sequences, tracker, out, overwrite=args.overwrite, visuals=visuals, rank=rank, world=world)
            distributed.barrier()
        except BaseException:
            if rank == 0 and masks.is_dir():
                print(f"finished sequences stay in {masks}; the same command goes on with the others", file=sys.stderr)
            raise
    distributed.stop()
    if rank == 0:
        print(f"masks: {masks}")
        score(sequences, masks, out / f"{tracker.layer}_scores")
        if args.dataset == "ytvos":
            submit(sequences, masks, out / submission.NAME, args.sequences)


if __name__ == "__main__":
    # torchrun ends its processes by SIGTERM; as on Ctrl-C, nothing half-written stays.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
