"""Nothing of src uses what Transformers, TRL, datasets or Accelerate keep to themselves: names that begin with `_`."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SRC = Path(__file__).parents[2] / "src"
LIBRARIES = {"transformers", "trl", "datasets", "accelerate"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def imported(tree: ast.Module) -> dict[str, str]:
    """By each name that a file has of the libraries, where it comes from."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in LIBRARIES:
            found |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
        elif isinstance(node, ast.Import):
            there = [one for one in node.names if one.name.split(".")[0] in LIBRARIES]
            found |= {one.asname or one.name.split(".")[0]: one.name for one in there}
    return found


def loaded(path: str) -> Any:
    """The object at a dotted path; None where it is not here."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None) if module else None
    except ImportError:
        return None


def private_uses(source: str) -> Iterator[str]:
    """Private names that are imported, taken from what was imported, or used or overridden in a subclass of it."""
    tree = ast.parse(source)
    names = imported(tree)
    for path in names.values():
        yield from (path for part in path.split(".") if is_private(part))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            theirs = any(node.attr in dir(loaded(path)) for path in names.values())
            if isinstance(root, ast.Name) and root.id != "self" and (root.id in names or theirs):
                yield ast.unparse(node)
    for each in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        roots = [names[base.id] for base in each.bases if isinstance(base, ast.Name) and base.id in names]
        theirs = {name for path in roots for name in dir(loaded(path)) if is_private(name)}
        for node in ast.walk(each):
            own = isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()", "cls")
            name = node.attr if own else node.name if isinstance(node, ast.FunctionDef) else ""
            if is_private(name) and (name in theirs or (roots and own and ast.unparse(node.value) == "super()")):
                yield f"{each.name}.{name}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from trl.trainer.utils import _pad", ["trl.trainer.utils._pad"]),
        ("import transformers as t\nt.utils._x(1)", ["t.utils._x"]),
        ("from transformers import Trainer\nclass A(Trainer):\n  def _save(self): self._own = 1", ["A._save"]),
        ("from transformers import Trainer\ndef f(made): made._save(1)", ["made._save"]),
        ("from torch import _x\nclass A:\n  def _save(self): return self._save", []),
    ],
)
def test_the_rule_sees_what_it_forbids(source: str, found: list[str]) -> None:
    assert list(private_uses(source)) == found


def test_no_private_member_of_a_library_is_used() -> None:
    assert not {
        str(path.relative_to(SRC)): uses
        for path in sorted(SRC.rglob("*.py"))
        if (uses := sorted(set(private_uses(path.read_text(encoding="utf-8")))))
    }
