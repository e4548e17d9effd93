"""What a chat template is given of a row of conversations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

OPTIONS = ("tools", "chat_template_kwargs")
"""The columns that TRL gives to the template beside the messages."""


def template_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat template gets beside the messages, as TRL gives it.

    Args:
        row: with `tools`, a list or its JSON, and `chat_template_kwargs`, where there are any.

    Raises:
        ValueError: they are not that.
    """
    tools, more = row.get("tools"), row.get("chat_template_kwargs") or {}
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise ValueError(f"'tools' is no JSON: {error}") from error
    if not isinstance(tools, list | None):
        raise ValueError(f"'tools' is {tools!r:.40}, which is no list")
    if not isinstance(more, Mapping):
        raise ValueError(f"'chat_template_kwargs' is {more!r:.40}, which is no mapping")
    return {**({} if tools is None else {"tools": tools}), **more}


def without_none(value: Any, order: Callable[[Any], Iterable[str]] = list) -> Any:
    """A value of a row without the fields that are None, which Arrow adds to objects where one row has them.

    Args:
        value: of a row.
        order: of the fields of each object: as they are, or `sorted`.
    """
    if isinstance(value, dict):
        return {name: without_none(value[name], order) for name in order(value) if value[name] is not None}
    return [without_none(one, order) for one in value] if isinstance(value, list) else value
