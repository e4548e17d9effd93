"""A `result.json` with one damaged field is refused by every command that reads it, in a line that names both."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_runs
import pytest

COMMANDS = (
    ("report", "run"),
    ("report", "run", "--html", "page.html"),
    ("report", "run", "--figures", "figures"),
    ("train", "run/recipe.yaml", "-o", "run"),
    ("evaluate", "run"),
    ("gap", "run"),
    ("merge", "run", "-o", "out"),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of each field and item, the innermost last."""
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*at, key))


def damaged(result: Any, at: tuple[Any, ...], damage: Any) -> str:
    """The file with something else at a place, or with nothing there."""
    changed = json.loads(json.dumps(result))
    inside = changed
    for key in at[:-1]:
        inside = inside[key]
    if damage is None:
        del inside[at[-1]]
    else:
        inside[at[-1]] = damage
    return json.dumps(changed)


@pytest.mark.slow
def test_a_damaged_field_is_named_by_every_command(here: Path) -> None:
    done = own_runs.train("classification", "run", "reference.method=linear-probe")
    assert done.exit_code == 0, done.output
    path = here / "run" / "result.json"
    whole = json.loads(path.read_text())
    found, unnoticed = list(places(whole)), []
    assert len(found) > 100
    for number, at in enumerate(found):
        inner = whole
        for key in at:
            inner = inner[key]
        path.write_text(damaged(whole, at, "damaged" if isinstance(inner, dict) else {"damaged": [[]]}))
        names = [name for name in at if isinstance(name, str)]
        for command in {COMMANDS[0], COMMANDS[number % len(COMMANDS)]}:
            done = own_runs.aurora(*command)
            said = done.stderr.strip()
            if done.exit_code != 2 or "\n" in said or not all(name in said for name in ("result.json", *names)):
                unnoticed.append((at, command, said, done.exception))
        path.write_text(damaged(whole, at, None))  # what the others make up for is shown without it
        done = own_runs.aurora("report", "run")
        if done.exit_code and ("result.json is " not in done.stderr or done.stderr.count("\n") != 1):
            unnoticed.append((at, "left out", done.stderr, done.exception))
    assert not unnoticed, "\n".join(map(str, unnoticed))
