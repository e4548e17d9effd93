"""`aurora bench`: which benchmarks there are, and running them so that an interrupted run can go on."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...deploy.export import DTYPES
from ...errors import ArgumentError, UserError, check_count, unknown
from ...files import check_writable, read_json, reading, write_json
from ...folders import clear_leftovers
from ...machine import usable_cores
from ...ops import dispatch
from ...temporary_attributes import temporary_attributes
from ...train.precision import check_dtype
from ...train.results import device as device_name
from ...train.results import git_commit, versions
from . import analytic_cost
from .measure import Plan, TrainingStep, count_step, measure
from .scaling import AXES, measure_axis
from .variants import VARIANTS, aurora, build, choose
from .workloads import MODELS, Case, check_device, linear_case

SCHEMA = 1
LINEAR, SCALING = "linear", "scaling"
WORKLOADS: dict[str, str] = {
    LINEAR: "one linear layer, over a grid of tokens, widths and ranks",
    **{
        m.name: f"{m.batch} x {m.length} tokens, adapters on {', '.join(n.removesuffix('_proj') for n in m.targets)}"
        for m in MODELS.values()
    },
    SCALING: "cost against tokens, width, rank, layers and adapters in a batch; larger models on paper",
}
LAYER = (4096, 768)
"""Tokens and width of the layer that stands for all: what is shown in full, beside the grid."""

GRID = tuple((tokens, d) for tokens in (256, 1024, 4096) for d in (384, 768, 1536))
COMPILED_GRID = (LAYER,)
QUICK_GRID = ((64, 32),)
LINEAR_RANKS = (8, 16)

Record = dict[str, Any]
Progress = Callable[[str, int], Callable[[], object]]
"""Starts a bar with a title and a number of rounds; gives what to call after each."""


@dataclass(frozen=True)
class Settings:
    """What a benchmark's figures depend on, beside the machine.

    Args:
        rounds: interleaved rounds, each one paired comparison.
        threads: of PyTorch on the CPU.
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: of the base model; PEFT chooses that of the adapters.
        variants: names of what is compared with the base and LoRA r=8.
        quick: tiny sizes, for a look at the output.

    Raises:
        UserError: a value that is not allowed.
    """

    rounds: int
    threads: int
    device: str
    dtype: str
    variants: tuple[str, ...]
    quick: bool = False

    def __post_init__(self) -> None:
        check_count("rounds", self.rounds, least=2)
        check_count("threads", self.threads)
        check_dtype(self.dtype)
        check_device(self.device)
        choose(self.variants)


def as_json(settings: Settings) -> dict[str, Any]:
    """The settings as they stand in a record."""
    return asdict(settings) | {"variants": list(settings.variants)}


@dataclass(frozen=True)
class Unit:
    """What is measured in one go, and written to one file: a workload, eagerly or compiled."""

    workload: str
    compiled: bool = False

    @property
    def name(self) -> str:
        return f"{self.workload}-compiled" if self.compiled else self.workload


def units(workloads: Sequence[str], compiled: bool | None) -> list[Unit]:
    """What to measure for these workloads, all of them if there are none.

    Args:
        compiled: whether to measure them compiled as well; None: only the linear layer, which is built in minutes.

    Raises:
        UserError: an unknown workload.
    """
    found = []
    for workload in workloads or WORKLOADS:
        if workload not in WORKLOADS:
            raise UserError(f"workload '{workload}': {unknown('workload', WORKLOADS, workload)}")
        found.append(Unit(workload))
        if workload != SCALING and (compiled or (compiled is None and workload == LINEAR)):
            found.append(Unit(workload, compiled=True))
    return list(dict.fromkeys(found))


def run_unit(unit: Unit, settings: Settings, progress: Progress) -> Record:
    """Measure one unit.

    Raises:
        UserError: its model cannot be loaded, or torch.compile cannot work here.
    """
    with _set_up(settings):
        load = list(os.getloadavg()) if hasattr(os, "getloadavg") else None
        found = _scaling(settings, progress) if unit.workload == SCALING else _compare(unit, settings, progress)
        return {
            "schema": SCHEMA,
            "workload": unit.workload,
            "compiled": unit.compiled,
            "settings": as_json(settings),
            **found,
            "environment": {
                "device": device_name() if settings.device != "cpu" else f"{_processor()}, {usable_cores()} cores",
                "load_before": load,
                "platform": platform.platform(),
                "versions": versions(),
                "git_commit": git_commit(),
            },
            "status": "finished",
        }


@contextmanager
def _set_up(settings: Settings) -> Iterator[None]:
    import torch._inductor.config as inductor

    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    # events are recorded on the current GPU, and its name is what the record has
    on_device = torch.cuda.device(settings.device) if settings.device.startswith("cuda") else nullcontext()
    try:
        # the profiler can then see the kernels that Inductor makes
        with on_device, inductor.patch({"cpp.enable_kernel_profile": True}):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.compiler.reset()


def _compare(unit: Unit, settings: Settings, progress: Progress) -> Record:
    cases = list(_cases(unit, settings))
    variants = choose(settings.variants)
    if unit.workload == LINEAR and "aurora-dynamic" in settings.variants:
        variants += [aurora(r) for r in LINEAR_RANKS]
    plan = Plan(variants, settings.rounds, unit.compiled)
    after = progress(unit.name, 2 * settings.rounds * len(cases))
    found = []
    for make in cases:
        case = make()
        sizes = {**case.sizes, "adapted_layers": case.layers}
        found.append({"sizes": sizes, "variants": measure(case, plan, after)})
    more = {"with_operator": _with_operator(linear_case(*LAYER))} if unit.workload == LINEAR else {}
    return {"cases": found, **more}


def _cases(unit: Unit, settings: Settings) -> Iterator[Callable[[], Case]]:
    """Makers of the cases, so that only one is in memory at a time."""
    dtype = DTYPES[settings.dtype]
    if unit.workload == LINEAR:
        grid = QUICK_GRID if settings.quick else COMPILED_GRID if unit.compiled else GRID
        for tokens, d in grid:
            yield partial(linear_case, tokens, d, device=settings.device, dtype=dtype)
    else:
        yield partial(MODELS[unit.workload].load, quick=settings.quick, device=settings.device, dtype=dtype)


def _scaling(settings: Settings, progress: Progress) -> Record:
    points = sum(len(axis.quick if settings.quick else axis.values) for axis in AXES)
    after = progress(SCALING, settings.rounds * points)
    axes = [
        measure_axis(axis, settings.rounds, settings.device, DTYPES[settings.dtype], after, quick=settings.quick)
        for axis in AXES
    ]
    calls = {name: entry["calls"]["both"] for name, entry in _with_operator(linear_case(16, 16)).items()}
    return {"axes": axes, "paper": analytic_cost.costs({"lora": calls["lora-r8"], "aurora": calls["aurora-dynamic"]})}


def _with_operator(case: Case) -> dict[str, Any]:
    """The counts of a training step with sigma as a fused kernel, as on CUDA. No times: they are CUDA's."""
    found = {}
    with temporary_attributes([dispatch], triton_serves=lambda *_: True):  # the operators run on a CPU, too
        for name in ("lora-r8", "aurora-dynamic", "aurora-static"):
            step = TrainingStep(build(VARIANTS[name], case, training=True), case)
            step()  # what is made once
            found[name] = count_step(step)
    return found


def _processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# ---------------------------------------------------------------- files


def path_of(unit: Unit, folder: Path) -> Path:
    return folder / f"{unit.name}.json"


def finished(unit: Unit, settings: Settings, folder: Path) -> Record | None:
    """The record of an earlier run with the same settings, or None.

    Raises:
        UserError: the file is of other settings, or no record of a benchmark.
    """
    path = path_of(unit, folder)
    if not path.exists():
        return None
    record = read_record(path)
    there, here = record["settings"], as_json(settings)
    differing = [name for name in here if there.get(name) != here[name]]
    if differing:
        name = differing[0]
        raise ArgumentError(
            f"{path} holds a benchmark with another setting of {name} (there {there.get(name)}, here {here[name]}): "
            "use `overwrite` to replace it, or another `output`"
        )
    return record


def read_record(path: Path) -> Record:
    """What `aurora bench` wrote.

    Raises:
        UserError: the file is something else.
    """
    with reading(path):
        try:
            record: Record = read_json(path)
            if record["schema"] != SCHEMA or not {"workload", "settings", "environment"} <= record.keys():
                raise KeyError
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a result of aurora bench (schema {SCHEMA})") from error
    return record


def bench(
    wanted: Sequence[Unit],
    settings: Settings,
    folder: Path | None,
    progress: Progress,
    *,
    overwrite: bool = False,
) -> Iterator[tuple[Unit, Record, bool]]:
    """Run what has not been run, and write each result as soon as it is there.

    Yields:
        unit, record, and whether it was there before.

    Raises:
        UserError: as `finished` and `run_unit`, the former for all units before anything is run.
    """
    earlier: dict[Unit, Record | None] = {}
    if folder is not None:
        check_writable(folder)
        clear_leftovers(folder)
        earlier = {unit: None if overwrite else finished(unit, settings, folder) for unit in wanted}
    for unit in wanted:
        record = earlier.get(unit)
        if record is not None:
            yield unit, record, True
            continue
        record = run_unit(unit, settings, progress)
        if folder is not None:
            write_json(path_of(unit, folder), record)
        yield unit, record, False
