"""The ANL as one operator each way: the Triton kernels, and how the fast path and torch.compile come to use them."""

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from packaging.version import Version
from peft import get_peft_model
from torch import nn
from torch._functorch.aot_autograd import aot_module_simplified
from torch.utils._python_dispatch import TorchDispatchMode

from aurora_lora import AuroraConfig
from aurora_lora.ops import ANL, adaptive_nonlinear, add_update, anl_triton, update

CHECKS = Path(__file__).with_name("triton_checks.py")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
PARTS = [
    ANL(act, spline, skip=skip)
    for act, spline, skip in itertools.product(
        ("tanh", "leaky_relu", None), ("channelwise", "summed", None), (False, True)
    )
    if act or spline
]


def run_checks(cache, *options, **environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--noconftest", "-x", "-q", str(CHECKS), *options],
        env={**inherited, "TRITON_CACHE_DIR": str(cache), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
@pytest.mark.parametrize(
    "checks", [pytest.param("test_shapes and 3-70", id="some"), pytest.param("", marks=pytest.mark.slow, id="all")]
)
def test_the_kernels_in_tritons_interpreter(tmp_path, checks):
    import triton

    release = Version(triton.__version__)
    if release < Version("3.3"):
        pytest.skip("the interpreter of Triton 3.2 and older fails with NumPy 2")
    if release < Version("3.7") and Version(np.__version__) >= Version("2.4"):
        pytest.skip("the interpreter of Triton 3.6 and older fails with NumPy 2.4")
    run_checks(tmp_path, "-k", checks, TRITON_INTERPRET="1")


@pytest.mark.gpu
@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernels_on_a_gpu(tmp_path):
    run_checks(tmp_path)


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("target", [("cuda", 80, 32), ("hip", "gfx942", 64)], ids=str)
def test_the_kernels_compile_for_gpus(tmp_path, monkeypatch, target):
    """What the interpreter does not see, the arguments, types and layouts of the compiled code, without a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget

    from aurora_lora.ops.anl_triton import triton_backward, triton_forward

    class Driver:
        """As much of a device as compiling asks for."""

        def get_current_target(self):
            return GPUTarget(*target)

        def get_current_device(self):
            return target

        def get_current_stream(self, device):
            return 0

    compiled = []
    run = triton.JITFunction.run

    def compile_only(self, *args, warmup, **kwargs):
        compiled.append(run(self, *args, warmup=True, **kwargs))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.JITFunction, "run", compile_only)
    triton.runtime.driver.set_active(Driver())
    try:
        for r, n, dtype, anl in (
            (2, 4096, torch.bfloat16, ANL(skip=False)),
            (3, 1, torch.float64, ANL("sigmoid", "summed", 3, 2, skip=True)),  # a size of 1 is compiled in
            (16, 33, torch.float32, ANL("relu", skip=False)),
        ):
            du, z, H, W = make(anl, r, n, dtype)
            triton_forward(z, H, W, anl)
            triton_backward(du.T.contiguous().T, z, H, W, anl)
    except Exception as error:
        if "linker" in str(error) and target[0] == "hip":
            pytest.skip(f"Triton {triton.__version__} comes without AMD's linker")
        raise
    finally:
        triton.runtime.driver._active = None
    assert len(compiled) == 6
    assert all(kernel.asm["cubin" if target[0] == "cuda" else "hsaco"] for kernel in compiled)


# ---------------------------------------------------------------- the operators, in plain torch


def make(anl, r=3, n=6, dtype=torch.float64):
    """du, z, H, W_s."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((r, n), (r, n), (r, r) if anl.fixed_activation else None, (r, anl.n_basis) if anl.spline else None)
    return [None if s is None else torch.randn(s, dtype=dtype, generator=generator) for s in sizes]


@pytest.mark.parametrize("anl", PARTS, ids=str)
def test_the_operators_are_the_eager_formula(anl):
    du, z, *weights = make(anl)
    du, *tensors = du.T, z.T, *weights
    leaves = [t for t in tensors if t is not None]
    for t in leaves:
        t.requires_grad_()
    expected = adaptive_nonlinear(*tensors, anl)
    found = anl_triton.operator_sigma(*tensors, anl)
    torch.testing.assert_close(found, expected)
    for a, b in zip(torch.autograd.grad(found, leaves, du), torch.autograd.grad(expected, leaves, du), strict=True):
        torch.testing.assert_close(a, b)


# ---------------------------------------------------------------- where they are used


@pytest.fixture
def with_operators(monkeypatch):
    """As if the CPU were a device that Triton compiles for."""
    monkeypatch.setattr(update, "triton_serves", lambda *_: True)


class Operators(TorchDispatchMode):
    """Counts the calls of our operators."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += function.namespace == "aurora_lora"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("triton", "capability", "expected", "in_bfloat16"),
    [
        (True, (9, 0), True, True),
        (True, (8, 0), True, True),
        (True, (7, 5), True, False),
        (True, (6, 1), False, False),
        (False, (9, 0), False, False),
    ],
)
def test_which_devices_triton_compiles_for(monkeypatch, triton, capability, expected, in_bfloat16):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(update, "_can_launch", lambda: True)
    update.triton_serves.cache_clear()
    assert update.triton_serves("cuda", 0) == expected
    assert update.triton_serves("cuda", 0, True) == in_bfloat16
    assert not update.triton_serves("cpu", None)
    update.triton_serves.cache_clear()


@pytest.mark.usefixtures("with_operators")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("anl", PARTS, ids=str)
def test_the_adapter_path_with_operators(anl, dtype):
    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()

    torch.manual_seed(0)
    result, x, A, B = random(2, 3, 7), random(2, 3, 5), random(3, 5), random(7, 3)
    H = random(3, 3) if anl.fixed_activation else None
    W = random(3, anl.n_basis) if anl.spline else None
    tensors = (result, x, A, B, H, W)
    leaves = [t for t in tensors if t is not None]
    cotangent = torch.randn(2, 3, 7).to(dtype)
    with Operators() as seen:
        found = add_update(*tensors, 1.7, anl)
        gradients = torch.autograd.grad(found, leaves, cotangent)
    assert seen.calls == 2
    expected = result + 1.7 * adaptive_nonlinear(x @ A.T, H, W, anl) @ B.T
    tolerance = 1e-12 if dtype == torch.float64 else 3e-2
    for a, b in zip((found, *gradients), (expected, *torch.autograd.grad(expected, leaves, cotangent)), strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


class Graphs:
    """A backend of torch.compile that counts our operators in the forward and the backward graph."""

    def __init__(self):
        self.calls = []

    def __call__(self, graph, inputs):
        return aot_module_simplified(graph, inputs, fw_compiler=self._count, bw_compiler=self._count)

    def _count(self, graph, inputs):
        self.calls.append(sum("aurora_lora" in str(node.target) for node in graph.graph.nodes))
        return make_boxed_func(graph.forward)


def gradients_of_a_step(backend=None, device="cpu"):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model = get_peft_model(model, AuroraConfig(target_modules=["0", "2"], init_weights=False)).to(device).train()
    run = torch.compile(model, fullgraph=True, backend=backend) if backend else model
    run(torch.randn(5, 6).to(device)).square().sum().backward()
    torch._dynamo.reset()
    return {name: p.grad.cpu() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.compiles_peft
@pytest.mark.usefixtures("with_operators")
def test_a_compiled_step_sees_one_operator_each_way(monkeypatch):
    graphs = Graphs()
    torch.testing.assert_close(gradients_of_a_step(graphs), gradients_of_a_step())
    assert graphs.calls == [2, 2]
    monkeypatch.setenv("AURORA_LORA_EAGER", "1")
    graphs = Graphs()
    gradients_of_a_step(graphs)
    assert graphs.calls == [0, 0]


@pytest.mark.compiles_peft
@pytest.mark.gpu
@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_a_gpu_compiled_and_not(monkeypatch):
    found = [gradients_of_a_step(backend, "cuda") for backend in ("inductor", None)]
    graphs = Graphs()
    found.append(gradients_of_a_step(graphs, "cuda"))
    assert graphs.calls == [2, 2]
    monkeypatch.setenv("AURORA_LORA_EAGER", "1")
    expected = gradients_of_a_step()
    for gradients in found:
        torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)
