"""Recipes, studies and suites by name: the cells of the paper's tables, and the YAML files that come with the package.

`table1/base-lora-rte` is a cell, `demo` a file, `captured-effect` a study. What is no name is a file of the user's.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import UserError, unknown
from ...train import recipe_files
from ...train.recipe_files import ENDINGS, RecipeFile, file_named, files_in, starting

if TYPE_CHECKING:  # the cells need PyTorch; a file does not
    from ...train.recipe import RunRecipe
    from .suite import Suite

RecipeKind = Literal["recipe", "study"]
_LISTS = {"recipe": "recipes", "study": "studies"}
_FOLDERS = {"recipe": ".", "study": "studies"}


@dataclass(frozen=True)
class RecipeOfCell:
    """A recipe of a suite."""

    suite: Suite
    name: str

    @property
    def source(self) -> str:
        """The name of the recipe, as a user types it."""
        return f"{self.suite.name}/{self.name}"

    def values(self) -> dict[str, Any]:
        """The fields of the recipe; the caller's own copy."""
        return {"name": f"{self.suite.name}-{self.name}", **copy.deepcopy(self.suite.recipes[self.name].values)}

    def yaml(self) -> str:
        """The recipe as a YAML file: its command, what it is, and its fields."""
        comment = "\n".join(f"# {line}".rstrip() for line in self.opening())
        return f"{comment}\n{recipe_files.dump(self.values())}"

    def opening(self) -> list[str]:
        """The lines above the fields: the recipe's command, and what it is."""
        folder = f"runs/{self.suite.scale}/{self.source}"
        return [f"aurora train {self.source} --output {folder}", "", *self.suite.recipes[self.name].words]


Found = RecipeFile | RecipeOfCell


def suites() -> dict[str, list[str]]:
    """The suites that there are, and the scales of each."""
    from .paper import SUITES

    return {name: list(scales) for name, scales in SUITES.items()}


def load_suite(name: str, scale: str) -> Suite:
    """A suite.

    Raises:
        UserError: there is no such suite, or not at this scale.
    """
    from .paper import SUITES

    if name not in SUITES:
        raise UserError(f"'{name}' is an {unknown('suite', SUITES, name)}")
    if scale not in SUITES[name]:
        raise UserError(f"scale '{scale}' is not allowed: {name} is there at scale {' and '.join(SUITES[name])}")
    return SUITES[name][scale]


def named(kind: RecipeKind) -> dict[str, Found]:
    """The recipes or studies that have a name: the files of the package, then the cells of its suites."""
    found: dict[str, Found] = {**files_in(_FOLDERS[kind])}
    if kind == "recipe":
        for suite in (load_suite(name, scale) for name, scales in suites().items() for scale in scales):
            found.update((f"{suite.name}/{name}", RecipeOfCell(suite, name)) for name in suite.recipes)
    return found


def find(given: Path | str, kind: RecipeKind) -> Found:
    """What a user means by a name or a file.

    As `file_named`, with the names of cells before a file that is called so.

    Args:
        given: a name or a file's name; a `Path` is always a file.
        kind: what is wanted.

    Raises:
        UserError: it is no name and no file; the message has the nearest name.
    """
    files = {**(starting() if kind == "recipe" else {}), **files_in(_FOLDERS[kind])}
    file = file_named(given, files)
    if file is not None and (isinstance(given, Path) or "/" not in given or given.endswith(ENDINGS)):
        return file  # no cell is called so
    name = str(given)
    known = {**files, **named(kind)}
    if (found := known.get(name, file)) is not None:
        return found
    others: dict[str, Collection[str]] = {"suite": suites(), "study": named("study"), "recipe": named("recipe")}
    for (other, names), command in zip(others.items(), ("reproduce", "sweep", "train"), strict=True):
        if name in names:
            raise UserError(f"'{name}' is a {other}, not a {kind}: aurora {command} {name}")
    raise UserError(f"'{name}' is no file, and an {unknown(kind, known, name, f'`aurora list {_LISTS[kind]}`')}")


def load_any(given: Path | str, overrides: Sequence[str] = ()) -> RunRecipe:
    """Find and validate a recipe of any kind; as `load_recipe`, also of a cell.

    Raises:
        UserError: there is no such recipe, the file cannot be read, or a value is wrong; one line for each mistake.
    """
    from ...diffusion.recipe import load_found

    return load_found(find(given, "recipe"), overrides)
