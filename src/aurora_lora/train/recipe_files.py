"""Recipes as YAML files: reading them (YAML 1.2), and those that come with the package, by name."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import takewhile
from os.path import exists
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from ..errors import UserError, one_line, unknown
from ..files import reading

ENDINGS = (".yaml", ".yml")
"""How a name ends that can only be a file's."""


_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
"""How JSON escapes a character beyond 16 bits, which YAML reads as two."""


LONGEST = 10_000_000


def parse(text: str, source: str) -> Any:
    """The value of a YAML text; raises a UserError with `source` and the line where it is not valid."""
    text = _PAIR.sub(lambda pair: str(json.loads(f'"{pair[0]}"')), text)
    try:
        value = YAML(typ="safe", pure=True).load(text)
        json.dumps(value, default=str, skipkeys=True, ensure_ascii=False).encode()  # no half of a pair
        return value
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{source}{line}: {one_line(error.problem or error.context)}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: {one_line(error)}") from error


def read(path: Path) -> Any:
    """The value of a YAML file; raises a UserError where it cannot be read or is not valid."""
    return parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a YAML file; raises a UserError where it cannot be read."""
    with reading(path), path.open(encoding="utf-8-sig") as file:
        text = file.read(LONGEST + 1)
    if len(text) > LONGEST:
        raise UserError(f"{path} has more than {LONGEST:,} characters: it is no recipe")
    return text


def dump(value: Any) -> str:
    """Plain values as YAML, in the order given."""
    yaml, text = YAML(typ="safe", pure=True), io.StringIO()
    cast(Any, yaml).default_flow_style = cast(Any, yaml).sort_base_mapping_type_on_output = False
    cast(Any, yaml).width = 120
    yaml.dump(value, text)
    return text.getvalue()


def set_field(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a field of a recipe's plain values, by its dotted name.

    Raises:
        UserError: what stands before a dot has no fields.
    """
    *sections, last = key.split(".")
    here = data
    for place, name in enumerate(sections):
        if (rest := ".".join((*sections[place:], last))) in here:  # a name with dots, as those in a study's `space`
            here[rest] = value
            return
        section = here.get(name)
        if section is None:
            section = here[name] = {}
        elif isinstance(section, str) and name in ("method", "model", "task"):
            section = here[name] = {"name": section}
        if not isinstance(section, dict):
            raise UserError(f"'{key}': {name} is {section!r:.40}, which has no fields that key=value could change")
        here = section
    here[last] = value


@dataclass(frozen=True)
class RecipeFile:
    """A recipe or a study that is a YAML file; `name` is that of one that comes with the package."""

    path: Path
    name: str | None = None

    @property
    def source(self) -> str:
        """The name or the path, as a user types it."""
        return self.name or str(self.path)

    def values(self) -> Any:
        """What is in it; raises as `read`."""
        return read(self.path)

    def yaml(self) -> str:
        """The text of the file; raises as `read_text`."""
        return read_text(self.path)

    def opening(self) -> list[str]:
        """The lines of the comment that it opens with: its command, and what it is."""
        lines = takewhile(lambda line: line.startswith("#"), self.yaml().splitlines())
        return [line.lstrip("# ").rstrip() for line in lines]


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
    """The recipe to start from with data of one's own, for one kind of task; raises a UserError where it is none."""
    known = starting()
    if kind not in known:
        raise UserError(f"'{kind}' is an {unknown('kind', known, kind)}")
    return known[kind]


def file_named(given: Path | str, known: Mapping[str, RecipeFile]) -> RecipeFile | None:
    """The file of a known name, or a user's file; None where there is neither. A name is looked up first, and a `Path`,
    like `./demo`, is always a file."""
    if isinstance(given, Path):
        return RecipeFile(given)
    if given in known:
        return known[given]
    return RecipeFile(Path(given)) if given.endswith(ENDINGS) or exists(given) else None


def find_recipe(given: Path | str) -> RecipeFile:
    """A recipe that comes with the package, or a user's file; see `file_named`.

    Raises:
        UserError: it is no name and no file; the message has the nearest name.
    """
    known = {**starting(), **files_in()}
    if (found := file_named(given, known)) is None:
        cells = "; `aurora list recipe NAME` prints one of the paper's tables" if "/" in str(given) else ""
        raise UserError(f"'{given}' is no file, and an {unknown('recipe', known, str(given))}{cells}")
    return found
