"""The machine that a plan is for: the one that it runs on, or a GPU that is named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from ...errors import ArgumentError, counted, unknown
from ...machine import total_memory, usable_cores

UTILISATION = 0.4
"""The share of its greatest speed that a GPU attains in a training."""
CORE = {"fp32": 0.06, "half": 0.112}
"""TFLOP/s that a core attains in a training. From the runs in results/, each on one thread of a server's CPU."""
ROOM = 0.9
"""The share of a GPU's memory that is taken to be free for a training."""
PROCESS_GB = 0.7
"""What Python, PyTorch and the data take, where all share the main memory."""


@dataclass(frozen=True)
class Machine:
    """What one run at a time has to itself.

    Args:
        name: for people.
        memory_gb: of the GPU, or the main memory.
        fp32: TFLOP/s, dense, in float32: at most on a GPU, on each core of a CPU in a training.
        half: the same in 16 bits.
        bandwidth: GB/s of the memory.
        cores: of a CPU; None for a GPU.
        half_precision: of a recipe's, in 16 bits, that it computes in best.
    """

    name: str
    memory_gb: float
    fp32: float
    half: float
    bandwidth: float
    cores: int | None = None
    half_precision: Literal["bf16", "fp16"] = "bf16"

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.cores is None

    def fits(self, memory_gb: float) -> bool:
        """Whether a training that needs so much has room; CUDA and its caches take some of a GPU's memory, too."""
        return memory_gb <= (self.memory_gb * ROOM if self.is_gpu else self.memory_gb)

    def speed(self, precision: str, threads: int | None = None) -> float:
        """Floating-point operations a second that a training attains.

        Args:
            precision: `fp32`, `bf16` or `fp16`.
            threads: of a CPU, all cores if None.
        """
        each = self.fp32 if precision == "fp32" else self.half
        if self.cores is None:
            return 1e12 * UTILISATION * each
        return 1e12 * each * min(threads or self.cores, self.cores)


# What the data sheets say.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Machine("T4", 16, 8.1, 65, 320, half_precision="fp16"),
        Machine("V100", 32, 15.7, 125, 900, half_precision="fp16"),
        Machine("RTX 3090", 24, 35.6, 71, 936),
        Machine("RTX 4090", 24, 82.6, 165.2, 1008),
        Machine("A10", 24, 31.2, 125, 600),
        Machine("L4", 24, 30.3, 121, 300),
        Machine("L20", 48, 59.8, 119.5, 864),
        Machine("L40S", 48, 91.6, 362, 864),
        Machine("A100", 80, 19.5, 312, 2039),
        Machine("H100", 80, 66.9, 989, 3350),
        Machine("H200", 141, 66.9, 989, 4800),
    )
}


def named(name: str) -> Machine:
    """The GPU of that name, in any case; `here` is the machine that this runs on.

    Raises:
        UserError: it is not known.
    """
    if name.lower() == "here":
        return here()
    for known, gpu in GPUS.items():
        if name.lower() == known.lower():
            return gpu
    raise ArgumentError(f"`gpu`: '{name}' is an {unknown('GPU', [*GPUS, 'here'], name)}")


def here() -> Machine:
    """The machine that this runs on: its first GPU, or its CPU."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return of_gpu(str(properties.name), properties.total_memory / 1e9)
    cores = usable_cores()
    return of_cpu(cores, total_memory() / 1e9)


def of_gpu(name: str, memory_gb: float) -> Machine:
    """A GPU by the name that CUDA gives it. One that is not known has the speed of the slowest of as much memory."""
    words = name.upper().replace("-", " ").split()
    for known in sorted(GPUS, key=len, reverse=True):
        parts = known.upper().split()
        if any(words[at : at + len(parts)] == parts for at in range(len(words))):
            return replace(GPUS[known], memory_gb=memory_gb)
    like = [gpu for gpu in GPUS.values() if gpu.memory_gb >= 0.9 * memory_gb] or [GPUS["H200"]]
    slowest = min(like, key=lambda gpu: gpu.half)
    return replace(slowest, name=f"{name} (taken to be as fast as a {slowest.name})", memory_gb=memory_gb)


def of_cpu(cores: int, memory_gb: float) -> Machine:
    """A CPU of so many cores."""
    name = f"CPU of {counted(cores, 'core')}"
    return Machine(name, memory_gb, CORE["fp32"], CORE["half"], 20 * cores, cores)
