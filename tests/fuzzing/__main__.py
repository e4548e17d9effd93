"""Draws at full size, prints what came of it, and writes results/reliability/fuzz.json.

    PYTHONPATH=tests python -m fuzzing [LAYER...] [--scale 0.1] [--seed N] [--kills N]

Exits with 1 if anything failed. A run of all layers writes the record, of which `docs/fill.py` makes the table of
docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

from aurora_lora.files import write_json
from aurora_lora.report.reliability import reliability_tables
from aurora_lora.training.results import versions

from . import commands, folders, kills, texts
from .runner import Layer, Tally, run
from .world import World

RESULTS = Path(__file__).parents[2] / "results" / "reliability" / "fuzz.json"


def all_layers(world: World) -> list[Layer]:
    """Every layer, the fast ones first."""
    return [*texts.layers(world), *commands.layers(world), *folders.layers(world)]


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", nargs="*", help="all by default")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of inputs")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--kills", type=int, default=60, help="runs that are killed by -9 and resumed")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder).resolve())
        for layer in all_layers(world):
            if options.layers and layer.name not in options.layers:
                continue
            tallies[layer.name] = run(layer, max(1, round(options.scale * layer.full)), options.seed)
            _print(layer.name, tallies[layer.name])
        killed = None if options.layers else kills.kill_runs(world, options.kills, options.seed)
    failed = sum(tally.tracebacks + tally.silent for tally in tallies.values())
    if killed is not None:
        print(f"kills by -9: {killed['kills']} in {killed['runs']} runs, {killed['identical']} identical")
        failed += killed["runs"] - killed["identical"]
        layers = {name: asdict(tally) for name, tally in tallies.items()}
        record = {"versions": versions(), "seed": options.seed, "layers": layers, "kills": killed}
        if options.scale >= 1:
            write_json(RESULTS, record)
        print(reliability_tables(record)["reliability"])
    print(json.dumps({"failures": failed}))
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
