"""`aurora list`: what there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .common import Json, print_json, stdout


def list_command(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="tasks, methods, models, recipes or suites.")],
    as_json: Json = False,
) -> None:
    """List the tasks, methods, models, recipes or suites (tables of the paper) that there are."""
    entries = _LISTS.get(what)
    if entries is None:
        from aurora_lora.errors import UserError
        from aurora_lora.methods.base import unknown

        raise UserError(f"'{what}' is an {unknown('list', _LISTS, what)}")
    rows = entries()
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    group = None
    for row in rows:
        if row.get("group") not in (None, group):
            group = row["group"]
            table.add_row(f"[bold]{group}[/bold]")
        table.add_row(row["name"], row["description"])
    stdout().print(table if rows else f"no {what} here")


def _tasks() -> list[dict[str, Any]]:
    from aurora_lora.tasks import TASKS

    keys = (
        "name",
        "group",
        "description",
        "kind",
        "labels",
        "metric",
        "metric_names",
        "test_sets",
        "source",
        "license",
    )
    return [{key: getattr(task, key) for key in keys} for task in TASKS.values()]


def _methods() -> list[dict[str, Any]]:
    from aurora_lora.methods import METHODS

    return [{"name": method.name, "description": method.description} for method in METHODS.values()]


def _models() -> list[dict[str, Any]]:
    from aurora_lora.tasks.models import MODELS

    keys = ("name", "description", "params", "license", "architecture")
    return [{key: getattr(model, key) for key in keys} for model in MODELS.values()]


def _recipes() -> list[dict[str, Any]]:
    """The recipes; each one's opening comment holds its command, then a description."""
    from aurora_lora.experiments.suite import SUITE, recipes_folder

    rows = []
    for path in map(_from_here, sorted(recipes_folder().rglob("*.yaml"))):
        if path.name == SUITE:
            continue
        comment = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            comment.append(line.lstrip("# ").rstrip())
        words = " ".join(line for line in comment[1:] if line)
        rows.append({"name": str(path), "description": words, "command": comment[0] if comment else ""})
    return rows


def _from_here(path: Path) -> Path:
    """As one would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _suites() -> list[dict[str, Any]]:
    from aurora_lora.experiments.suite import load_suite, suites

    rows = []
    for name, scales in suites().items():
        for scale in scales:
            title = load_suite(name, scale)[0].title
            rows.append({"name": f"{name} --scale {scale}", "suite": name, "scale": scale, "description": title})
    return rows


_LISTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "tasks": _tasks,
    "methods": _methods,
    "models": _models,
    "recipes": _recipes,
    "suites": _suites,
}
