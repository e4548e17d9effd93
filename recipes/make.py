"""Writes the recipes of the paper's tables and figures, and the suites that they make up:

python recipes/make.py [--check]

The hyperparameters stand here, once, each with its source; the YAML files beside this script are what `aurora train`
and `aurora reproduce` read. `--check` changes nothing and tells whether the files are as this script would write them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import subjects
import tables
import vision

from aurora_lora.training import yaml_text

HERE = Path(__file__).parent


def text_of_recipe(suite: str, scale: str, name: str, recipe: dict[str, Any], words: list[str]) -> str:
    """A recipe's file: its command first, then what it is."""
    path = f"recipes/{suite}/{scale}/{name}.yaml"
    head = [f"aurora train {path} --output runs/{scale}/{suite}/{name}", "", *words]
    comment = "\n".join(f"# {line}".rstrip() for line in head)
    return f"{comment}\n{yaml_text.dump({'name': f'{suite}-{name}', **recipe})}"


def every_file() -> Iterator[tuple[Path, str]]:
    """Each file and what is to be in it."""
    for make in (*tables.SUITES, *vision.SUITES, *subjects.SUITES):
        made = make()
        folder = HERE / made.name / made.scale
        head = f"# aurora reproduce {made.name} --scale {made.scale}\n"
        yield folder / "suite.yaml", head + yaml_text.dump(made.suite)
        for name, (recipe, words) in made.recipes.items():
            yield folder / f"{name}.yaml", text_of_recipe(made.name, made.scale, name, recipe, words)


def main() -> int:
    files = dict(every_file())
    there = {path for scale in ("hub", "packaged") for path in HERE.glob(f"*/{scale}/*.yaml")}
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    stale += sorted(there - set(files))
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(HERE.parent)} is not as recipes/make.py writes it")
        return 1 if stale else 0
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in there - set(files):
        path.unlink()
    print(f"{len(files)} files, {len(stale)} of them changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
