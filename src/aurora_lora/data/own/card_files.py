"""Which files the README.md of a folder says are its data: those in the folder, and no others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ...errors import UserError
from ...extras import extra
from ...files import reading

CARD, STANDALONE = "README.md", ".huggingface.yaml"
"""The files in which `datasets` looks for `configs`."""
_FRONT = re.compile(r"\A\s*---[\r\n]+(.*?)[\r\n]+---", re.DOTALL)


def check_card_files(folder: Path) -> None:
    """Raise a UserError where the `configs` of a folder name data outside it, for `datasets` to read.

    A folder that someone else has made could have any file of this machine taken for its data, or an address.
    """
    with extra("train"):
        import yaml
    for name in (CARD, STANDALONE):
        path = folder / name
        if not path.is_file():
            continue
        with reading(path):
            text = path.read_text("utf-8", "replace")
        front = _FRONT.match(text)
        try:
            said = yaml.safe_load(text if name == STANDALONE else front[1] if front else "")
        except yaml.YAMLError:
            continue  # `datasets` says what is wrong with it
        for config in _listed(said.get("configs") if isinstance(said, dict) else None):
            named = [config.get("data_files"), config.get("data_dir")] if isinstance(config, dict) else []
            for pattern in _texts(named):
                if _is_outside(pattern):
                    raise UserError(
                        f"{path} names data that is not in its folder, {pattern!r}: only files of the folder are "
                        "read; move them there, or name them as task.data, task.validation_data and task.test_data"
                    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value.values()])
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _is_outside(pattern: str) -> bool:
    absolute = PurePosixPath(pattern).is_absolute() or PureWindowsPath(pattern).drive or pattern.startswith("\\")
    return bool(absolute) or "://" in pattern or "::" in pattern or ".." in re.split(r"[/\\]", pattern)
