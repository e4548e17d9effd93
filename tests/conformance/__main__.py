"""Runs PEFT's own test suite against AuroRA.

    PYTHONPATH=tests python -m conformance                  # or: make conformance
    PYTHONPATH=tests python -m conformance test_seq_classifier -k merge

Prints a table and exits with 1 if a test failed that is not expected to, if one passed that is expected to fail, or if
fewer than 1,000 passed. A run of all files writes results/conformance.json, of which `docs/fill.py` makes the tables of
docs/conformance.md. PEFT's tests and the models that they load are kept in .conformance/ (or `CONFORMANCE_CACHE`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from aurora_lora.files import write_json
from aurora_lora.machine import usable_cores

from . import hub
from .plugin import RECORD
from .suite import PACKAGE, fetch

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "conformance.json"
LEAST_PASSED = 1000
TIMEOUT_S = 1200
OUTCOMES = ("passed", "skipped", "xfailed", "failed")

# the longest first, so that two processes end at about the same time; and what a file imports beyond our own needs
FILES: Mapping[str, Sequence[str]] = {
    "test_custom_models": (),
    "test_decoder_models": (),
    "test_encoder_decoder_models": (),
    "test_feature_extraction_models": (),
    "test_seq_classifier": (),
    "test_quantization": ("bitsandbytes", "torchao"),
    "test_stablediffusion": ("diffusers",),
    "test_initialization": ("attrs",),
    "test_low_level_api": ("diffusers",),
    "test_vision_models": ("torchvision",),
    "test_tuners_utils": ("parameterized",),
    "test_trainable_tokens": (),
    "test_other": (),
    "test_token_classification_qa": (),
}
SHOWN = ("peft", "torch", "transformers", "diffusers", "bitsandbytes", "torchao")


def main() -> int:
    parser = argparse.ArgumentParser(prog="conformance", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"run only these: {', '.join(FILES)}")
    parser.add_argument("-k", metavar="EXPRESSION", help="run only tests that pytest's -k chooses")
    parser.add_argument("--jobs", type=int, default=min(2, usable_cores()), help="processes (default: %(default)s)")
    args = parser.parse_args()
    if unknown := set(args.files) - FILES.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}: choose from {', '.join(FILES)}")
    cache = Path(os.environ.get("CONFORMANCE_CACHE", ROOT / ".conformance")).absolute()
    cache.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    suite = fetch(cache)
    hub.fill(cache / "hub")
    chosen = [name for name in FILES if not args.files or name in args.files]
    with ThreadPoolExecutor(args.jobs) as pool:
        records = dict(zip(chosen, pool.map(lambda name: run(name, suite, cache, args.k), chosen), strict=True))
    seconds = round(time.monotonic() - started)
    whole = len(chosen) == len(FILES) and args.k is None
    if whole:
        RESULTS.parent.mkdir(exist_ok=True)
        write_json(RESULTS, {"versions": versions(), "seconds": seconds, "files": records})
    show(records, seconds)
    return 0 if passes(records, LEAST_PASSED if whole else 0) else 1


def run(name: str, suite: Path, cache: Path, expression: str | None) -> dict[str, Any]:
    """The record of one file: counts by outcome, reasons and how often each, failures with their error."""
    missing = [package for package in FILES[name] if not has(package)]
    if missing:
        return empty(not_run=f"needs {', '.join(missing)}")
    path = cache / f"{name}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-c", str(Path(__file__).with_name("pytest.ini")), "--rootdir=."]
    command += ["-p", "conformance.plugin", "-p", "no:cacheprovider", "-W", "ignore", "-q", "--tb=short"]
    command += [*(["-k", expression] if expression else []), f"{PACKAGE}/{name}.py"]
    environment = {
        **os.environ,
        "HF_HOME": str(cache / "hub"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        RECORD: str(path),
    }
    with (cache / f"{name}.log").open("w") as log:
        try:
            subprocess.run(command, cwd=suite, env=environment, stdout=log, stderr=log, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return empty(failed=1, failures={name: f"not done after {TIMEOUT_S} s"})
    if not path.exists():
        return empty(failed=1, failures={name: f"pytest did not end: {log.name}"})
    return empty(**json.loads(path.read_text()))


def empty(**more: Any) -> dict[str, Any]:
    """The record of a file without tests, with `more` in it."""
    return {**dict.fromkeys(OUTCOMES, 0), "left_out": 0, "reasons": {}, "rows": {}, "failures": {}, **more}


def passes(records: Mapping[str, Mapping[str, Any]], least: int) -> bool:
    """Whether nothing failed and enough passed."""
    return not any(r["failed"] for r in records.values()) and sum(r["passed"] for r in records.values()) >= least


def show(records: Mapping[str, Mapping[str, Any]], seconds: int) -> None:
    """Print the table, and what failed."""
    table = Table("file", *OUTCOMES, "left out", title=f"PEFT {version('peft')}'s tests on AuroRA, {seconds} s")
    rows = [(name, [r[key] for key in (*OUTCOMES, "left_out")]) for name, r in records.items()]
    for name, counts in [*rows, ("total", [sum(column) for column in zip(*(c for _, c in rows), strict=True)])]:
        table.add_row(name, *(f"{count:,}" for count in counts))
    Console().print(table)
    for name, record in records.items():
        if "not_run" in record:
            print(f"{name} was not run: {record['not_run']}")
        for test, why in record["failures"].items():
            print(f"failed: {name}::{test}: {why}")


def has(package: str) -> bool:
    """Whether a distribution is installed."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def versions() -> dict[str, str]:
    """What the tests ran with."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python, **{name: version(name) for name in SHOWN if has(name)}}


if __name__ == "__main__":
    sys.exit(main())
