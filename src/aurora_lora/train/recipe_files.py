"""The recipes that come with the package, by name: `demo`, and those to start from with data of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from os.path import exists
from pathlib import Path
from typing import Any

from ..errors import UserError, unknown
from . import yaml_text

YAML = (".yaml", ".yml")
"""How a name ends that can only be a file's."""


@dataclass(frozen=True)
class RecipeFile:
    """A recipe or a study that is a YAML file."""

    path: Path
    name: str | None = None
    """The name of one that comes with the package."""

    @property
    def source(self) -> str:
        """The name or the path, as a user types it."""
        return self.name or str(self.path)

    def values(self) -> Any:
        """What is in it.

        Raises:
            UserError: the file cannot be read or is not valid YAML.
        """
        return yaml_text.read(self.path)

    def yaml(self) -> str:
        """The text of the file.

        Raises:
            UserError: the file cannot be read.
        """
        return yaml_text.read_text(self.path)

    def opening(self) -> list[str]:
        """The lines of the comment that it opens with: its command, and what it is."""
        lines = []
        for line in self.yaml().splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.lstrip("# ").rstrip())
        return lines


def recipes_folder() -> Path:
    """Where the files are: in the package, or beside it in a checkout."""
    package = Path(str(files("aurora_lora")))
    packaged = package / "recipes"
    return packaged if packaged.is_dir() else package.parents[1] / "recipes"


def files_in(folder: str = ".") -> dict[str, RecipeFile]:
    """The files of the package in a folder of `recipes_folder`, by name."""
    return {path.stem: RecipeFile(path, path.stem) for path in sorted((recipes_folder() / folder).glob("*.yaml"))}


def starting() -> dict[str, RecipeFile]:
    """The recipes to start from with data of one's own, by the kind of task."""
    return files_in("own")


def start(kind: str) -> RecipeFile:
    """The recipe to start from with data of one's own, for one kind of task.

    Raises:
        UserError: there is no such kind.
    """
    known = starting()
    if kind not in known:
        raise UserError(f"'{kind}' is an {unknown('kind', known, kind)}")
    return known[kind]


def file_named(given: Path | str, known: Mapping[str, RecipeFile]) -> RecipeFile | None:
    """The file of a name, or a user's file; None where there is neither. A name is looked up first: `./demo` is a file.

    Args:
        given: a name or a file's name; a `Path` is always a file.
        known: the files that have names.
    """
    if isinstance(given, Path):
        return RecipeFile(given)
    if given in known:
        return known[given]
    return RecipeFile(Path(given)) if given.endswith(YAML) or exists(given) else None


def find_recipe(given: Path | str) -> RecipeFile:
    """A recipe that comes with the package, or a user's file; see `file_named`.

    Raises:
        UserError: it is no name and no file; the message has the nearest name.
    """
    known = {**starting(), **files_in()}
    if (found := file_named(given, known)) is not None:
        return found
    name = str(given)
    if "/" in name:  # as those of the paper's tables, which the lab has
        cells = "of a cell of the paper's tables, `aurora list recipe NAME` prints one"
        raise UserError(f"'{given}' is neither a file nor a recipe of the package; {cells}")
    raise UserError(f"'{given}' is no file, and an {unknown('recipe', known, name)}")
