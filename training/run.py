"""The state of a training run: everything that changes step by step, saved and restored as one."""

import errno
import fcntl
import os
from pathlib import Path
from typing import IO

import numpy as np
import torch

from core import checkpoint, distributed
from core.devices import enough_memory
from core.errors import UserError
from core.schema import as_plain
from training import optim

ROOT = Path(__file__).resolve().parents[1]

# Settings that may change when a run goes on: paths, output and other settings that do not change the training.
_FREE_SECTIONS = {"log", "validation", "propagation"}
_FREE_KEYS = {f"data.{key}" for key in ("root", "list", "workers", "bad_share", "accumulate")}
_FREE_KEYS |= {"schedule.steps", "protocol", "optim.compile", "optim.checkpointing"}


class NotFinite(UserError):
    """A loss, or a weight, is NaN or infinite."""

    def __init__(self, run, names):
        good = f"the last good checkpoint is {run.last}" if run.last.exists() else "no checkpoint was written yet"
        advice = "try a lower optim.lr or optim.precision=fp32"
        super().__init__(f"step {run.step}: {', '.join(names)} is NaN or infinite; {good}; {advice}")


def claim(folder: Path) -> IO[str]:
    """Make a run folder and remove what a killed program left half-written there.  Returns its lock, an open file.

    Raises UserError where another training holds the lock, and where the folder cannot be written.
    """
    if distributed.rank() > 0:
        return open(os.devnull)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error})") from error
    try:
        # POSIX's lock: the workers that read data do not inherit it, so that it ends with its program.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):  # else there are no locks here
            raise UserError(
                f"{folder}: another training writes here; wait for its end, or name another folder"
            ) from None
    for part in folder.glob(".*.pth.[0-9]*"):
        part.unlink(missing_ok=True)
    return lock


class Run:
    """Everything that changes during training; saved and restored as one.

    init: the file that the method's weights are from, or None.  measured: the step of the last validation.  score:
    {layer: J&F of the last validation}; best: {layer: the highest J&F}; basis: what these are measured on and by.
    starts: how often the program has started, including this time.  processes: how many wrote the checkpoint that the
    run goes on from; in a new run, how many there are.  unread: the datasets.clip.BadClips of this process's loader.
    bad_clips: clips that were replaced since the run began.  bad_files: files that could not be read since this start.
    """

    def __init__(self, method, config, folder, device, init=None):
        parts = config.data.accumulate
        if parts > 1 and method.undivided:
            raise UserError(f"data.accumulate = {parts}: must be 1 for {config.method.name}: {method.undivided}")
        self.config, self.folder, self.device, self.init = config, Path(folder), device, init
        self.method = method.to(device, memory_format=torch.channels_last)
        if device.type == "cuda" and distributed.world_size() > 1:
            self.method = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.method)
        self.optimiser = optim.build(self.method, config.optim)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.optim.precision == "fp16")
        self.step, self.best, self.basis, self.measured, self.score = 0, {}, None, 0, {}
        self.bad_clips, self.bad_files, self.bad_before, self.unread = 0, 0, 0, None
        self.starts, self.processes = 1, distributed.world_size()
        self.revision = checkpoint.git_revision(ROOT)

    def reseed(self):
        """Seed torch's random numbers by seed, step and rank, so that no checkpoint needs their state."""
        words = np.random.SeedSequence([self.config.seed, self.step, distributed.rank()]).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0]))

    def count_bad(self):
        """Add up what the processes could not read; all must call this.  A file counts once for each process."""
        if self.unread is not None:
            counts = distributed.gathered((self.unread.bad, len(self.unread.reasons)))
            clips, self.bad_files = map(sum, zip(*counts))
            self.bad_clips = self.bad_before + clips

    def save(self):
        """Write last.pth: everything that going on needs.  The place in the data follows from the step.

        All processes must call this.  Raises NotFinite where weights are not finite: a good checkpoint is kept.
        """
        self.count_bad()
        if distributed.rank() == 0:
            broken = [name for name, value in self.method.state_dict().items() if not torch.isfinite(value).all()]
            if broken:
                raise NotFinite(self, [*broken[:3], "..."] if len(broken) > 3 else broken)
            checkpoint.save(
                self.last,
                {
                    "method": self.method.state_dict(),
                    "optimiser": self.optimiser.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "step": self.step,
                    "best": self.best,
                    "basis": self.basis,
                    "bad_clips": self.bad_clips,
                    "measured": self.measured,
                    "score": self.score,
                    "init": self.init,
                    "starts": self.starts,
                    "processes": distributed.world_size(),
                    "config": as_plain(self.config),
                    "revision": self.revision,
                },
            )

    def save_best(self, layer, score):
        """Write the network with the highest J&F of a layer: best.pth for the first layer of validation.layers."""
        self.best[layer] = score
        first = layer == self.config.validation.layers[0]
        self.save_network("best.pth" if first else f"best_{layer}.pth", score=score)

    def save_network(self, name, **more):
        """Write the network, its configuration and its step; not the state that going on needs."""
        if distributed.rank() == 0:
            content = {"method": self.method.state_dict(), "config": as_plain(self.config), "step": self.step}
            checkpoint.save(self.folder / name, content | {"revision": self.revision} | more)

    def restore(self, path):
        """Take over the state of the run that wrote `path`.

        Raises UserError for a file that is no such state, and for a run with another configuration.
        """
        content = checkpoint.load(path)
        if not isinstance(content, dict) or not {"method", "optimiser", "config", "step"} <= content.keys():
            raise UserError(f"{path}: holds no training state; name a last.pth of this program")
        try:
            with enough_memory(f"{path}: going on needs more memory than {self.device} has free"):
                self._restore(content, path)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = f"{type(error).__name__} {error}".splitlines()[0]
            raise UserError(f"{path}: holds a damaged training state ({reason}); name another last.pth") from error

    def _restore(self, content, path):
        """As restore, but for damaged states it raises the errors of Python and torch."""
        _same_run(content["config"], self.config, path)
        if self.init and self.init != content["init"]:
            raise UserError(
                f"{path}: belongs to a run that did not start from {self.init}; leave --init out to go on with it, "
                "or name another --run-dir (launch/train.sh: RUN_ID=NAME) for a new run"
            )
        self.init = content["init"]
        checkpoint.load_strictly(self.method, content["method"], path)
        groups = self.optimiser.state_dict()["param_groups"]  # these follow from the configuration, which is the same
        self.optimiser.load_state_dict({"state": content["optimiser"]["state"], "param_groups": groups})
        moments = {"momentum_buffer"} if self.config.optim.name == "sgd" else {"step", "exp_avg", "exp_avg_sq"}
        for parameter, state in self.optimiser.state.items():
            fit = lambda value: value.shape == parameter.shape and value.layout == parameter.layout  # noqa: B023
            if state.keys() != moments or not all(fit(state[name]) for name in moments - {"step"}):
                raise ValueError("a moment of the optimiser is missing or misshapen")
        self.scaler.load_state_dict(content["scaler"])
        self.step, self.best = content["step"], content["best"]
        self.bad_clips = self.bad_before = content["bad_clips"]
        self.measured, self.score = content["measured"], content["score"]
        counts, scores = (self.step, self.bad_before, self.measured), (*self.best.values(), *self.score.values())
        if not all(isinstance(n, int) and n >= 0 for n in counts) or not all(isinstance(n, float) for n in scores):
            raise ValueError("counts and scores must be numbers")
        self.basis = content.get("basis")
        if not (self.folder / "best.pth").exists():  # the state of another folder, where its best.pth stays
            self.best, self.score = {}, {}
        self.starts, self.processes = content.get("starts", 1) + 1, content.get("processes", self.processes)
        if not all(isinstance(n, int) and n >= 1 for n in (self.starts, self.processes)):
            raise ValueError("starts and processes must be 1 or more")

    def changed_processes(self):
        """What changes because the number of processes has changed, in words; "" where it has not."""
        now, clips = distributed.world_size(), self.config.data.batch_size
        if now == self.processes:
            return ""
        return (
            f"{now} processes instead of {self.processes}, with {clips // now} clips each instead of "
            f"{clips // self.processes}: the batches, their order and the learning rate stay; the random draws in the "
            "loss, and on CPUs the statistics of batch norm (of the clips of one process), are others from here on"
        )

    @property
    def last(self):
        return self.folder / "last.pth"


def _same_run(saved, config, path):
    """Raise UserError where the saved configuration differs: no configuration would describe the run that goes on."""
    new = _flat(as_plain(config))
    old = {**{key: _default(config, key) for key in new}, **_flat(saved)}
    changed = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} here"
        for key in {**old, **new}
        if old.get(key) != new.get(key) and key not in _FREE_KEYS and key.split(".")[0] not in _FREE_SECTIONS
    ]
    if changed:
        raise UserError(
            f"{path}: belongs to a run with another configuration ({'; '.join(changed[:12])}).  A run that goes on may "
            f"change {', '.join([*sorted(_FREE_KEYS), *(f'{name}.*' for name in sorted(_FREE_SECTIONS))])}.  For a new "
            f"run from its weights add --init {path} and name another --run-dir "
            f"(launch/train.sh: INIT={path} RUN_ID=NAME before the same command)"
        )


def _default(config, key):
    """The default value of a key "section.name", or None, for checkpoints that are older than the key."""
    section, _, name = key.partition(".")
    return getattr(type(getattr(config, section)), name, None)


def _flat(sections):
    """{"optim": {"lr": 1}, "seed": 0} -> {"optim.lr": 1, "seed": 0}."""
    flat = {}
    for name, section in sections.items():
        flat |= {f"{name}.{k}": v for k, v in section.items()} if isinstance(section, dict) else {name: section}
    return flat
