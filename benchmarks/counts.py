"""What a computation costs in counts, which no other load on the machine can change.

Calls are what reaches the dispatcher below autograd and is no view: one kernel launch each, but for a few that make
two. A custom operator is one call, whatever it does inside.
"""

import json
import os
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

# not marked as views in their schemas, though they move no data
AS_VIEWS = frozenset({"_unsafe_view", "detach"})
NO_KERNEL = AS_VIEWS | {"resolve_conj", "resolve_neg", "empty", "empty_like", "empty_strided", "lift_fresh"}
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "hipLaunchKernel", "hipExtLaunchKernel", "hipModuleLaunch")

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library reports each start and stop on stderr


class Calls(TorchDispatchMode):
    """While entered, counts by name the calls that are no views, in eager code."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if not func.is_view and name not in AS_VIEWS:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


def calls_of(function: Callable[[], Any], compiled: bool = False) -> Counter[str]:
    """The calls of one run of `function`, by name; of what was compiled for a CPU, Inductor's kernels and the aten
    calls between them.

    Inductor's kernels show only where `torch._inductor.config.cpp.enable_kernel_profile` was set when they were built.
    """
    if not compiled:
        with Calls() as calls:
            function()
        return calls.names
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as record:
        function()
    names: Counter[str] = Counter()
    for event in record.events() or ():
        if "cpp_fused" in event.name:
            names[event.name.split("cpp_", 1)[-1]] += 1
        elif is_call(event.name) and not is_within_a_call(event):
            names[event.name.removeprefix("aten::")] += 1
    return names


def is_within_a_call(event: Any) -> bool:
    parent = event.cpu_parent
    return parent is not None and (is_call(parent.name) or is_within_a_call(parent))


@cache
def is_call(event: str) -> bool:
    """Whether an event is an aten operator that is no view, allocates not only, and is not made of others below
    autograd."""
    name = event.removeprefix("aten::")
    if name == event or name in NO_KERNEL:
        return False
    packet = getattr(torch.ops.aten, name, None)
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    for op in () if packet is None else (getattr(packet, overload) for overload in packet.overloads()):
        # a few overloads are TorchScript's alone and unknown to the dispatcher
        if op.is_view or (torch._C._dispatch_has_kernel(op.name()) and op.has_kernel_for_dispatch_key(key)):
            return False
    return True


def cuda_launches(function: Callable[[], Any]) -> int:
    """Kernels that one run of `function` launches on a GPU, as the profiler sees them."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as record:
        function()
        torch.cuda.synchronize()
    return sum(event.name.startswith(LAUNCHES) for event in record.events() or ())


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
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    return max(accumulate((event["args"]["Bytes"] for event in memory), initial=0))


class Packed:
    """A tensor in the place where autograd keeps it: it is gone when that is."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_bytes(function: Callable[[], Any], but: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps for the backward pass of what `function` returns, each storage once, but for those of
    some tensors; not what was saved for a result that is gone, as of the norms of DoRA, which are detached."""
    references: list[weakref.ref[Packed]] = []

    def pack(tensor: Tensor) -> Packed:
        packed = Packed(tensor.detach())  # else an output that its own node keeps would never be freed
        references.append(weakref.ref(packed))
        return packed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.tensor):
        result = function()
    tensors = [packed.tensor for one in references if (packed := one()) is not None]
    del result  # until here it holds all that it needs, and nothing else does
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    left_out = {tensor.untyped_storage().data_ptr() for tensor in but}
    return sum(size for place, size in sizes.items() if place not in left_out)
