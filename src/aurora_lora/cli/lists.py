"""`aurora list`: what there is."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from aurora_lora.errors import UserError, unknown

from .common import Json, print_json, stdout

if TYPE_CHECKING:
    from aurora_lora.lab.experiments.recipes import Found, RecipeKind


def list_command(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="tasks, methods, models, recipes, suites or studies; recipe or study.")
    ],
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of the recipe or study to print.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every cell of the paper's tables among the recipes.")] = False,
    as_json: Json = False,
) -> None:
    """List the tasks, methods, models, recipes, suites (tables of the paper) or studies that there are.

    `aurora list recipe NAME` and `aurora list study NAME` print one as YAML, to be changed:
    `aurora list recipe table1/base-lora-rte > mine.yaml`.
    """
    if (kind := _KINDS.get(what)) is not None:
        _print_one(kind, name, as_json)
        return
    entries = _LISTS.get(what)
    if entries is None:
        raise UserError(f"'{what}' is an {unknown('list', _LISTS, what)}")
    if name is not None:
        raise UserError(f"'{name}': `aurora list {what}` takes no name, `aurora list recipe` and `study` do")
    rows = entries()
    if as_json:
        print_json(rows)
        return
    shown = rows if what != "recipes" or every else _FIRST
    console = stdout()
    for group, of_group in groupby(shown, key=lambda row: row.get("group")):
        if group is not None:
            console.print(group, style="bold", soft_wrap=True)
        table = Table.grid(Column(no_wrap=True), Column(), padding=(0, 2, 0, 0))
        for row in of_group:
            table.add_row(row["name"], row.get("title") or row["description"])
        console.print(table)
    if not rows:
        print(f"no {what} here")
    if len(shown) < len(rows):
        print(f"\n{len(rows) - len(shown)} more, most from the paper's tables: `aurora list recipes --all`")


def init(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="classification, regression, multi-label, choices, images or chat.")
    ],
) -> None:
    """Print a commented recipe to start from with your own data: `aurora init classification > mine.yaml`."""
    from aurora_lora.train.recipe_files import start

    print(start(kind).yaml(), end="")


def _print_one(kind: RecipeKind, name: str | None, as_json: bool) -> None:
    from aurora_lora.lab.experiments.recipes import find

    if name is None:
        raise UserError(f"`aurora list {kind} NAME` prints one; which?")
    found = find(name, kind)
    if as_json:
        print_json({**_described(found), kind: found.values()})
    else:
        print(found.yaml(), end="")


def _tasks() -> list[dict[str, Any]]:
    from aurora_lora.data import TASKS
    from aurora_lora.data.dreambooth import DREAMBOOTH
    from aurora_lora.train.kind_facts import facts_of

    described = ("name", "group", "description", "kind", "labels", "metric", "metric_names")
    keys = (*described, "test_sets", "source", "license")
    rows = [{key: getattr(task, key, None) for key in (*keys, "license")} for task in (*TASKS.values(), DREAMBOOTH)]
    for row, task in zip(rows, TASKS.values(), strict=False):  # image generation is no kind of `training`
        row["metric_names"] = facts_of(task).metric_names(task)
    return rows


def _methods() -> list[dict[str, Any]]:
    from aurora_lora.methods import DESCRIPTIONS

    return [{"name": name, "description": description} for name, description in DESCRIPTIONS.items()]


def _models() -> list[dict[str, Any]]:
    from aurora_lora.data.models import MODELS

    keys = ("name", "description", "params", "license", "architecture")
    return [{key: getattr(model, key) for key in keys} for model in MODELS.values()]


def _recipes() -> list[dict[str, Any]]:
    from aurora_lora.lab.experiments.recipes import named
    from aurora_lora.train.recipe_files import starting

    return list(map(_described, (*starting().values(), *named("recipe").values())))


def _studies() -> list[dict[str, Any]]:
    from aurora_lora.lab.experiments.recipes import named

    return [_described(found) for found in named("study").values()]


def _described(found: Found) -> dict[str, Any]:
    """The opening comment holds the command, then a description; a cell's first line says which it is."""
    from aurora_lora.lab.experiments.recipes import RecipeOfCell

    command, *words = [line for line in found.opening() if line] or [""]
    row = {"name": found.source, "description": " ".join(words), "command": command}
    if isinstance(found, RecipeOfCell):
        suite = found.suite
        row |= {"group": f"{suite.title} (--scale {suite.scale})", "suite": suite.name, "scale": suite.scale}
        row |= {"title": words[0]}
    return row


def _suites() -> list[dict[str, Any]]:
    from aurora_lora.lab.experiments.recipes import load_suite, suites

    rows = []
    for name, scales in suites().items():
        for scale in scales:
            title = load_suite(name, scale).title
            rows.append({"name": f"{name} --scale {scale}", "suite": name, "scale": scale, "description": title})
    return rows


_FIRST: list[dict[str, Any]] = [
    {"group": group, "name": name, "title": title}
    for group, found in {
        "Your own data: `aurora train NAME task.data=FILE ...`, or `aurora init NAME`": {
            "classification": "texts, or pairs of texts, with a label each",
            "multi-label": "texts with any number of labels",
            "regression": "texts with a number each",
            "choices": "questions with options, one of them right",
            "chat": "conversations, for a language model",
            "images": "images with a label each",
        },
        "Ready to run: `aurora train NAME`": {
            "demo": "film reviews and a small real model",
            "table1/base-aurora-rte": "the paper's Table 1: RTE, RoBERTa base",
            "table3/aurora-digits": "its Table 3 with a small model: handwritten digits",
            "figure4/dog-aurora": "its Figure 4: SDXL draws a given dog",
        },
    }.items()
    for name, title in found.items()
]
"""The recipes that a person starts from."""
_KINDS: dict[str, RecipeKind] = {"recipe": "recipe", "study": "study"}
_LISTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "tasks": _tasks,
    "methods": _methods,
    "models": _models,
    "recipes": _recipes,
    "suites": _suites,
    "studies": _studies,
}
