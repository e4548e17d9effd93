"""Tables of every field of a recipe, from the classes that validate it."""

from __future__ import annotations

import ast
import inspect
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel

from aurora_lora.diffusion.recipe import SubjectRecipe
from aurora_lora.lab.experiments.study import Study
from aurora_lora.methods import Method
from aurora_lora.text_table import TextTable
from aurora_lora.train.recipe import Recipe

WORDS = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`", Method: "name or section"}
RECIPES: dict[str, type[BaseModel]] = {"recipe": Recipe, "recipe of a subject": SubjectRecipe, "study": Study}


def recipe_fields() -> dict[str, str]:
    """A table for each section of each kind of recipe, with headings, by the kind."""
    return {name: "\n\n".join(_tables(recipe, "")) for name, recipe in RECIPES.items()}


def _tables(section: type[BaseModel], at: str) -> list[str]:
    """The table of a section, and after it those of the sections in it."""
    words = _docstrings(section)
    table = TextTable("", ["field", "is", "default", ""], align="llll")
    below: list[str] = []
    for name, field in section.model_fields.items():
        own = field.alias or name
        if (inner := _section(field.annotation)) is not None:
            below += _tables(inner, f"{at}{own}.")
        table.rows.append([f"`{own}`", _is(field.annotation), _default(field), words.get(name, "")])
    about = " ".join((inspect.getdoc(section) or "").split())
    title = f"### `{at.rstrip('.')}`\n\n{about}\n\n" if at else ""
    return [title + table.markdown(), *below]


def _docstrings(section: type[BaseModel]) -> dict[str, str]:
    """What stands below each field in the source, of the class and of those that it extends."""
    found: dict[str, str] = {}
    for owner in reversed(section.__mro__):
        if not issubclass(owner, BaseModel) or owner is BaseModel:
            continue
        (node,) = ast.parse(inspect.getsource(owner)).body
        assert isinstance(node, ast.ClassDef)
        for one, after in zip(node.body, node.body[1:], strict=False):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and is_text:
                found[one.target.id] = str(after.value.value)  # type: ignore[attr-defined]
    return found


def _section(annotation: Any) -> type[BaseModel] | None:
    parts = [get_args(one)[0] if get_origin(one) is tuple else one for one in members(annotation)]
    return next((one for one in parts if is_section(one)), None)


def members(kind: Any) -> list[Any]:
    """The types that a union joins, or the one that it is; without None."""
    if get_origin(kind) is Annotated:
        return members(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [one for each in get_args(kind) for one in members(each)]
    return [] if kind in (None, NoneType) else [kind]


def is_section(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _is(annotation: Any) -> str:
    """What a field takes, for people."""
    shown = []
    for one in members(annotation):
        if get_origin(one) is Literal:
            shown += [f"`{value}`" for value in get_args(one)]
        elif get_origin(one) is tuple:
            item = get_args(one)[0]
            shown.append("list of sections" if _section(item) is not None else f"list of {_is(item)}")
        elif dict in (one, get_origin(one)):
            shown.append("section")
        elif is_section(one):
            named = {"name", "setting"} & one.model_fields.keys()
            shown.append("name or section" if named else "section")
        else:
            shown.append(WORDS.get(one, getattr(one, "__name__", str(one))))
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _default(field: Any) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "as below"
    if value is None:
        return "`null`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else f'{value:g}' if isinstance(value, float) else value}`"
