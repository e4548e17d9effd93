"""Runs the unit tests with other versions of Python, torch, PEFT and Transformers, each in an environment of its own.

    python tests/versions.py                    # or: make versions
    python tests/versions.py --list
    python tests/versions.py 3.14 2.6.0         # only the cells whose name holds one of the words

Each cell makes a virtual environment, installs the package and runs the tests against it; its record goes into
results/versions.json at once, so an interrupted run goes on with the next cell. A cell is run again with `--again`.
An interpreter that is not on the PATH as `pythonX.Y`, or a release that cannot be installed, is recorded as such.
`docs/fill.py` makes the table of docs/versions.md of it. Exits with 1 if a cell that was run did not pass.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from packaging.requirements import Requirement

from aurora_lora.files import write_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "versions.json"
TOOLS = ("hypothesis", "pytest", "pytest-timeout", "setuptools")  # Triton 3.2 builds with setuptools
# The rooms that other versions could break. The tests of memory, of killed runs and of several processes are left out:
# they take minutes, and depend on the machine rather than on a version.
TESTS = (
    "tests/ops",
    "tests/tuner",
    "tests/deploy",
    "tests/methods",
    "tests/train/test_callback.py",
    "tests/train/test_card.py",
    "tests/train/test_recipe.py",
    "tests/train/test_run.py",
    "--ignore=tests/deploy/test_calibrate_scale.py",
)
SHOWN = ("torch", "peft", "transformers", "numpy")
INSTALL_S, TEST_S = 1800, 1800


@dataclass(frozen=True)
class Cell:
    """One environment.

    Args:
        python: minor version of the interpreter.
        pins: versions by package name; the newest that pyproject.toml allows of all others.
        oldest: pin every dependency that is not in `pins` to the lower bound that pyproject.toml gives.
    """

    python: str
    pins: dict[str, str] = field(default_factory=dict)
    oldest: bool = False

    @property
    def name(self) -> str:
        """How the record is called."""
        pins = "".join(f", {package} {version}" for package, version in self.pins.items())
        return f"Python {self.python}{pins}{', oldest of the others' if self.oldest else ''}"


CELLS = (
    Cell("3.11", oldest=True),
    Cell("3.11", {"torch": "2.6.0"}),
    Cell("3.11", {"torch": "2.8.0", "peft": "0.21.1"}),
    Cell("3.11", {"torch": "2.10.0"}),
    Cell("3.11", {"torch": "2.13.0", "transformers": "5.0.0"}),
    Cell("3.12", {"torch": "2.13.0", "peft": "0.21.0"}),
    Cell("3.13", {"torch": "2.13.0"}),
    Cell("3.14"),
)


def main() -> int:
    """Run the cells that were asked for; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="run only cells whose name holds one of these")
    parser.add_argument("--again", action="store_true", help="run cells that have a record, too")
    parser.add_argument("--list", action="store_true", help="show the cells and what is known of them")
    args = parser.parse_args()
    records: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    code = 0
    for cell in CELLS:
        if args.words and not any(word in cell.name for word in args.words):
            continue
        if args.list or (cell.name in records and not args.again):
            print(f"{cell.name}: {summary(records.get(cell.name))}")
            continue
        print(f"{cell.name} ...", flush=True)
        with tempfile.TemporaryDirectory(prefix="versions-") as folder:
            records[cell.name] = run(cell, Path(folder))
            order = [each.name for each in CELLS if each.name in records]  # of cells no longer listed, they are dropped
            RESULTS.parent.mkdir(exist_ok=True)
            write_json(RESULTS, {name: records[name] for name in order})
            print(f"{cell.name}: {summary(records[cell.name])}", flush=True)
        if records[cell.name].get("failed") != 0:
            code = 1
    return code


def summary(record: dict[str, Any] | None) -> str:
    """A record in a line."""
    if record is None:
        return "not run"
    if "problem" in record:
        return str(record["problem"])
    counts = ", ".join(f"{record[key]} {key}" for key in ("passed", "skipped", "failed"))
    return "\n    ".join([counts, *(f"{test}: {why}" for test, why in record["failures"].items())])


def run(cell: Cell, folder: Path) -> dict[str, Any]:
    """The record of a cell: what was installed and what the tests gave, or the problem that prevented it."""
    interpreter = find(f"python{cell.python}")
    if interpreter is None:
        return {"python": cell.python, "problem": f"there is no python{cell.python} here"}
    python = folder / "bin" / "python"
    # this environment's pip installs into the other: some interpreters come without one
    install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python), "install"]
    try:
        command([interpreter, "-m", "venv", "--without-pip", str(folder)], INSTALL_S)
        command([*install, "--quiet", "--no-compile", *requirements(cell)], INSTALL_S)
    except subprocess.SubprocessError as error:
        return {"python": cell.python, "problem": why(error)}
    return test(python)


def find(name: str) -> str | None:
    """The first program of that name on the PATH that runs: a version manager's shim may only say that it has none."""
    for folder in os.get_exec_path():
        program = shutil.which(name, path=folder)
        if program and subprocess.run([program, "-c", ""], capture_output=True, check=False).returncode == 0:
            return program
    return None


def requirements(cell: Cell) -> list[str]:
    """What pip is asked for: the package with its extra, the test tools and the pins."""
    pins = dict(cell.pins)
    if cell.oldest:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for line in [*project["dependencies"], *project["optional-dependencies"]["train"]]:
            needed = Requirement(line)
            (lowest,) = (each.version for each in needed.specifier if each.operator == ">=")
            pins.setdefault(needed.name, lowest)
    return [f"{ROOT}[train]", *TOOLS, *(f"{name}=={version}" for name, version in pins.items())]


def test(python: Path) -> dict[str, Any]:
    """Run the tests in an environment, against the package that is installed there."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-m", "not slow and not packaged and not gpu", f"--junitxml={report}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("PYTHONPATH", None)
        started = time.monotonic()
        record = {"versions": installed(python), "commit": commit()}
        try:
            done = subprocess.run(
                [str(python), "-m", "pytest", *TESTS, *options],
                cwd=ROOT, env=environment, timeout=TEST_S, capture_output=True, text=True, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            return {**record, "problem": why(error)}
        if not report.exists():
            return {**record, "problem": why_no_report(done.stdout + done.stderr)}
        return {**record, **counts(report), "seconds": round(time.monotonic() - started)}


def why_no_report(said: str) -> str:
    """Why pytest could not begin: its last line of an error, or the last line at all."""
    lines = said.strip().splitlines() or ["pytest said nothing"]
    return next((line[1:].strip() for line in reversed(lines) if line.startswith("E  ")), lines[-1])[:300]


def counts(report: Path) -> dict[str, Any]:
    """Passed, skipped with the reasons, and failed with the first line of each error, from a JUnit file."""
    passed, skipped, failures = 0, Counter[str](), {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        skip = case.find("skipped")
        if bad is not None:
            lines = bad.get("message", "").strip().splitlines() or ["?"]
            failures[f"{case.get('classname')}::{case.get('name')}"] = lines[0][:300]
        elif skip is not None:
            skipped[skip.get("message", "").removeprefix("Skipped: ")] += 1
        else:
            passed += 1
    return {
        "passed": passed,
        "skipped": skipped.total(),
        "failed": len(failures),
        "skips": dict(sorted(skipped.items())),
        "failures": failures,
    }


def installed(python: Path) -> dict[str, str]:
    """Versions in an environment."""
    code = "import importlib.metadata as m, json, platform, sys; print(json.dumps({'python': platform.python_version()"
    code += ", **{name: m.version(name) for name in sys.argv[1:]}}))"
    found: dict[str, str] = json.loads(command([str(python), "-c", code, *SHOWN], 60))
    return found


def commit() -> str:
    """What was tested; `-dirty` where anything but the records differs from that commit."""
    git = ["git", "-C", str(ROOT)]
    others = [".", f":!{RESULTS.relative_to(ROOT)}"]
    changed = command([*git, "status", "--porcelain", "--untracked-files=no", "--", *others], 10).strip()
    return command([*git, "rev-parse", "--short=12", "HEAD"], 10).strip() + ("-dirty" if changed else "")


def command(words: list[str], seconds: int) -> str:
    """Run a command and give its output; a CalledProcessError holds what it said."""
    return subprocess.run(words, timeout=seconds, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def why(error: subprocess.SubprocessError) -> str:
    """The lines of an error that say why, without the command line and its paths."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"not done after {error.timeout:g} s"
    said = getattr(error, "stderr", None) or str(error)
    lines = [line for line in said.splitlines() if line.startswith("ERROR")] or said.splitlines()[-1:]
    return " ".join(lines).replace("ERROR: ", "")[:300]


if __name__ == "__main__":
    sys.exit(main())
