"""How much faster is the propagation of one frame than the dense computation, and how far apart are they?

    python benchmarks/propagation.py [--davis DIR] [--threads 2] [--repeats 1] [--geometry dul ino]

Steady state at 480x854, in DUL's geometry (60x107 cells, D 512, 21 frames, disc 12, open reference, top 10)
and INO's (60x106, D 384, 11 frames, square 40, top 5).  The ways take turns:
    dense     the plain computation, every cell against every cell in chunks of queries: an affinity of all
              candidates by queries, the window added as 0 or -inf, top-k down the candidates
    windowed  the engine in float32, one Python thread a core
    int8      the engine where 8-bit products find the candidates; preparing the frame counts
Each run is a process of its own, so that its peak memory is its own.  It computes the frame twice: the first time
for the memory, the second, when all is as warm as within a video, for the time.  CPU seconds are those of all
threads: less moved by a busy machine.  Features: with --davis, frames of a sequence in DAVIS layout through an
untrained ResNet-18 of stride 8; otherwise made, smooth in space and time.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import torch
import torch.nn.functional as F
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.errors import UserError, reported  # noqa: E402
from core.schema import Propagation  # noqa: E402
from labelprop import backends, walk  # noqa: E402

GEOMETRIES = {  # name -> (h, w, D, frames besides the query, configuration)
    "dul": (60, 107, 512, 21, Propagation("disc", 12, False, 0.05, 10, 20, True)),
    "ino": (60, 106, 384, 11, Propagation("square", 40, True, 0.1, 5, 10, False)),
}
CHUNK = 64  # queries of the dense computation at a time: 35 MB of affinity in DUL's geometry


def dense(query_hwD, keys_NhwD, labels_NhwM, cfg):
    """The plain computation: the affinity [N*hw, chunk], window added, top-k down the columns.  Returns [hw,M]."""
    (h, w, D), N = query_hwD.shape, len(keys_NhwD)
    keys, labels = keys_NhwD.reshape(-1, D), labels_NhwM.reshape(N * h * w, -1)
    out = []
    for first in range(0, h * w, CHUNK):
        affinity = (keys @ query_hwD.reshape(-1, D)[first : first + CHUNK].T).view(N, h * w, -1)
        window = torch.zeros(affinity.shape[1:]).masked_fill_(outside_window(first, h, w, cfg).T, -torch.inf)
        affinity[0 if cfg.window_reference else 1 :] += window
        best, where = affinity.flatten(0, 1).topk(cfg.top_k, dim=0)
        weights = (best / cfg.temperature).softmax(0)
        out.append((labels[where] * weights[..., None]).sum(0))
    return torch.cat(out)


def outside_window(first, h, w, cfg):
    """Which keys lie outside the window of a chunk of queries: bool [chunk, hw]."""
    cells = torch.cartesian_prod(torch.arange(h), torch.arange(w))
    dy, dx = (cells[first : first + CHUNK, None] - cells[None]).abs().unbind(-1)
    return dy**2 + dx**2 >= cfg.radius**2 if cfg.window == "disc" else torch.maximum(dy, dx) > cfg.radius


def engine(way, keys_NhwD, cfg):
    """The engine as a video uses it, its context prepared: a function of query and labels, as dense without keys."""
    if way == "dense":
        return lambda query, labels: dense(query, keys_NhwD, labels, cfg)
    module = backends.choose(way, keys_NhwD)
    reference, *context = backends.prepared(list(keys_NhwD), module)

    def propagate(query_hwD, labels_NhwM):
        query, groups = module.prepare(query_hwD, reference), [walk.Group(reference, len(context))]
        labels = [labels.flatten(0, 1) for labels in labels_NhwM]
        return backends.propagate_groups(query, context, groups, [labels], cfg, module)[0]

    return propagate


WAYS = "dense", "windowed", "int8"


def made_features(count, h, w, D):
    """Smooth random features that drift a cell every few frames, with some noise: unit [count,h,w,D]."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, D, h // 4, (w + count) // 4, generator=rng)
    ground = F.interpolate(coarse, (h, w + count), mode="bilinear")[0].permute(1, 2, 0)
    frames = [ground[:, t // 3 : t // 3 + w] + 0.3 * torch.randn(h, w, D, generator=rng) for t in range(count)]
    return F.normalize(torch.stack(frames), dim=-1)


@torch.no_grad()
def real_features(count, h, w, D, davis):
    """Frames through an untrained ResNet-18 of stride 8, its 512 channels mixed down to D: unit [count,h,w,D]."""
    paths = sorted(Path(davis).glob("JPEGImages/480p/*/*.jpg"))
    sequence = [path for path in paths if path.parent == paths[0].parent][:count]
    if len(sequence) < count:
        raise UserError(f"--davis {davis}: JPEGImages/480p/<sequence> with {count} frames or more is needed")
    torch.manual_seed(0)
    net = torchvision.models.resnet18()
    for layer in (net.layer3, net.layer4):
        for module in layer.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.stride = (1, 1)
    net = torch.nn.Sequential(*list(net.children())[:-2]).train()  # BN of the frame: untrained statistics are not
    mix = torch.randn(512, D) / 512**0.5 if D != 512 else None
    features = []
    for path in sequence:
        frame = torch.from_numpy(cv2.imread(str(path))[..., ::-1].copy()).permute(2, 0, 1)[None] / 255
        frame = F.interpolate(frame, (8 * h, 8 * w), mode="bilinear")
        cells = net((frame - 0.45) / 0.225)[0].permute(1, 2, 0)
        cells = cells - cells.mean((0, 1))
        features.append(F.normalize(cells if mix is None else cells @ mix, dim=-1))
    return torch.stack(features)


def made_labels(N, h, w, M=3):
    """Soft masks of M channels, smooth: [N,h,w,M]."""
    rng = torch.Generator().manual_seed(1)
    coarse = 4 * torch.randn(N, M, h // 8, w // 8, generator=rng)
    return F.interpolate(coarse, (h, w), mode="bilinear").softmax(1).permute(0, 2, 3, 1).contiguous()


def one_run(way, name, folder, threads):
    """Runs in a process of its own: writes the masks, prints wall and CPU seconds and the memory added, in MiB."""
    torch.set_num_threads(threads)
    frames, labels = torch.load(folder / f"{name}.pt", weights_only=True)
    *_, cfg = GEOMETRIES[name]
    torch.mm(torch.randn(512, 512), torch.randn(512, 512))  # threads and libraries stand before the clock starts
    propagate = engine(way, frames[:-1], cfg)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status_mib("VmRSS")
    masks = propagate(frames[-1], labels)
    peak = status_mib("VmHWM") - before
    wall, cpu = time.perf_counter(), time.process_time()
    propagate(frames[-1], labels)
    print(time.perf_counter() - wall, time.process_time() - cpu, peak)
    torch.save(masks, folder / f"{name}_{way}.out")


def status_mib(key):
    """A memory figure of this process as Linux keeps it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def compare(name, args, folder):
    """Alternated runs of one geometry, printed as rows of the table."""
    h, w, D, N, cfg = GEOMETRIES[name]
    frames = real_features(N + 1, h, w, D, args.davis) if args.davis else made_features(N + 1, h, w, D)
    torch.save((frames.contiguous(), made_labels(N, h, w)), folder / f"{name}.pt")
    runs = {way: [] for way in WAYS}
    for _ in range(args.repeats):
        for way in WAYS:
            command = [sys.executable, __file__, "--one", way, name, str(folder), "--threads", str(args.threads)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr)
            runs[way].append([float(x) for x in done.stdout.split()])
    masks = {way: torch.load(folder / f"{name}_{way}.out", weights_only=True) for way in WAYS}
    for way in WAYS:
        (wall, cpu, peak), (dense_wall, dense_cpu, _) = (
            [statistics.median(column) for column in zip(*runs[w])] for w in (way, "dense")
        )
        difference = (masks["dense"] - masks[way]).abs().amax(1)
        print(
            f"| {name} | {way} | {wall:.2f} | {dense_wall / wall:.1f} | {cpu:.2f} | {dense_cpu / cpu:.1f} "
            f"| {peak:.0f} | {difference.max():.1e} | {(difference > 1e-5).sum()} |",
            flush=True,
        )


@reported
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--davis", help="data in DAVIS layout; its first sequence is used")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each way; a dense one takes half a minute")
    parser.add_argument("--geometry", nargs="+", choices=GEOMETRIES, default=list(GEOMETRIES))
    parser.add_argument("--one", nargs=3, metavar=("WAY", "GEOMETRY", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        way, name, folder = args.one
        one_run(way, name, Path(folder), args.threads)
        return
    features = f"frames of {args.davis}" if args.davis else "made features"
    print(f"{features}, {args.threads} threads, median of {args.repeats} alternated runs\n")
    print("| geometry | way | s a frame | ratio | CPU s | ratio | added MiB | max difference | cells > 1e-5 |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.geometry:
            compare(name, args, Path(folder))


if __name__ == "__main__":
    main()
