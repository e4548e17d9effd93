"""Draws at full size, prints what came of it, and writes results/reliability/fuzz.json.

    PYTHONPATH=tests:docs python -m fuzzing [LAYER...] [--scale 0.1] [--seed N] [--kills N] [--jobs N]

Exits with 1 if anything failed. A run of all layers writes the record, of which `docs/fill.py` makes the table of
docs/reliability.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from aurora_lora.files import write_json
from aurora_lora.train.results import versions
from make.reliability import reliability_tables

from . import kills
from .pieces import all_layers, draw
from .runner import Tally
from .world import World

RESULTS = Path(__file__).parents[2] / "results" / "reliability" / "fuzz.json"


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", nargs="*", help="all by default")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of inputs")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--kills", type=int, default=60, help="runs that are killed by -9 and resumed")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder).resolve())
        chosen = [layer for layer in all_layers(world) if not options.layers or layer.name in options.layers]
        tallies = draw(chosen, options.scale, options.seed, options.jobs, _print)
        killed = None if options.layers else kills.kill_runs(world, options.kills, options.seed)
    failed = sum(tally.tracebacks + tally.silent for tally in tallies.values())
    if killed is not None:
        print(f"kills by -9: {killed['kills']} in {killed['runs']} runs, {killed['identical']} identical")
        failed += killed["runs"] - killed["identical"]
        layers = {name: asdict(tally) for name, tally in tallies.items()}
        record = {"versions": versions(), "seed": options.seed, "layers": layers, "kills": killed}
        record["seconds"] = round(time.monotonic() - start)
        if options.scale >= 1:
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            write_json(RESULTS, record)
        print(reliability_tables(record)["reliability"])
    print(f"{failed} failed")
    return 1 if failed else 0


def _print(name: str, tally: Tally) -> None:
    print(
        f"{name}: {tally.inputs:,} inputs in {tally.seconds:.0f} s, {tally.refused:,} refused, {tally.accepted:,} "
        f"accepted, {tally.tracebacks} tracebacks, {tally.silent} accepted and wrong",
        flush=True,
    )
    for one in tally.failures:
        print(f"  {one['error']}\n    {one['input']}\n{one['trace']}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
