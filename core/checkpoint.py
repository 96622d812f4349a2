"""Checkpoints: everything a run needs to go on, in one file that loads without running code."""

import argparse
import hashlib
import os
import pickle
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from core.atomic import replacing
from core.errors import UserError

#: the file with the SHA-256 of the files beside it, in the format of `sha256sum`
SUMS = "SHA256SUMS"
# Published checkpoints hold their command line (a Namespace) and numpy numbers.  Both are values and run no code.
_HARMLESS = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (*np.typecodes["AllInteger"], *np.typecodes["Float"], "?")),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def save(path, state):
    """Write `state` to path; a reader sees the old file or the new one, never half of it."""
    with replacing(path) as part, open(part, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # after a failed write torch closes its archive, which fails again
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        file.flush()
        os.fsync(file.fileno())


def save_weights(path, tensors, metadata):
    """Write {name: tensor} and metadata {name: text} as .safetensors, and its line in SHA256SUMS beside it."""
    path = Path(path)
    with replacing(path) as part:
        part.write_bytes(
            safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()}, metadata)
        )
    sums = {**_sums_beside(path), path.name: _sha256(path)}
    with replacing(path.with_name(SUMS)) as part:
        part.write_text("".join(f"{value}  {name}\n" for name, value in sorted(sums.items())))


def load_weights(path):
    """({name: tensor}, metadata) of a .safetensors file.

    Raises UserError where the file is missing, damaged, or has another SHA-256 than SHA256SUMS beside it says.
    """
    path = Path(path)
    sums = _sums_beside(path)
    try:
        if path.name in sums and sums[path.name] != _sha256(path):
            raise UserError(f"{path}: is not the file whose SHA-256 stands in {path.with_name(SUMS)}; fetch it again")
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; name a file that is there") from None
    except UserError:
        raise
    except Exception as error:  # on damaged files the parser and torch raise errors of any kind
        raise UserError(f"{path}: is not a readable checkpoint ({error}); save or fetch it again") from None


def _sums_beside(path):
    """{name of the file: SHA-256} of the SHA256SUMS in a file's folder; {} where there is none."""
    sums = path.with_name(SUMS)
    try:
        rows = [line.split(maxsplit=1) for line in sums.read_text().splitlines()] if sums.is_file() else []
        return {name: value for value, name in rows}
    except (OSError, ValueError) as error:
        raise UserError(f"{sums}: must hold `SHA-256  name` lines ({error}); fetch it again or remove it") from None


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load(path):
    """The state in a checkpoint file, on the CPU, read with weights_only=True; of .safetensors, {name: tensor}.

    Raises UserError where the file is missing, broken, or needs code to be run.
    """
    if str(path).endswith(".safetensors"):
        return load_weights(path)[0]
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; name a file that is there") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name the checkpoint file in it") from None
    except pickle.UnpicklingError as error:
        # the message leaves out torch's advice to switch the refusal off
        refused = [line.split(". Please")[0].strip() for line in str(error).splitlines() if "Unsupported" in line]
        reason = "".join(f": {line}" for line in refused[:1])
        raise UserError(
            f"{path}: is no checkpoint, or needs code to be run, which is refused{reason}; name another file"
        ) from None
    except Exception as error:  # on damaged files torch raises errors of any kind
        reason = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise UserError(f"{path}: is not a readable checkpoint ({reason}); save or fetch it again") from None


def load_strictly(module, state, source):
    """Copy a state_dict into the module by name, in the module's precision.

    source: the name of the file in messages.  Raises UserError that lists tensors which are missing, left over or of
    another shape.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    left_over = [str(name) for name in state if name not in own]
    there = [name for name in own if name in state]
    shapes = [f"{k} {_shape(state[k])} (here {_shape(own[k])})" for k in there if _shape(state[k]) != _shape(own[k])]
    problems = [
        f"{title}: {', '.join(names[:12])}{f' and {len(names) - 12} more' if len(names) > 12 else ''}"
        for title, names in (("missing", missing), ("left over", left_over), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise UserError(f"{source}: does not fit this network; " + "; ".join(problems))
    for name, value in own.items():
        given = state[name]
        fits = given.is_floating_point() or not (given.is_complex() or value.is_floating_point())
        if given.layout != torch.strided or not fits:
            raise UserError(
                f"{source}: {name} is {given.dtype}, {given.layout}; {value.dtype}, {value.layout} is expected"
            )
    state = {name: state[name].to(value.dtype) for name, value in own.items()}
    module.load_state_dict(state, assign=any(parameter.is_meta for parameter in module.parameters()))


def _shape(value):
    return list(value.shape) if isinstance(value, torch.Tensor) else ["no tensor"]


@cache
def git_revision(folder):
    """The commit of the code, with "+changes" where files differ from it, or "unknown" outside git."""
    try:
        run = lambda *words: subprocess.run(  # noqa: S603  words of our own, and no shell
            ["git", "--no-optional-locks", "-C", str(folder), *words],  # noqa: S607  the user's own git
            capture_output=True, text=True, check=True, timeout=20,
        ).stdout.strip()  # fmt: skip
        return run("rev-parse", "HEAD") + ("+changes" if run("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
