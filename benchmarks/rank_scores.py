"""Which score of a probe's directions should decide on the ranks, and how an aligned start should be scaled.

    aurora train teacher --output runs/teacher
    python benchmarks/rank_scores.py --output results/rank-scores [--only "S by weight"]

Captured effect on validation sentences, as in the study ranks-short (126 steps), of LoRA with 18,432 weights shared out
among all linear layers: no activation between A and B, so that ranks and start alone differ. Seeds 10 to 12, which
no study uses, each with its own split of the data. At the rate that the study chose, and with --rates at others: the
best mean counts.
One line of OUTPUT/runs.jsonl for each run, written as it is finished; what is there is not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from aurora_lora.deploy.align import DEVIATION, aligned_rows
from aurora_lora.deploy.probe import LayerProbe, Loss, Probe
from aurora_lora.deploy.ranks import cost, share_out, squared_by_weight
from aurora_lora.train import probing, train
from aurora_lora.train.data import Data
from aurora_lora.train.probing import probe_for
from aurora_lora.train.progress import quiet_libraries
from aurora_lora.train.recipe import Recipe, validate

BUDGET = 18_432
RATE = 5e-3
SEEDS = (10, 11, 12)
METRIC = "captured"
RECIPE: dict[str, Any] = {
    "name": "rank-scores",
    "model": "minilm-l6",
    "task": {
        "name": "movie-sentiment",
        "train_size": 1000,
        "validation_size": 500,
        "test_size": 100,
        "max_length": 32,
    },
    "method": {"name": "lora", "r": 8, "lora_alpha": 16, "budget": BUDGET, "start": "aligned"},
    "training": {"epochs": 2, "batch_size": 16, "eval_batch_size": 128, "max_grad_norm": 0, "threads": 1},
}

Worth = Callable[[LayerProbe], Tensor]


def power(layer: LayerProbe, exponent: float, by_weight: bool = True) -> Tensor:
    return layer.singular_values.double() ** exponent / (cost(layer) if by_weight else 1)


def by_inputs(layer: LayerProbe, exponent: float) -> Tensor:
    """S^2 times a power of the inputs' deviation along the direction: 2 is the change of the layer's outputs by a step.

    The deviation is cut where it rises, so that directions are taken in their order.
    """
    worth = squared_by_weight(layer) * layer.deviations.double() ** exponent
    return worth.cummin(0).values


@dataclass(frozen=True)
class Way:
    """How ranks and start are had.

    Args:
        worth: of each direction, for the ranks.
        examples: that are probed.
        deviation: of each z at the start.
        steps: of AdamW with the ranks and the start of a first pass; a second pass, over what has come of it, then
            decides, and the run begins anew.
    """

    worth: Worth = squared_by_weight
    examples: int = 256
    deviation: float = DEVIATION
    steps: int = 0


WAYS = {
    "S^2 by weight": Way(),
    "S by weight": Way(partial(power, exponent=1.0)),
    "S^4 by weight": Way(partial(power, exponent=4.0)),
    "S^2, not by weight": Way(partial(power, exponent=2.0, by_weight=False)),
    "S^2 by weight, times the variance of z": Way(partial(by_inputs, exponent=2.0)),
    "S^2 by weight, over the variance of z": Way(partial(by_inputs, exponent=-2.0)),
    "S^2 by weight, 16 examples": Way(examples=16),
    "S^2 by weight, 48 examples": Way(examples=48),
    "S^2 by weight, deviation 1/4": Way(deviation=0.25),
    "S^2 by weight, deviation 1": Way(deviation=1.0),
    "S^2 by weight, second pass after 16 steps": Way(steps=16),
    "S^2 by weight, second pass after 63 steps": Way(steps=63),
}


def second_pass(recipe: Recipe, base: nn.Module, data: Data, loss: Loss, steps: int) -> Probe:
    """The probe of the base with an update that was trained for some steps, merged into it."""
    first = probing.decided(recipe.method, probe_for(recipe, base, data, loss), recipe.method.options["budget"])
    adapted = first.resolved(recipe).method.apply(copy.deepcopy(base), recipe.task.kind.task_type)
    first.align(adapted)
    adapted.train()
    optimizer = torch.optim.AdamW(
        [parameter for parameter in adapted.parameters() if parameter.requires_grad],
        lr=recipe.training.learning_rate,
        weight_decay=0.0,
    )
    batches = data.training_batches(1.0, recipe.training.batch_size)
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    for number in order[:steps]:
        torch.autograd.backward(loss(adapted, batches[number]))
        optimizer.step()
        optimizer.zero_grad()
    return probe_for(recipe, adapted.merge_and_unload(), data, loss)


def recipe(way: Way, seed: int, rate: float, teacher: Path) -> Recipe:
    values = {**RECIPE, "seed": seed}
    values["task"] = {**RECIPE["task"], "split_seed": seed, "teacher": str(teacher)}
    values["training"] = {**RECIPE["training"], "learning_rate": rate}
    values["method"] = {**RECIPE["method"], "probe_examples": way.examples}
    return validate(values, "rank-scores")


def trained(way: Way, wanted: Recipe, folder: Path) -> dict[str, Any]:
    with ExitStack() as stack:
        stack.enter_context(patch.object(probing, "share_out", partial(share_out, worth=way.worth)))
        stack.enter_context(patch.object(probing, "aligned_rows", partial(aligned_rows, deviation=way.deviation)))
        if way.steps:
            stack.enter_context(patch.object(probing, "probe_for", partial(second_pass, steps=way.steps)))
        return train(wanted, folder).result


def run(name: str, seed: int, rate: float, teacher: Path, folder: Path) -> dict[str, Any]:
    way = WAYS[name]
    result = trained(way, recipe(way, seed, rate, teacher), folder)
    return {
        "way": name,
        "seed": seed,
        "learning_rate": rate,
        "metric": METRIC,
        "validation": result["metric"]["selected_by"]["value"],
        "weights": result["params"]["adapter"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, default=Path("runs/teacher"))
    parser.add_argument("--runs", type=Path, default=Path("runs/rank-scores"))
    parser.add_argument("--rates", nargs="*", type=float, default=[RATE])
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--only", nargs="*", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "runs.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may have cut the last one
    if len(rows) < len(lines):
        path.write_text("".join(lines[: len(rows)]))
    done = {(row["way"], row["seed"], row["learning_rate"]) for row in rows}
    for seed in args.seeds:
        for rate in args.rates:
            for name in args.only:
                if (name, seed, rate) in done:
                    continue
                folder = args.runs / f"{list(WAYS).index(name)}-{seed}-{rate}"
                rows.append(run(name, seed, rate, args.teacher, folder))
                with path.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                shutil.rmtree(folder)
    for name in WAYS:
        by_rate = {
            rate: [row["validation"] for row in rows if (row["way"], row["learning_rate"]) == (name, rate)]
            for rate in {row["learning_rate"] for row in rows}
        }
        means = {rate: statistics.mean(values) for rate, values in by_rate.items() if values}
        if means:
            best = max(means, key=means.__getitem__)
            each = ", ".join(f"{100 * value:.1f}" for value in by_rate[best])
            print(f"{name}: {100 * means[best]:.1f} at {best:g} ({each})")


if __name__ == "__main__":
    main()
