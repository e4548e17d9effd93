"""Conversations in the formats that people have, TRL's, Alpaca's and ShareGPT's, ready to be split."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...chat_template import template_options, without_none
from ...errors import UserError
from ...extras import extra
from ..vision import with_rows
from .columns import same_text, text
from .source import Piece, Pieces
from .split import BadRow, Prepared, Row

FORMATS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}
"""The columns by which a format is known. TRL's are `messages`, `prompt` with `completion`, and `text`."""
NAMED = {"messages": "messages", "prompt": "prompt", "answer": "completion"}
"""The columns that fields of a recipe's task give other names."""
FURTHER = ("input", "system", "tools", "chat_template_kwargs")
"""Columns that go with them, where they are there: Alpaca's, and those that TRL gives to the template."""
SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "observation": "tool"}
"""What the `from` of ShareGPT's messages means, where it is no role."""
ROLES = (
    *("system", "developer", "user", "assistant", "tool", "function", "ipython"),
    *("model", "observation", "environment", "context", "document", "documents", "tool_call", "tool_response"),
)
"""The roles that chat templates know. Most write any other as it stands, or leave its message out, without a word."""


@dataclass(frozen=True)
class Question:
    """What is to be answered: messages, and what else the chat template makes a prompt of, `tools` for one."""

    messages: list[dict[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------- a row


def as_ours(row: Row, columns: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A row with our columns, keys and roles in place of those that the fields of a recipe's task name."""
    row = {**row, **{NAMED[one]: row[columns[one][0]] for one in NAMED if columns.get(one) and columns[one][0] in row}}
    keys = dict(zip(columns.get("message_keys", ()), ("role", "content"), strict=False))
    roles = dict(zip(columns.get("roles", ()), ("user", "assistant", "system"), strict=False))

    def message(one: Any) -> Any:
        found = {keys.get(key, key): value for key, value in one.items()} if isinstance(one, Mapping) else one
        for key in ("role", "from") if roles and isinstance(one, Mapping) else ():
            found |= {key: roles.get(str(found[key]), found[key])} if key in found else {}
        return found

    return {name: list(map(message, value)) if isinstance(value, list) else value for name, value in row.items()}


def conversation(row: Row, form: str) -> dict[str, Any]:
    """A row of the user's data, in one of `FORMATS`, in TRL's format: `messages`, of `role` and `content`; `prompt` and
    `completion`, both texts or both lists of messages; or `text`. A BadRow where it is none, or has no answer."""
    if form == "text":
        return {"text": text(row["text"], "text")}
    if form in ("messages", "conversations"):
        return {"messages": _with_answer(_messages(row, form))}
    if form == "instruction":
        asked = "\n\n".join(filter(None, (text(row["instruction"], "instruction"), _said(row, "input"))))
        answer = {"role": "assistant", "content": text(row["output"], "output")}
        return {"prompt": [*_system(row), {"role": "user", "content": asked}], "completion": [answer]}
    plain = [isinstance(row[name], str) for name in ("prompt", "completion")]
    if all(plain):
        return {"prompt": _plain_prompt(row), "completion": text(row["completion"], "completion")}
    if any(plain):
        raise BadRow("'prompt' and 'completion' must both be texts, or both lists of messages")
    answered = _messages({"completion": row["completion"]}, "completion")
    return {"prompt": _messages(row, "prompt"), "completion": _with_answer(answered)}


def _said(row: Row, column: str) -> str:
    said = row.get(column) or ""
    if not isinstance(said, str):
        raise BadRow(f"'{column}' is {said!r:.40}, which is no text")
    return said if said.strip() else ""


def _system(row: Row) -> list[dict[str, Any]]:
    return [{"role": "system", "content": said}] if (said := _said(row, "system")) else []


def _plain_prompt(row: Row) -> str:
    if _system(row):
        raise BadRow("'system' goes with messages, and 'prompt' is a text: make it a list of messages")
    return text(row["prompt"], "prompt")


def _messages(row: Row, column: str) -> list[dict[str, Any]]:
    """The messages of a column, each with a role that templates know and one text; the first may be in `system`."""
    value = row[column]
    if not isinstance(value, list) or not value:
        raise BadRow(f"'{column}' is no list of messages" if value else f"'{column}' is empty")
    found = [_message(one, f"message {number} of '{column}'") for number, one in enumerate(value, start=1)]
    return found if column == "completion" or found[0]["role"] == "system" else [*_system(row), *found]


def _message(given: Any, where: str) -> dict[str, Any]:
    one = without_none(given) if isinstance(given, Mapping) else {}
    if "from" in one:
        one = {"role": SHAREGPT.get(one["from"], one["from"]), "content": one.get("value")}
    if one.get("role") not in ROLES:
        role = f"the role {one['role']!r:.40}" if "role" in one else "no role"
        others = "; task.roles and task.message_keys name others"
        raise BadRow(f"{where} has {role}: the roles are {', '.join(ROLES)}{others}")
    said = one.get("content")
    if isinstance(said, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in said):
        said = "".join(str(part.get("text") or "") for part in said)  # most templates leave such parts out
        one = {**one, "content": said}
    if not isinstance(said, str | None):
        raise BadRow(f"{where} is {said!r:.40}, which is no text")
    if not (said or "").strip() and not one.get("tool_calls"):
        raise BadRow(f"{where} ({one['role']}) is empty")
    return dict(one)


def _with_answer(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    roles = dict.fromkeys(str(one["role"]) for one in messages)
    if "assistant" not in roles:
        raise BadRow(f"there is no answer: none of its messages is the assistant's (roles: {', '.join(roles)})")
    return messages


# ---------------------------------------------------------------- what is asked in a row, and what is answered


def question_of(row: Row, trained: str | None = None) -> Question | str:
    """What is to be answered in a row of any format, with an answer or without: messages, or a plain text.

    Args:
        row: read in the format `trained`, where it has the question's column; else in the one that training would take
            it for; else by a column with a question. A column that is null is none.
        trained: the format that the model was trained in, where it is known.

    Raises:
        BadRow: it is neither.
        KeyError: it has no column of any format.
    """
    options = template_options(row)
    given = {name for name, value in row.items() if value is not None}
    there = given if any(columns[0] in given for columns in FORMATS.values()) else set(row)
    asked = [name for name, columns in FORMATS.items() if columns[0] in there]
    if not asked:
        raise KeyError("messages")
    form = min(asked, key=lambda name: (name != trained, not there >= set(FORMATS[name]), name in ("prompt", "text")))
    if form == "instruction":
        return Question(conversation({**row, "output": "?"}, "instruction")["prompt"], options)
    if form in ("prompt", "text") and not isinstance(row[form], list):
        return _plain_prompt(row) if form == "prompt" else text(row["text"], "text")
    said = _messages(row, form)
    is_answered = form in ("messages", "conversations") and said[-1]["role"] == "assistant" and len(said) > 1
    return Question(said[:-1] if is_answered else said, options)


# ---------------------------------------------------------------- splits


def prepare_chats(pieces: Pieces, columns: Mapping[str, Sequence[str]], labels: Any = None) -> Prepared:
    """Conversations that become TRL's columns `messages`, `prompt` and `completion`, or `text`, with `tools` and
    `chat_template_kwargs` where there are any, and `row`, the number in the source. `columns` has what `as_ours` reads,
    and the `format` that a finished run has learned. A UserError where a piece has none, or another."""
    with extra("train"):
        from datasets import Features, Json, List, Value
    given = {name: tuple(columns[name]) for name in NAMED if columns.get(name)}
    pieces.check_columns(given)
    ours = {old: NAMED[name] for name, (old,) in given.items()}

    def renamed(name: str, piece: Piece) -> Any:
        other = set(ours.values()).intersection(piece.data.column_names) - set(ours)
        return piece.data.remove_columns(list(other)).rename_columns(ours)

    pieces = pieces.changed(renamed)
    wanted = "messages" if "messages" in given else "prompt" if given else None
    trained = next(iter(columns.get("format", ())), wanted)
    found = {name: format_of(piece, trained) for name, piece in pieces.items()}
    form = trained or found[next(iter(found))]
    for name, other in found.items():
        if other != form:
            raise UserError(f"{pieces[name].name} has conversations as '{other}', the training data as '{form}'")
    used = (*FORMATS[form], *FURTHER)
    there = [name for name in used if any(name in piece.data.column_names for piece in pieces.values())]

    def prepared(name: str, piece: Piece) -> Any:
        data = piece.data.select_columns([name for name in there if name in piece.data.column_names])
        for name in set(there) - set(data.column_names):  # rows of test data need no `system`, say
            data = data.add_column(name, [None] * len(data))
        return with_rows(data)

    def key(row: Row) -> str:
        """Who says what and calls which tools, whatever else messages have and in whatever order."""
        shown = conversation(as_ours(row, columns), form)
        template_options(row)
        said: list[Any] = []
        for _, value in sorted(shown.items()):
            for one in value if isinstance(value, list) else ():
                calls = without_none(one.get("tool_calls"), sorted)
                more = {"tool_calls": calls} if calls else {}
                said.append({"role": one["role"], "content": without_none(one.get("content"), sorted), **more})
            said += [] if isinstance(value, list) else [value]
        return same_text(json.dumps(_on_one_line(said), ensure_ascii=False, default=str))

    def finish(split: Any) -> Any:
        def made(row: Row) -> dict[str, Any]:
            options = template_options(row)
            more = {"tools": without_none(options.pop("tools", None)), "chat_template_kwargs": without_none(options)}
            return {
                **conversation(as_ours(row, columns), form),
                **{name: more[name] or None for name in more if name in there},
            }

        of = {name: List(Json()) if isinstance(one, list) else Value("string") for name, one in made(split[0]).items()}
        of |= {name: kind for name, kind in (("tools", List(Json())), ("chat_template_kwargs", Json())) if name in of}
        features = Features({**of, "row": split.features["row"]})
        # a cache knows a function by its name, and would give what an earlier version has made
        gone = [name for name in there if name not in of]
        return split.map(made, remove_columns=gone, features=features, load_from_cache_file=False)

    return Prepared(pieces.changed(prepared), there, key, finish=finish, record={"format": form})


def _on_one_line(value: Any) -> Any:
    """Texts with a space for each line break and tab, of which JSON would make letters."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, Mapping):
        return {name: _on_one_line(one) for name, one in value.items()}
    return [_on_one_line(one) for one in value] if isinstance(value, list) else value


def format_of(piece: Piece, trained: str | None = None) -> str:
    """The format that a piece's columns are of; the one that a run was `trained` on, where they have it; or a
    UserError."""
    there = piece.data.column_names
    found = [name for name, columns in FORMATS.items() if set(columns) <= set(there)]
    if not found:
        raise UserError(
            f"{piece.name} has no conversations: it has the columns {', '.join(map(repr, there))}, and would need "
            "messages; prompt and completion; text; instruction and output (Alpaca's); or conversations (ShareGPT's): "
            "task.messages, or task.prompt and task.answer, name others"
        )
    return trained if trained in found else found[0]
