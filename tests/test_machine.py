"""Main memory, within the limits of Linux's control groups."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from aurora_lora import machine
from aurora_lora.lab.experiments.known import machine as machine_of_a_plan
from aurora_lora.machine import free_memory, total_memory

GB = 10**9
UNLIMITED = {"memory.limit_in_bytes": 9223372036854771712, "memory.usage_in_bytes": 99 * GB}


@pytest.fixture(autouse=True)
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 64 GB, of which 48 are free, and no control groups."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GB, available=48 * GB))
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "self")
    return tmp_path


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


VERSION_2 = {"memory.max": 8 * GB, "memory.current": 6 * GB, "memory.stat": f"anon {4 * GB}\ninactive_file {GB}"}
VERSION_1 = {
    "memory.limit_in_bytes": 8 * GB,
    "memory.usage_in_bytes": 6 * GB,
    "memory.stat": f"inactive_file 5\ntotal_inactive_file {GB}",
}


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/", {"": VERSION_2}),  # a container
        (None, {"": VERSION_2}),
        ("0::/../other", {"": VERSION_2}),
        ("0::/slurm/job_1/step_0/task_0", {"slurm/job_1": VERSION_2, "slurm/job_1/step_0": {"memory.max": "max"}}),
        ("4:memory:/docker/abc\n3:cpuset:/\n0::/", {"memory": VERSION_1}),
        ("4:cpu,memory:/job_1", {"memory": UNLIMITED, "memory/job_1": VERSION_1}),
    ],
)
def test_the_limit_of_a_container_or_a_job_counts(groups: Path, own: str | None, files: dict[str, dict]) -> None:
    if own is not None:
        write(groups, self=own)
    for folder, content in files.items():
        write(groups / "cgroup" / folder, **content)
    assert (total_memory(), free_memory()) == (8 * GB, 3 * GB)


@pytest.mark.parametrize(
    ("folder", "files"),
    [
        ("", {}),
        ("", {"memory.max": "max", "memory.current": GB}),
        ("", {"memory.max": "", "memory.current": ""}),
        ("", {"memory.max": 99 * GB, "memory.current": GB}),
        ("memory", UNLIMITED),
    ],
)
def test_without_one_it_is_the_machines(groups: Path, folder: str, files: dict[str, object]) -> None:
    write(groups / "cgroup" / folder, **files)
    assert (total_memory(), free_memory()) == (64 * GB, 48 * GB)


def test_nothing_is_left_where_more_than_the_limit_is_used(groups: Path) -> None:
    write(groups / "cgroup", **{"memory.max": GB, "memory.current": 2 * GB})
    assert (total_memory(), free_memory()) == (GB, 0)


def test_bounds_and_plans_ask_for_it(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(groups / "cgroup", **VERSION_2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine_of_a_plan(None).memory_gb == 8
