"""Draws at full size, prints what came of it, and writes results/reliability/fuzz.json.

    PYTHONPATH=tests:docs python -m fuzzing [LAYER...] [--scale 0.1] [--seed N] [--kills N] [--jobs N]

Exits with 1 if anything failed. A run of all layers writes the record, of which `docs/fill.py` makes the table of
docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import shutil
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from aurora_lora.files import write_json
from aurora_lora.train.finished_run import versions
from forks import forked
from make.reliability import reliability_tables

from . import folders, texts
from .runner import Layer, Tally, run
from .world import World

RESULTS = Path(__file__).parents[2] / "results" / "reliability" / "fuzz.json"
MEMORY = 12 * 2**30
"""Bytes that a process may ask for: an input that wants more is a failure, and not the machine's end."""
_layers: dict[str, Layer] = {}


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", nargs="*", help="all by default")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of inputs")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--kills", type=int, default=60, help="runs that are killed by -9 and resumed")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args()
    start, failed, record = time.monotonic(), 0, {}
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder).resolve())
        all_layers = {**texts.layers(world), **folders.layers(world)}
        chosen = {name: layer for name, layer in all_layers.items() if not options.layers or name in options.layers}
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.jobs, spawned, initializer=_prepare, initargs=(folder,)) as pool:
            waiting = {
                name: pool.submit(_draw, name, max(1, round(options.scale * layer.full)), options.seed)
                for name, layer in chosen.items()
            }
            for name, one in waiting.items():
                tally = one.result()
                failed += tally.counts["tracebacks"] + tally.counts["silent"]
                print(f"{name}: {dict(tally.counts)}", *tally.failures.values(), sep="\n", flush=True)
                record[name] = {"what": chosen[name].what, "promise": chosen[name].promise, **tally.counts}
        if not options.layers:
            killed = kill_runs(world, options.kills, options.seed)
            failed += killed["runs"] - killed["identical"]
            whole = {"versions": versions(), "seed": options.seed, "layers": record, "kills": killed}
            whole["seconds"] = round(time.monotonic() - start)
            if options.scale >= 1:
                write_json(RESULTS, whole)
            print(reliability_tables(whole)["reliability"])
    print(f"{failed} failed")
    return 1 if failed else 0


def _prepare(folder: str) -> None:
    """What a process needs: no warnings, and a world of its own."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    world = World(Path(tempfile.mkdtemp(dir=folder)))
    _layers.update({**texts.layers(world), **folders.layers(world)})


def _draw(name: str, count: int, seed: int) -> Tally:
    return run(_layers[name], count, seed)


def kill_runs(world: World, kills: int, seed: int) -> dict[str, int]:
    """Kill runs by -9 just before a write, a rename or a deletion, up to three times each, and let them finish.

    Returns:
        How many `kills` there were in how many `runs`, and how many of these were `identical` in weights and scores.
    """
    rng, done, runs, identical = random.Random(seed), 0, 0, 0

    def order(output: Path, **more: Any) -> dict[str, Any]:
        return {"args": ["train", str(world.recipe), "--output", str(output)], "folder": str(output), **more}

    def trained(folder: Path) -> Any:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        weights = {
            (str(path.relative_to(folder)), name): tensor.numpy().tobytes()  # the order in a file is by chance
            for path in folder.rglob("*.safetensors")
            for name, tensor in load_file(path).items()
        }
        return weights, result["metric"], result["epochs"]

    with forked(Path(__file__).parents[1] / "train" / "zygote.py") as aurora:
        (answer,) = aurora(order(world.folder / "whole"))
        expected, events = trained(world.folder / "whole"), answer["events"]
        while done < kills:
            output = world.folder / "killed"
            shutil.rmtree(output, ignore_errors=True)
            for _ in range(rng.randint(1, 3)):
                (answer,) = aurora(order(output, kill_at=rng.randint(1, events)))
                done += answer["status"] == -9
            (answer,) = aurora(order(output))
            runs += 1
            identical += answer["status"] == 0 and trained(output) == expected
    return {"kills": done, "runs": runs, "identical": identical}
