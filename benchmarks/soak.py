"""Do kills, full disks and vanishing data change what training and inference come to?

    python -m benchmarks.soak [--minutes 30] [--out results/soak] [--seed 0]

First a small training, its inference and its evaluation run undisturbed.  Then, round by round, the same commands run
in new folders; at random moments each is killed (SIGKILL, SIGTERM, SIGINT), or one of its workers is, its files may
not grow any more (RLIMIT_FSIZE, as on a full disk), its data vanish, or all files are dated tomorrow, as after a clock
was set back, and it is killed; then the same command starts again.  At the end of every round weights, moments of the
optimiser, masks and J&F must be those of the undisturbed run, to the last bit, and neither processes nor half-written
files be left.
For a tenth of the time a training runs undisturbed: memory, open files, threads and shared memory are drawn in
OUT/soak.png (matplotlib).  Counts are written to OUT/soak.json.  Exit code 1: a promise was broken.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import timing
from core import checkpoint
from core.atomic import replacing
from core.errors import UserError, reported
from core.palette import write_indexed, write_picture

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "method.crop_px=32", "method.resize_px=[32, 40]", "method.embedding=16", "method.anchor_grid=4",
    "method.cross_grid=2", "clip.frames=2", "clip.gap=2", "data.list=null", "data.batch_size=2", "data.workers=2",
    "data.bad_share=0", "optim.precision=fp32", "validation.sequences=[]", "log.scalar_steps=1", "log.picture_steps=6",
    "log.checkpoint_steps=2",
)  # fmt: skip
STEPS, VALIDATIONS, TRIES, HANG = 12, 2, 16, 180
#: what is watched of a training
USED = ("memory, MB", "shared memory, MB", "open files", "threads")
#: what is done -> exit codes that may follow, besides 0 of a program that was faster
ANSWERS = {
    "SIGKILL": {-signal.SIGKILL},
    "SIGTERM": {128 + signal.SIGTERM, -signal.SIGTERM},
    "SIGINT": {128 + signal.SIGINT, -signal.SIGINT},
    "worker killed": {2},
    "disk full": {2},
    "data gone": {2},
    "clock set back, SIGKILL": {-signal.SIGKILL},
}


def make_data(root, videos=4, frames=6, size=(40, 48)):
    """Squares that move over noise, in DAVIS layout."""
    draw = np.random.default_rng(0)
    for video in range(videos):
        ground = draw.integers(0, 99, (*size, 3), np.uint8)
        for t in range(frames):
            frame, ids = ground.copy(), np.zeros(size, np.uint8)
            box = np.s_[4 + video : 20 + video, 4 + 3 * t : 20 + 3 * t]
            frame[box], ids[box] = (220, 60 * video, 40), 1
            write_picture(root / f"JPEGImages/480p/video{video}/{t:05d}.jpg", frame)
            write_indexed(root / f"Annotations/480p/video{video}/{t:05d}.png", ids)
    with replacing(root / "ImageSets/2017/val.txt") as part:
        part.write_text("".join(f"video{video}\n" for video in range(videos)))


def commands(data, folder, steps=STEPS):
    """What one round starts, in order."""
    every = steps * 2 // 4 // VALIDATIONS  # in epochs of 2 steps
    changes = [f"data.root={data}/JPEGImages", f"validation.root={data}", f"schedule.steps={steps}", *SMALL]
    changes += [f"schedule.epochs={steps}", f"validation.every_epochs={every}"]
    settings = [word for change in changes for word in ("--set", change)]
    return {
        "train": ["train.py", "--config", "configs/sample.yaml", "--run-dir", folder / "run",
                  "--device", "cpu", *settings],
        "infer": ["infer_vos.py", "--checkpoint", folder / "run/best.pth", "--dataset", "davis", "--data", data,
                  "--out", folder / "out", "--device", "cpu"],
        "evaluate": ["evaluate.py", "--annotations", data / "Annotations/480p", "--results", folder / "out/res4_vos",
                     "--out", folder / "scores"],
    }  # fmt: skip


def started(words, cache, most_bytes=None, output=subprocess.PIPE):
    """The process of one command; most_bytes: no file of it may grow beyond."""
    limit = None
    if most_bytes is not None:
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache)}
    return subprocess.Popen(  # noqa: S603  this project's programs
        [sys.executable, *map(str, words)], cwd=ROOT, env=settings, text=True, preexec_fn=limit,
        stdin=subprocess.DEVNULL, stdout=output, stderr=output,
    )  # fmt: skip


def children(pid):
    """The processes that a process started, and theirs."""
    own = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            own += map(int, (task / "children").read_text().split())
    return own + [deeper for child in own for deeper in children(child)]


def disturb(kind, process, data, draw):
    """Do to a running process what `kind` says -> whether it could be done."""
    if "SIG" in kind:
        process.send_signal(getattr(signal, kind[kind.index("SIG") :]))
    elif kind == "worker killed":
        workers = children(process.pid)
        if workers:
            os.kill(int(draw.choice(workers)), signal.SIGKILL)
        return bool(workers)
    elif kind == "data gone":
        data.rename(data.with_name("gone"))
    return True


def attempt(kind, words, data, folder, seconds, draw):
    """Start a command, disturb it at a random moment -> (its exit code, whether it was disturbed, its last words)."""
    done = kind == "disk full"
    if kind and kind.startswith("clock"):
        tomorrow = time.time() + 86_400  # what a clock that is set back makes of all files: they come from the future
        for path in (path for each in (data, folder) for path in each.rglob("*")):
            os.utime(path, (tomorrow, tomorrow))
    most_bytes = int(10 ** draw.uniform(2, 8.2)) if kind == "disk full" else None
    process = started(words, folder.parent / "cache", most_bytes)
    try:
        out, err = process.communicate(timeout=draw.uniform(0, seconds) if kind and not done else HANG)
    except subprocess.TimeoutExpired:
        try:
            done = disturb(kind, process, data, draw)
            out, err = process.communicate(timeout=HANG)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            err += f"\nTraceback: it hung for {HANG} seconds"
        finally:
            if data.with_name("gone").exists():
                data.with_name("gone").rename(data)
    return process.returncode, done, out + err


def outcome(folder):
    """Everything a round comes to, as text by name."""
    last = checkpoint.load(folder / "run/last.pth")
    digest = hashlib.sha256()
    moments = [value for state in last["optimiser"]["state"].values() for value in state.values()]
    for value in (*last["method"].values(), *moments):
        digest.update(value.numpy().tobytes())
    found = {"weights and moments": digest.hexdigest(), "step": str(last["step"]), "J&F by layer": str(last["best"])}
    for path in sorted(folder.glob("out/res4_vos/*/*.png")):
        found[f"{path.parent.name}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found | {"J&F": (folder / "scores/scores.json").read_text()}


def round_(data, folder, seconds, draw, counts, end):
    """One round, disturbed until the time `end` -> what went wrong, in words.

    seconds: of each command, the shortest that was seen; lowered here.
    """
    wrong = []
    for name, words in commands(data, folder).items():
        kinds = [str(kind) for kind in draw.choice([*ANSWERS], TRIES)]
        for kind in [*kinds, None]:
            kind, begun = kind if time.time() < end else None, time.time()
            code, done, told = attempt(kind, words, data, folder, seconds[name], draw)
            done &= not (kind == "disk full" and code == 0)  # it never was
            counts[f"{kind if done else 'undisturbed'}: exit code {code}"] += 1
            if kind == "SIGINT" and code and "Traceback" in told and "    main()" not in told:
                continue  # Python was still importing: it has words of its own for that
            if "Traceback" in told or code not in {0, *ANSWERS.get(kind, ())}:
                wrong.append(f"{name}, {kind}: exit code {code}: {told[-1500:]}")
            if code == 0:
                seconds[name] = min(seconds[name], time.time() - begun)
                break
    return wrong


def left_behind(folder):
    """Processes that work in a folder, and hidden files in it, but for the locks of run folders."""
    time.sleep(6)  # torch's workers look every 5 seconds whether their parent lives
    lines = {pid: Path(f"/proc/{pid}/cmdline") for pid in filter(str.isdecimal, os.listdir("/proc"))}
    alive = [pid for pid, line in lines.items() if line.exists() and str(folder) in line.read_text(errors="replace")]
    return [f"process {pid}" for pid in alive] + [str(path) for path in folder.rglob(".*") if path.name != ".lock"]


def usage(pid):
    """{what, as in USED: its sum over a process and its children}."""
    total = dict.fromkeys(USED, 0.0)
    for each in (pid, *children(pid)):
        with suppress(OSError, KeyError):  # it ended meanwhile
            status = dict(line.split(":", 1) for line in Path(f"/proc/{each}/status").read_text().splitlines())
            memory, shared = (int(status[part].split()[0]) / 1024 for part in ("RssAnon", "RssShmem"))
            found = memory, shared, len(os.listdir(f"/proc/{each}/fd")), int(status["Threads"])
            total = {what: total[what] + value for what, value in zip(USED, found)}
    return total


def watch(data, folder, seconds):
    """A training that is only looked at: [(seconds since its start, usage)]."""
    words, samples, start = commands(data, folder, 1_000_000)["train"], [], time.time()
    with open(folder.with_suffix(".log"), "w") as log:
        process = started(words, folder.parent / "cache", output=log)
        while time.time() - start < seconds and process.poll() is None:
            time.sleep(1)
            samples.append((time.time() - start, usage(process.pid)))
        process.terminate()
        process.wait(HANG)
    return [(t, use) for t, use in samples if use["threads"]]


def growth(samples):
    """{what: the mean over the last quarter divided by that over the second quarter}."""
    quarter = len(samples) // 4
    mean = lambda part, what: float(np.mean([use[what] for _, use in part]))
    parts = samples[quarter : 2 * quarter], samples[-quarter:]
    return {what: mean(parts[1], what) / max(1, mean(parts[0], what)) for what in USED} if quarter else {}


def draw_plot(samples, path):
    with timing.figure(path, 13, 2.6) as figure:
        for axis, what in zip(figure.subplots(1, len(USED)), USED):
            axis.plot([t / 60 for t, _ in samples], [use[what] for _, use in samples], color="#0072b2", linewidth=1)
            axis.set(title=what, xlabel="minutes", ylim=(0, None))


@reported
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", default="results/soak", type=Path)
    parser.add_argument("--seed", default=0, type=int)
    args = parser.parse_args()
    timing.require_matplotlib()
    work, end, draw = args.out.resolve() / "work", time.time() + 60 * args.minutes, np.random.default_rng(args.seed)
    if work.exists():
        raise UserError(f"{work}: is there already; remove it, or name another --out")
    data, counts, wrong, seconds = work / "data", Counter(), [], {}
    make_data(data)
    for name, words in commands(data, work / "undisturbed").items():
        begun = time.time()
        code, _, told = attempt(None, words, data, work / "undisturbed", 0, draw)
        if code:
            raise UserError(f"{name}: exit code {code} without any disturbance; mend this first: {told[-2000:]}")
        seconds[name] = time.time() - begun
    wanted, rounds = outcome(work / "undisturbed"), 0
    samples = watch(data, work / "steady", 6 * args.minutes)
    draw_plot(samples, args.out / "soak.png")
    while not rounds or time.time() < end:
        rounds, folder = rounds + 1, work / f"round{rounds}"
        wrong += round_(data, folder, seconds, draw, counts, end)
        found = outcome(folder)
        wrong += [f"round {rounds}: {name} differs" for name in wanted if found.get(name) != wanted[name]]
        wrong += [f"round {rounds}: left behind: {what}" for what in left_behind(folder)]
        disturbances = sum(n for answer, n in counts.items() if "undisturbed" not in answer)
        report = {"rounds": rounds, "disturbances": disturbances, "answers": dict(sorted(counts.items())),
                  "wrong": wrong, "growth": growth(samples), "seconds": seconds}  # fmt: skip
        with replacing(args.out / "soak.json") as part:
            part.write_text(json.dumps(report, indent=1) + "\n")
        print(f"round {rounds}: {disturbances} disturbances, {len(wrong)} wrong", flush=True)
        shutil.rmtree(folder)
    print(json.dumps(report, indent=1))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
