"""Which layers are calibrated together, so that their moments fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .collector import Collector
from .float64 import CHUNK_BYTES, FLOAT64_BYTES
from .inputs import Runner
from .memory_bound import MemoryBound, Need, pack
from .moments import Target
from .passes import Passes

Group = list[Target]
Bytes = Callable[[Iterable[Target]], int]


def moment_bytes(targets: Iterable[Target]) -> int:
    """Memory of one moment and the cross moments of the targets that share it."""
    members = list(targets)
    d = members[0].d_in
    ranks = sum(int(t.module.r[adapter]) for t in members for adapter in t.adapters)
    return FLOAT64_BYTES * d * (d + ranks)


def work_bytes(targets: Iterable[Target]) -> int:
    """Memory beside the moments: the Cholesky factor, and the widened piece of an input."""
    return max(map(factor_bytes, targets)) + 2 * CHUNK_BYTES


def factor_bytes(target: Target) -> int:
    """Memory of the Cholesky factor of a moment, twice while it is used."""
    return 2 * FLOAT64_BYTES * target.d_in**2


WEIGHTS = 4 * 12
"""Bytes of all that is held of a weight's shape while a layer is rounded, for each entry."""


def rounding_bytes(targets: Iterable[Target]) -> int:
    """Memory beside the moments: of one layer its moment ordered and factored, and its weight some times over."""
    needs = [3 * FLOAT64_BYTES * t.d_in**2 + WEIGHTS * t.d_in * t.d_out for t in targets]
    return int(max(needs)) + 2 * CHUNK_BYTES


def plan(
    runner: Runner,
    targets: list[Target],
    data: Passes,
    bound: MemoryBound,
    share_inputs: bool,
    work: Bytes = work_bytes,
) -> list[Group]:
    """Groups of layers, in the order of execution, whose moments fit in the bound at once.

    Where everything fits even if no input is shared, that is one group, and which inputs are shared is seen on the way.
    Otherwise one batch is run first to see it, or more until every layer was reached whose adapters add something; all,
    with several processes. Layers that no input has reached by then are in no group.

    Args:
        work: memory that targets take beside their moments, while they are worked on one after the other.

    Raises:
        CalibrationError: not even one layer fits.
    """
    alone = sum(moment_bytes([target]) for target in targets) + work(targets)
    if alone <= bound.size:
        return [targets]
    return pack_layers(_units(runner, targets, data, share_inputs), bound, work)


def pack_layers(units: list[Group], bound: MemoryBound, work: Bytes = work_bytes) -> list[Group]:
    """Put units, each of layers that share one input, together in their order as long as their moments fit.

    Raises:
        CalibrationError: a unit does not fit alone.
    """

    def need(unit: Group) -> Need:
        return Need(moment_bytes(unit), work(unit))

    packed = pack(units, bound, need, lambda unit: f"{unit[0].name} (input width {unit[0].d_in})", "its moments")
    return [[target for unit in group for target in unit] for group in packed]


def _units(runner: Runner, targets: list[Target], data: Passes, share_inputs: bool) -> list[Group]:
    """The layers by the input that they share, in the order in which the first batches reach them; see `leaders`."""
    data.hold()
    collector = Collector(runner, targets, share_inputs, watch_only=True)
    collector.run_all(data.from_first())
    by_name = {target.name: target for target in targets}
    units: dict[str, Group] = {}
    for name, leader in collector.leaders().items():
        units.setdefault(leader, []).append(by_name[name])
    return list(units.values())
