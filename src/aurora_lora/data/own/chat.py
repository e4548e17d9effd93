"""Rows of conversations, in the formats that people have: TRL's, Alpaca's and ShareGPT's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ... import chat_template
from ...chat_template import without_none
from .columns import json_list, text
from .split import BadRow, Row

FORMATS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}
"""The columns by which a format is known. TRL's are `messages`, `prompt` with `completion`, and `text`."""
FURTHER = ("input", "history", "system", "tools", "chat_template_kwargs")
"""Columns that go with them, where they are there: Alpaca's, and those that TRL gives to the template."""
ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model"), "assistant"),
    **dict.fromkeys(("observation", "tool"), "tool"),
    "system": "system",
}
"""What the `from` of ShareGPT's messages means."""
OF_TEMPLATES = (
    *("system", "developer", "user", "assistant", "tool", "function", "ipython"),
    *("model", "observation", "environment", "context", "document", "documents", "tool_call", "tool_response"),
)
"""The roles that chat templates know. Most write any other as it stands, or leave its message out, without a word."""


@dataclass(frozen=True)
class Question:
    """What is to be answered: messages, and what else the chat template makes a prompt of, `tools` for one."""

    messages: list[dict[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)


def conversation(row: Row, form: str) -> dict[str, Any]:
    """A row in TRL's format.

    Args:
        row: of the user's data.
        form: one of `FORMATS`.

    Returns:
        `messages`, of `role` and `content`; `prompt` and `completion`, both texts or both lists of messages; or `text`.

    Raises:
        BadRow: it is no conversation, or has no answer.
    """
    if form == "text":
        return {"text": text(row["text"], "text")}
    if form == "messages":
        return {"messages": _with_answer(_with_system(row, _messages(row["messages"], "messages")))}
    if form == "conversations":
        return {"messages": _with_answer(_sharegpt(row))}
    if form == "prompt":
        return _prompt(row)
    asked = "\n\n".join(part for part in (text(row["instruction"], "instruction"), _input(row)) if part)
    answer = {"role": "assistant", "content": text(row["output"], "output")}
    return {"prompt": [*_system(row), *_history(row), {"role": "user", "content": asked}], "completion": [answer]}


def _input(row: Row) -> str:
    """What Alpaca's instruction is about; empty where there is none."""
    said = row.get("input")
    if not isinstance(said, str | None):
        raise BadRow(f"'input' is {said!r:.40}, which is no text")
    return said or ""


def template_options(row: Row) -> dict[str, Any]:
    """What the chat template gets beside the messages, as TRL gives it.

    Args:
        row: with `tools`, a list or its JSON, and `chat_template_kwargs`, where there are any.

    Raises:
        BadRow: they are not that.
    """
    try:
        return chat_template.template_options(row)
    except ValueError as error:
        raise BadRow(str(error)) from error


def _system(row: Row) -> list[dict[str, Any]]:
    """The message of a column `system`, where it says something."""
    said = row.get("system")
    is_blank = not said or (isinstance(said, str) and not said.strip())
    return [] if is_blank else [{"role": "system", "content": text(said, "system")}]


def _with_system(row: Row, said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages of a row, which may have the first of them in a column of its own."""
    return said if said[0]["role"] == "system" else [*_system(row), *said]


def _history(row: Row) -> list[dict[str, Any]]:
    """The messages of Alpaca's column `history`: pairs of what was asked and answered before."""
    turns = row.get("history") or []
    if isinstance(turns, str):
        turns = json_list(turns) if turns.strip() else []
    if not isinstance(turns, list):
        raise BadRow(f"'history' is {row['history']!r:.40}, which is no list of pairs of texts")
    said = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, list) or len(turn) != 2:
            raise BadRow(f"turn {number} of 'history' is {turn!r:.40}, which is no pair of texts, [user, assistant]")
        said += [{"role": "user", "content": text(turn[0], "history")}]
        said += [{"role": "assistant", "content": text(turn[1], "history")}]
    return said


def _prompt(row: Row) -> dict[str, Any]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return {"prompt": _plain_prompt(row), "completion": text(completion, "completion")}
    if isinstance(prompt, str) or isinstance(completion, str):
        raise BadRow("'prompt' and 'completion' must both be texts, or both lists of messages")
    asked = _with_system(row, _messages(prompt, "prompt"))
    return {"prompt": asked, "completion": _with_answer(_messages(completion, "completion"))}


def _plain_prompt(row: Row) -> str:
    if _system(row):
        raise BadRow("'system' goes with messages, and 'prompt' is a text: make it a list of messages")
    return text(row["prompt"], "prompt")


def _sharegpt(row: Row) -> list[dict[str, Any]]:
    return _with_system(row, _messages(_renamed(row["conversations"]), "conversations"))


def _renamed(value: Any) -> Any:
    """ShareGPT's `from` and `value` as `role` and `content`, where they are that."""
    if not isinstance(value, list) or not all(isinstance(one, Mapping) and "from" in one for one in value):
        return value
    for number, one in enumerate(value, start=1):
        if one["from"] not in ROLES:
            raise BadRow(f"message {number} is from {one['from']!r:.40}, which is not one of {', '.join(ROLES)}")
    return [{"role": ROLES[one["from"]], "content": one.get("value")} for one in value]


def _messages(value: Any, column: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"'{column}' is no list of messages" if value else f"'{column}' is empty")
    for number, one in enumerate(value, start=1):
        if not isinstance(one, Mapping) or not isinstance(one.get("role"), str):
            raise BadRow(f"message {number} of '{column}' has no role")
        if one["role"] not in OF_TEMPLATES:
            raise BadRow(
                f"message {number} of '{column}' has the role {one['role']!r:.40}, which is not one of "
                f"{', '.join(OF_TEMPLATES)}"
            )
        said = one.get("content")
        if _is_blank(said) and not one.get("tool_calls"):
            raise BadRow(f"message {number} of '{column}' ({one['role']}) is empty")
        if said is not None and not isinstance(said, str | list):
            raise BadRow(f"message {number} of '{column}' is {said!r:.40}, which is no text")
        if isinstance(said, list):
            if other := [part for part in said if not _is_text_part(part)]:
                raise BadRow(f"message {number} of '{column}' has a part that is no text: {other[0]!r:.40}")
            if _is_blank(with_text(one)["content"]) and not one.get("tool_calls"):
                raise BadRow(f"message {number} of '{column}' ({one['role']}) is empty")
    return [with_text(one) for one in value]


def with_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with one text, where its content is a list of parts of text: most templates leave such parts out, or
    write the list as Python shows it."""
    said = message.get("content")
    if not isinstance(said, list) or not all(map(_is_text_part, said)):
        return dict(message)
    return {**message, "content": "".join(part["text"] for part in said)}


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _with_answer(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not any(one["role"] == "assistant" for one in messages):
        roles = ", ".join(dict.fromkeys(str(one["role"]) for one in messages))
        raise BadRow(f"there is no answer: none of its messages is the assistant's (roles: {roles})")
    return messages


def _is_blank(value: Any) -> bool:
    return (
        value is None or (isinstance(value, str | list) and not value) or (isinstance(value, str) and value.isspace())
    )


def question_of(row: Row, trained: str | None = None) -> Question | str:
    """What is to be answered in a row of any format, with an answer or without: messages, or a plain text.

    Args:
        row: read in the format `trained`, where it has the question's column; else in the one that training would take
            it for; else by a column with a question, `instruction` before `prompt`. A column that is null is none.
        trained: the format that the model was trained in, where it is known.

    Raises:
        BadRow: it is neither.
        KeyError: it has no column of any format.
    """
    options = template_options(row)
    given = {name for name, value in row.items() if value is not None}
    there = given if any(columns[0] in given for columns in FORMATS.values()) else row.keys()
    asked = [name for name, columns in FORMATS.items() if columns[0] in there]
    asked.sort(key=("prompt", "text").__contains__)
    whole = [name for name, columns in FORMATS.items() if there >= set(columns)]
    form = trained if trained in asked else next(iter([*whole, *asked]), None)
    if form is None:
        raise KeyError("messages")
    if form in ("messages", "conversations"):
        is_sharegpt = form == "conversations"
        said = _sharegpt(row) if is_sharegpt else _with_system(row, _messages(row["messages"], "messages"))
        return Question(said[:-1] if said[-1]["role"] == "assistant" and len(said) > 1 else said, options)
    if form == "instruction":
        return Question(conversation({**row, "output": "?"}, "instruction")["prompt"], options)
    if not isinstance(row[form], list):
        return _plain_prompt(row) if form == "prompt" else text(row["text"], "text")
    said = _messages(row[form], form)
    return Question(_with_system(row, said) if form == "prompt" else said, options)


def opening(row: Row) -> Question | str | None:
    """What comes before the last answer of a row in TRL's format, to be answered anew; None for a plain text."""
    if "prompt" in row:
        prompt: list[dict[str, Any]] | str = row["prompt"]
        return prompt if isinstance(prompt, str) else Question(prompt, template_options(row))
    if "messages" not in row:
        return None
    said: Sequence[Any] = row["messages"]
    last = max(number for number, one in enumerate(said) if one["role"] == "assistant")
    return Question(list(said[:last]), template_options(row)) if last else None


def answer_of(row: Row) -> str:
    """The last answer of a row in TRL's format."""
    if "completion" in row:
        said = row["completion"]
        return said if isinstance(said, str) else text_of(said[-1])
    return text_of([one for one in row["messages"] if one["role"] == "assistant"][-1])


def text_of(message: Mapping[str, Any]) -> str:
    """What a message says, for people; of one that only calls tools, the calls."""
    if (content := message.get("content")) or not message.get("tool_calls"):
        return "" if content is None else str(content)
    return json.dumps(without_none(message.get("tool_calls")), ensure_ascii=False)
