"""The paper's tables and figures: the settings of every cell, each with its source, at two scales.

They are data, in `tables/*.yaml`. A suite has the fields of `Suite`, but that the rows of a group are lines of a text,

    name | recipe | form | the paper's score in each column | their average | parameters as the paper prints them

and that its recipes are put together from `layers`, in their order. A layer is of the recipes whose name without
`-{column}` matches one of the patterns `of`, in the columns `on`; without them, of all. It gives

- `values`: fields of the recipe, section by section;
- `fields` and `numbers`: dotted fields, and by column their values;
- `words`: further lines of what the recipe says of its settings, after `{opening}`, which is `{table}` if not given;
- `names`: what stands for `{name}` in any text; `column`, and the `label` of the column, are there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.resources import files
from typing import Any

from ...forms import MERGED
from ...train.recipe_files import parse, set_field
from .suite import CellRecipe, Column, Group, Row, Suite


def _suites(file: str) -> list[Suite]:
    text = (files("aurora_lora.lab.experiments") / "tables" / file).read_text(encoding="utf-8")
    return [make_suite(**values) for values in parse(text, file)["suites"]]


def make_suite(
    columns: Sequence[Mapping[str, Any]],
    groups: Mapping[str, str],
    layers: Sequence[Any],
    others: Sequence[str] = (),
    **fields: Any,
) -> Suite:
    """A suite from the values of a file: with the recipes of all cells that no other suite has, and of `others`."""
    every = [Column(**one) for one in columns]
    of_rows = {name: [_row(line, every) for line in lines.splitlines()] for name, lines in groups.items()}
    recipes = [row.recipe for rows in of_rows.values() for row in rows if "/" not in row.recipe]
    flat = [*_flat(layers)]
    return Suite(
        columns=tuple(every),
        groups=tuple(Group(name=name, rows=tuple(rows)) for name, rows in of_rows.items()),
        recipes={
            name.format(column=column.name): _recipe(name.removesuffix("-{column}"), column, flat)
            for name in dict.fromkeys([*recipes, *others])
            for column in (every if "{column}" in name else every[:1])
        },
        **fields,
    )


def _flat(layers: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
    for one in layers:
        yield from _flat(one) if isinstance(one, list) else [one]


def _row(line: str, columns: Sequence[Column]) -> Row:
    """A row of a table; what the paper prints of methods that are not its own, it takes from earlier work."""
    name, recipe, form, printed, average, params = [*map(str.strip, line.split("|")), *[""] * 4][:6]
    scores = dict(zip((column.name for column in columns), map(float, printed.split()), strict=bool(printed)))
    return Row(
        name=name,
        recipe=recipe,
        form=form or MERGED,
        params=params or None,
        quoted=bool(scores) and "aurora" not in recipe,
        scores=scores,
        average=float(average) if average else None,
    )


def _recipe(own: str, column: Column, layers: Sequence[Mapping[str, Any]]) -> CellRecipe:
    names, words = {"column": column.name, "label": column.label, "opening": "{table}"}, ["{opening}"]
    values: dict[str, Any] = {}
    for layer in layers:
        if column.name in layer.get("on", [column.name]) and any(fnmatchcase(own, one) for one in layer.get("of", "*")):
            names |= layer.get("names", {})
            words += layer.get("words", [])
            values = _merged(values, layer.get("values", {}))
            for field, number in zip(
                layer.get("fields", ()), layer.get("numbers", {}).get(column.name, ()), strict=True
            ):
                set_field(values, field, number)
    return CellRecipe(values=_filled(values, names), words=tuple(_filled(words, names)))


def _merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The values with others over them, section by section."""
    inside = {key: _merged(values.get(key, {}), value) for key, value in more.items() if isinstance(value, dict)}
    return {**values, **copy.deepcopy(dict(more)), **inside}


def _filled(value: Any, names: Mapping[str, Any]) -> Any:
    """The value with names in all of its texts."""
    if isinstance(value, dict):
        return {key: _filled(one, names) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, names) for one in value]
    while isinstance(value, str) and (filled := value.format_map(names)) != value:
        value = filled
    return value


SUITES: dict[str, dict[str, Suite]] = {}
"""Each suite, by name and scale."""
for _file in ("subjects", "glue", "commonsense", "images"):
    for _one in _suites(f"{_file}.yaml"):
        SUITES.setdefault(_one.name, {})[_one.scale] = _one
