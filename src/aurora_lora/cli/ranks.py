"""The command that says where an adapter's weights would do most: rank."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aurora_lora.errors import abridged, counted

from .common import Json, RecipeName, make_models, quiet
from .measured import check_place, write_measured
from .printing import note, print_json, print_tables, stderr

NAMED = 3
"""How many layers a note names, of those that it is about."""


def rank(
    recipe: RecipeName,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, such as method.name=lora."),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option("--budget", metavar="N", min=1, help="Weights of A and B to share out. Default: the recipe's."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder for ranks.json, ranks.png and ranks.svg."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Where an adapter's weights would do most: ranks by the loss's gradient, before any training.

    One probing pass over training examples, then tables of the gradient's spectrum and of what the budget buys, and the
    method as YAML, for a recipe. `method: {budget: N}` in a recipe does the same within its run, where `target_modules`
    limits what the budget is spent on; `--budget` looks at all linear layers, unless the recipe has a budget itself.
    """
    from aurora_lora.errors import UserError
    from aurora_lora.lab.experiments.recipe_kinds import load_any
    from aurora_lora.lab.report.ranks_figure import RANKS, ranks_figure, ranks_tables
    from aurora_lora.train import recipe_files
    from aurora_lora.train.recipe import Recipe

    plan = load_any(recipe, overrides or ())
    if not isinstance(plan, Recipe):
        raise UserError("task.name: rank needs a task with labels, not subject-driven generation")
    if output is not None:
        check_place(output / RANKS, ("ranks",))
    quiet()
    make_models([plan.model])
    from aurora_lora.train.ranking import ranking

    with stderr().status("probing"):
        record = ranking(plan, budget)
    if record["left_out"]:
        stderr().print(
            f"method.{', method.'.join(record['left_out'])}: left out, the budget decides on modules and ranks"
        )
    if without := record["without_gradient"]:
        text = f"{counted(len(without), 'layer')} got no gradient, and so no rank: {abridged(without, NAMED)}"
        note(text)
    if output is not None:
        write_measured(output / RANKS, record, {"ranks": ranks_figure}, f"{plan.task.name}, {plan.model}", as_json)
    elif as_json:
        print_json(record)
    if as_json:
        return
    print_tables(ranks_tables(record))
    print(recipe_files.dump({"method": record["method"]}), end="")
