"""The Triton kernels: their results (interpreter or GPU), their machine code (no GPU needed), when they are used."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from core.errors import UserError
from labelprop import backends, int8, windowed

ROOT = Path(__file__).resolve().parents[1]
triton = pytest.importorskip("triton")

UNINTERPRETED = not torch.cuda.is_available() and np.lib.NumpyVersion(np.__version__) >= "2.4.0"


@pytest.mark.skipif(UNINTERPRETED, reason="without a GPU, Triton's interpreter, which needs numpy below 2.4")
def test_the_kernels_compute_what_they_should():
    """In another process: Triton decides once, when it is imported, whether it interprets all kernels."""
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/triton_cases.py"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | interpreted, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def compiled(kernel, capability, constants, options):
    """Compile a kernel for GPUs of this compute capability; no GPU is needed."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    int64, int32 = {"halves", "fulls", "own_frames", "cells_out"}, {"queries", "near", "filled", "visits_out"}
    fp32 = {"maxima", "tops", "slack", "scores_out"}
    types = dict.fromkeys(int64, "*i64") | dict.fromkeys(int32, "*i32") | dict.fromkeys(fp32, "*fp32")
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if "*" in signature[name]}
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize("capability, products", [(80, "mma.sync.aligned.m16n8k16"), (90, "wgmma.mma_async")])
def test_products_compile_to_tensor_cores_and_copies_that_run_beside_them(capability, products):
    from labelprop import triton_backend, triton_kernel

    constants = {"D": 512, "ROUND": True, "LIMIT": 143}
    shape = triton_backend.SHAPES[0]
    options = {"num_warps": shape.warps, "num_stages": shape.stages, "maxnreg": shape.registers}
    bound = compiled(triton_kernel.bound, capability, {**constants, "Q": shape.Q, "P": shape.P}, options)
    ptx = bound.asm["ptx"]
    assert products in ptx and ".f32.f16.f16" in ptx
    # Asynchronous copies of 16 bytes.  Without known alignment of the pointers, the compiler makes smaller ones.
    assert re.search(r"cp\.async\.cg\.shared\.global \[.*?\], \[.*?\], 0x10", ptx)
    assert not re.search(r"cp\.async\.ca", ptx)
    assert bound.metadata.shared <= 99 * 1024  # the smallest limit of all GPUs from 8.0 on


@pytest.mark.parametrize("capability", [80, 90])
def test_the_search_compiles_to_wide_loads_and_whole_warp_maxima(capability):
    from labelprop import triton_backend, triton_kernel

    shape = triton_backend.SHAPES[0]
    constants = {"D": 512, "ROUND": True, "LIMIT": 143, "Q": shape.Q, "P": shape.P}
    constants |= {"CHUNKS": 256, "BITS": 13, "TOP_K": 10, "K": 16, "TAKE": 4}
    ptx = compiled(triton_kernel.search, capability, constants, {"num_warps": 1, "maxnreg": 128}).asm["ptx"]
    assert "ld.global.v4.b32" in ptx and "redux.sync.max.s32" in ptx


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_the_cpu_takes_the_plain_way(no_gpu):
    from labelprop import triton_backend

    assert backends.choose("auto", torch.empty(0)) in (windowed, int8)
    triton_backend.obstacle.cache_clear()
    with pytest.raises(UserError, match="backend = 'triton' on cpu: it needs a GPU.*'auto'"):
        backends.choose("triton", torch.empty(0))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"get_device_capability": lambda device: (7, 5)}, "GTX is too old: .* 8.0 or higher"),
        ({}, "Triton does not start here: no compiler"),
    ],
)
def test_a_gpu_that_cannot_run_them_takes_the_plain_way(monkeypatch, changes, said):
    from labelprop import triton_backend

    changes = {"get_device_name": lambda device: "GTX", "get_device_capability": lambda device: (9, 0)} | changes
    for name, value in changes.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(triton.runtime, "driver", NoDriver())
    monkeypatch.setattr(triton_backend, "obstacle", triton_backend.obstacle.__wrapped__)
    with pytest.warns(UserWarning, match=said):
        assert backends.choose("auto", ON_GPU) is windowed
    with pytest.raises(UserError, match=said):
        backends.choose("triton", ON_GPU)


#: stands in for features on a GPU
ON_GPU = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)


class NoDriver:
    @property
    def active(self):
        raise RuntimeError("no compiler")


def test_without_triton_a_gpu_takes_the_plain_way(monkeypatch):
    for name in ("triton_backend", "triton_kernel"):
        monkeypatch.delitem(sys.modules, f"labelprop.{name}", raising=False)
        monkeypatch.delattr(f"labelprop.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.warns(UserWarning, match="needs the package triton"):
        assert backends.choose("auto", ON_GPU) is windowed
