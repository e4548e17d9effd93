"""The bounds in pyproject.toml are those that were tested: results/versions.json, written by `make versions`."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RECORDS: dict[str, Any] = json.loads((ROOT / "results" / "versions.json").read_text())
PASSED = [record["versions"] for record in RECORDS.values() if record.get("failed") == 0]


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def test_every_cell_ran_and_nothing_failed() -> None:
    assert {name: record.get("problem", record.get("failures")) for name, record in RECORDS.items()} == {
        name: {} for name in RECORDS
    }


def test_pythons() -> None:
    named = {match[1] for line in PROJECT["classifiers"] if (match := re.search(r"Python :: (3\.\d+)", line))}
    assert named == {minor(versions["python"]) for versions in PASSED}
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(min(named, key=Version))
    readme = (ROOT / "README.md").read_text()
    assert f"Python ({min(named, key=Version)} to {max(named, key=Version)})" in readme


@pytest.mark.parametrize("package", ["torch", "peft", "transformers", "numpy"])
def test_lower_bounds(package: str) -> None:
    lines = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["train"]]
    (bounds,) = (needed.specifier for needed in map(Requirement, lines) if needed.name == package)
    (lowest,) = (Version(bound.version) for bound in bounds if bound.operator == ">=")
    assert lowest == min(Version(Version(versions[package]).public) for versions in PASSED)
    assert all(bounds.contains(versions[package]) for versions in PASSED)
