"""The fields of a recipe's `task` that name data of the user's own: what `docs/your-data.md` tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from ..data.own.kinds import OWN, OwnKind
from ..data.own.source import OwnData
from ..data.task import Task
from ..errors import UserError


def _names(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value and (value,)
    if isinstance(value, list | tuple) and value and all(isinstance(one, str) for one in value):
        return value
    scalars = value if isinstance(value, list | tuple) else [value]
    other = next((json.dumps(one) for one in scalars if isinstance(one, int | float)), None)
    hint = "" if other is None else f': put {other} in quotes, "{other}", where that is a name'
    raise PydanticCustomError("columns", "the name of a column, or a list of names{hint}", {"hint": hint})


Columns = Annotated[tuple[str, ...], BeforeValidator(_names), Field(strict=False)]
"""The name of a column, or a list of them."""


class OwnFields(BaseModel):
    """Where the data is, and which columns are what. Only for the tasks of `OWN`, such as `classification`."""

    data: str | None = None
    """A file (.csv, .tsv, .json, .jsonl, .parquet, .arrow), a folder, or a data set of the hub (`owner/name`)."""
    validation_data: str | None = None
    """The same for validation; where neither it nor a split of `data` gives it, a share of the training rows."""
    test_data: str | None = None
    """The same for the test."""
    config: str | None = None
    """Of a data set of the hub, or of a folder whose README.md has `configs`: its configuration."""
    revision: str | None = None
    """Of a data set of the hub: a branch, a tag or a commit."""
    encoding: str | None = None
    """Of text files; `null`: UTF-8."""
    train_split: str | None = None
    """Which split of the data to train on; `null`: the one of this name, or the only one."""
    validation_split: str | None = None
    """The same for validation; also `valid`, `val` and `dev` are looked for."""
    test_split: str | None = None
    """The same for the test."""
    text: Columns | None = None
    """The column with the texts; two columns for pairs of texts."""
    label: Columns | None = None
    """The column with the labels or numbers; for `multi-label` also one column of 0 and 1 a label. Numbers are trained
    standardised, and given in their own units."""
    question: Columns | None = None
    """Of `choices`: the column with the questions."""
    options: Columns | None = None
    """Of `choices`: a column with a list, or one column an option."""
    answer: Columns | None = None
    """Of `choices`: the right option, by its text, its letter, its column, or its number from 0."""
    image: Columns | None = None
    """Of `images`: the column with the images, where they are no files in folders by class."""


_COLUMNS = ("text", "label", "question", "options", "answer", "image")
_ANSWERS = ("label", "answer")
"""Those of what is learned; the others are read."""


def own_task(kind: OwnKind, values: Mapping[str, Any]) -> Task:
    """The task that these fields make; those that name no column have their defaults."""
    return kind.task(*own_source(kind, values))


def own_source(kind: OwnKind, values: Mapping[str, Any]) -> tuple[OwnData, dict[str, tuple[str, ...]]]:
    """Where the data of such a task is, and its columns by the fields that name them."""
    source: dict[str, Any] = {name: values.get(name) for name in OwnData.__dataclass_fields__}
    source["data"] = source["data"] or "data"
    return OwnData(**source), {name: values.get(name) or default for name, default in kind.columns.items()}


def own_columns(name: str) -> dict[str, Any]:
    """The columns that are meant where a recipe of the task of this name names none."""
    return dict(OWN[name].columns) if name in OWN else {}


def check_own(fields: OwnFields, name: str) -> None:
    """Raise a UserError, which begins with the field, where a field does not go with the task of this name."""
    given = [field for field in OwnFields.model_fields if getattr(fields, field) is not None]
    kind = OWN.get(name)
    if kind is None:
        if given:
            raise UserError(f"{given[0]}: only your own data has it, and task.name is '{name}', not {either(OWN)}")
        return
    if fields.data is None:
        raise UserError("data: this field must be given: a file, a folder, or a data set of the hub (owner/name)")
    for field in _COLUMNS:
        names = getattr(fields, field)
        if names is not None and field not in kind.columns:
            those = either([one.name for one in OWN.values() if field in one.columns])
            raise UserError(f"{field}: only {those} has it, and task.name is '{name}'")
        if names is not None and len(names) > (most := kind.several.get(field, 1)):
            raise UserError(f"{field}: {len(names)} columns are too many: it takes {'one' if most == 1 else most}")
        if names is not None and len(set(names)) < len(names):
            raise UserError(f"{field}: a column is named twice")
    columns = {field: getattr(fields, field) or default for field, default in kind.columns.items()}
    answers = {name: field for field in _ANSWERS for name in columns.pop(field, ())}
    columns.pop("options", None)  # which are all read, the right one among them
    for field, names in columns.items():
        if shared := next((name for name in names if name in answers), None):
            raise UserError(
                f"{field}: '{shared}' is the column of task.{answers[shared]} as well: the model would read what it is "
                "to answer"
            )


def either(names: Any) -> str:
    """`a`, `a or b`, `a, b or c`."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else str(last)
