"""`aurora list`: what there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .common import Json, print_json, stdout

STUDIES = "studies"


def list_command(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="tasks, methods, models, recipes, suites or studies.")],
    as_json: Json = False,
) -> None:
    """List the tasks, methods, models, recipes, suites (tables of the paper) or studies that there are."""
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
    table.add_column(no_wrap=True)
    table.add_column()
    for row in rows:
        if row.get("group") not in (None, group):
            group = row["group"]
            table.add_row(group, style="bold")
        table.add_row(row["name"], row["description"])
    stdout().print(table if rows else f"no {what} here")


def _tasks() -> list[dict[str, Any]]:
    from aurora_lora.tasks import TASKS
    from aurora_lora.tasks.dreambooth import DREAMBOOTH

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
    return [{key: getattr(task, key) for key in keys} for task in (*TASKS.values(), DREAMBOOTH)]


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

    folder = recipes_folder()
    paths = (path for path in sorted(folder.rglob("*.yaml")) if path.name != SUITE and STUDIES not in path.parts)
    return [_described(path) for path in paths]


def _studies() -> list[dict[str, Any]]:
    from aurora_lora.experiments.suite import recipes_folder

    return [_described(path) for path in sorted((recipes_folder() / STUDIES).glob("*.yaml"))]


def _described(path: Path) -> dict[str, Any]:
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# ").rstrip())
    words = " ".join(line for line in comment[1:] if line)
    return {"name": str(_from_here(path)), "description": words, "command": comment[0] if comment else ""}


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
    "studies": _studies,
}
