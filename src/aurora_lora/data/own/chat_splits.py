"""Splits of conversations: which format their columns have, and equal conversations kept in one split."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...chat_template import without_none
from ...errors import UserError
from ..vision import with_rows
from .chat import FORMATS, FURTHER, conversation, template_options
from .columns import same_text
from .held_rows import as_given, kept_types, made_by_this_version, mapped, renamed_types
from .json_files import is_json
from .prepared import Prepared
from .source import Piece, Pieces
from .split import Row


def prepare_chats(pieces: Pieces, columns: Mapping[str, Sequence[str]], labels: Any = None) -> Prepared:
    """Conversations that become TRL's columns `messages`, `prompt` and `completion`, or `text`, and `row`, the number
    in the source.

    Args:
        pieces: the data.
        columns: empty, or the `format` of those that a finished run has learned.
        labels: none has any.

    Raises:
        UserError: the data have no conversations, or of another format.
    """
    for piece in pieces.values():
        made_by_this_version(piece.data)
    trained, first = next(iter(columns.get("format", ())), None), next(iter(pieces.values()))
    found = {name: format_of(piece, trained) for name, piece in pieces.items()}
    form, where = (found[next(iter(found))], first.name) if trained is None else (trained, "the run's data")
    for name, other in found.items():
        if other != form:
            raise UserError(f"{pieces[name].name} has conversations as '{other}', {where} as '{form}'")

    def key(row: Row) -> str:
        shown = conversation(row, form)
        template_options(row)
        said = _on_one_line([_said(shown[name]) for name in sorted(shown)])
        return same_text(json.dumps(said, ensure_ascii=False, default=str))

    def prepared(piece: Piece) -> Piece:
        kept = [name for name in (*FORMATS[form], *FURTHER) if name in piece.data.column_names]
        return replace(piece, data=with_rows(piece.data.select_columns(kept)))

    ready = _with_all_columns(Pieces({name: prepared(piece) for name, piece in pieces.items()}, pieces.files))
    there = next(iter(ready.values())).data.column_names
    common = [name for name in (*FORMATS[form], *FURTHER) if name in there]
    gone = [name for name in common if name in (*FORMATS[form], "history", "system")]

    def finish(split: Any) -> Any:
        if form == "text" or (form in ("messages", "prompt") and "system" not in common):
            return as_given(split)
        if form in ("messages", "prompt"):  # what is written keeps its type where its columns do
            features = kept_types(split.features, gone, FORMATS[form])
        elif form == "conversations" and is_json(split.features[form]):
            features = kept_types(renamed_types(split.features, form), gone, ())
        else:
            return as_given(split.map(lambda row: conversation(row, form), remove_columns=gone))
        return as_given(mapped(split, lambda row: conversation(row, form), features, gone))

    return Prepared(ready, common, key, finish=finish, record={"format": form})


def _with_all_columns(pieces: Pieces) -> Pieces:
    """The pieces, each with the columns that only another has, of None: rows of test data need no `system`, say."""
    types = {name: kind for piece in pieces.values() for name, kind in piece.data.features.items()}

    def completed(piece: Piece) -> Piece:
        missing = [name for name in types if name not in piece.data.column_names]
        if not missing:
            return piece
        features = type(piece.data.features)({**piece.data.features, **{name: types[name] for name in missing}})
        return replace(piece, data=mapped(piece.data, lambda row: dict.fromkeys(missing), features))

    return Pieces({name: completed(piece) for name, piece in pieces.items()}, pieces.files)


def _said(value: Any) -> Any:
    """Who says what and calls which tools in a list of messages, whatever else they have and in whatever order."""
    if not isinstance(value, list):
        return value
    said = []
    for message in value:
        one = {"role": message["role"], "content": without_none(message.get("content"), sorted)}
        if calls := without_none(message.get("tool_calls"), sorted):
            one["tool_calls"] = calls
        said.append(one)
    return said


def _on_one_line(value: Any) -> Any:
    """Texts with a space for each line break and tab, of which JSON would make letters."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, Mapping):
        return {name: _on_one_line(one) for name, one in value.items()}
    return [_on_one_line(one) for one in value] if isinstance(value, list) else value


def format_of(piece: Piece, trained: str | None = None) -> str:
    """The format that a piece's columns are of; the one that a run was `trained` on, where they have it.

    Raises:
        UserError: none.
    """
    there = piece.data.column_names
    formats = FORMATS if trained not in FORMATS else {trained: FORMATS[trained], **FORMATS}
    for name, needed in formats.items():
        if all(column in there for column in needed):
            return name
    raise UserError(
        f"{piece.name} has no conversations: it has the columns {', '.join(map(repr, there))}, and would need "
        "messages; prompt and completion; text; instruction and output (Alpaca's); or conversations (ShareGPT's)"
    )
