"""Runs that are killed by -9 at any moment and started again: they end as the run that nothing happened to."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from forks import forked

from .world import World

ZYGOTE = Path(__file__).parents[1] / "train" / "zygote.py"


def kill_runs(world: World, kills: int, seed: int) -> dict[str, int]:
    """Kill runs just before a write, a rename or a deletion, up to three times each, and let them finish.

    Returns:
        How many `kills` there were in how many `runs`, and how many of these were `identical` in weights and scores.
    """
    rng, done, runs, identical = random.Random(seed), 0, 0, 0
    with forked(ZYGOTE) as aurora:
        (answer,) = aurora(_order(world, world.folder / "whole"))
        expected, events = _trained(world.folder / "whole"), answer["events"]
        while done < kills:
            output = world.folder / "killed"
            shutil.rmtree(output, ignore_errors=True)
            for _ in range(rng.randint(1, 3)):
                (answer,) = aurora(_order(world, output, kill_at=rng.randint(1, events)))
                done += answer["status"] == -9
            (answer,) = aurora(_order(world, output))
            runs += 1
            identical += answer["status"] == 0 and _trained(output) == expected
    return {"kills": done, "runs": runs, "identical": identical}


def _order(world: World, output: Path, **more: Any) -> dict[str, Any]:
    return {"args": ["train", str(world.recipe), "--output", str(output)], "folder": str(output), **more}


def _trained(folder: Path) -> Any:
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    weights = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}
    return weights, result["metric"], result["epochs"]
