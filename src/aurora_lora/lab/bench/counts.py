"""What a computation costs in counts, which no other load on the machine can change.

Calls are what reaches the dispatcher below autograd and is no view: one kernel launch each, but for a few that make
two. A custom operator is one call, whatever it does inside.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from ...files import read_json

# not marked as views in their schemas, though they move no data
_AS_VIEWS = frozenset({"_unsafe_view", "detach"})
_NO_KERNEL = _AS_VIEWS | {"resolve_conj", "resolve_neg", "empty", "empty_like", "empty_strided", "lift_fresh"}
_LAUNCHES = (
    *("cudaLaunchKernel", "cuLaunchKernel", "hipLaunchKernel", "hipExtLaunchKernel"),
    *("hipModuleLaunch", "hipExtModuleLaunchKernel", "hipDrvLaunchKernelEx"),  # how Triton launches on AMD
)

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library reports each start and stop on stderr


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, counts the calls that are no views, by name.

        with Calls() as calls:
            model(x)
        calls.total, calls.names

    It sees eager code; what torch.compile has made is counted by `profiled_calls`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.names.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if not func.is_view and name not in _AS_VIEWS:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


def calls_of(function: Callable[[], Any]) -> Counter[str]:
    """The calls of one run of `function`, by name."""
    calls = Calls()
    with calls:
        function()
    return calls.names


def profiled_calls(function: Callable[[], Any]) -> Counter[str]:
    """The calls of one run of code compiled for a CPU: Inductor's kernels, and the aten calls between them.

    Inductor's kernels show only where `torch._inductor.config.cpp.enable_kernel_profile` was set when they were built.
    """
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as record:
        function()
    names: Counter[str] = Counter()
    for event in record.events() or ():
        name = event.name.removeprefix("aten::")
        if "cpp_fused" in name:
            names[name.split("cpp_", 1)[-1]] += 1
        elif name != event.name and _is_call(name) and not _is_within_a_call(event):
            names[name] += 1
    return names


def _is_within_a_call(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None:
        name = parent.name.removeprefix("aten::")
        if name != parent.name and _is_call(name):
            return True
        parent = parent.cpu_parent
    return False


@cache
def _is_call(name: str) -> bool:
    """Whether an aten operator is no view, allocates not only, and is not made of others below autograd."""
    if name in _NO_KERNEL:
        return False
    packet = getattr(torch.ops.aten, name, None)
    overloads = [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
    return not any(op.is_view or _is_composite(op) for op in overloads)


def _is_composite(op: Any) -> bool:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    # a few overloads are TorchScript's alone and unknown to the dispatcher
    return torch._C._dispatch_has_kernel(op.name()) and op.has_kernel_for_dispatch_key(key)


def cuda_launches(function: Callable[[], Any]) -> int:
    """Kernels that one run of `function` launches on a GPU, as the profiler sees them."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as record:
        function()
        torch.cuda.synchronize()
    return sum(event.name.startswith(_LAUNCHES) for event in record.events() or ())


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """The most that one run of `function` has allocated at a time, beyond what was there before.

    On a GPU the caching allocator says so; on a CPU the profiler's record of every allocation is added up. What a
    math library takes for itself is in neither.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        function()
    return _peak(_allocations(record))


def _allocations(record: profile) -> list[int]:
    """Bytes taken (above 0) and given back (below 0), in their order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        record.export_chrome_trace(str(path))
        events = read_json(path)["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(memory, key=lambda event: event["ts"])]


def _peak(allocations: Sequence[int]) -> int:
    now = most = 0
    for size in allocations:
        now += size
        most = max(most, now)
    return most
