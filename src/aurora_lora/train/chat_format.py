"""The format that a model is trained in, and so asked in: conversations in a chat template, or texts as they stand.

It goes with the tokenizer: into a run, its merge, its export and whatever is copied of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..files import expanded, file_digest

CHATML = """{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] + 'END' }}{% endgeneration %}
{%- else -%}
{{ message['content'] + 'END' }}
{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
"""ChatML; END is `<|im_end|>`, or the end of a text where the tokenizer has no such token."""
KEY = "aurora_chat_format"
"""The key in `tokenizer_config.json` that has one of the three below."""
CONVERSATION, PROMPT, TEXT = "conversation", "prompt", "text"


def set_template(tokenizer: PreTrainedTokenizerBase, given: str | None) -> dict[str, str]:
    """Give a tokenizer the chat template that a recipe names: `chatml`, or a file.

    Returns:
        The sha256 of the file by its name, where it is one.

    Raises:
        UserError: the file cannot be read.
    """
    if given == "chatml":
        end = "<|im_end|>" if "<|im_end|>" in tokenizer.get_vocab() else tokenizer.eos_token
        if end is None:
            raise UserError("task.chat_template: 'chatml' needs a tokenizer with a token that ends a text")
        tokenizer.chat_template = CHATML.replace("END", str(end))
    elif given is not None:
        try:
            tokenizer.chat_template = expanded(given).read_text(encoding="utf-8-sig")
            return {given: file_digest(expanded(given))}
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"task.chat_template: {given} is neither 'chatml' nor a file to read: {why}") from error
    return {}


def template_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Any], **options: Any) -> list[int]:
    """The tokens of messages in the chat template."""
    made: Any = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True, **options)
    return list(made["input_ids"])


def format_of_row(row: Mapping[str, Any]) -> str:
    """The format that a row in one of TRL's is trained in."""
    if "text" in row:
        return TEXT
    return PROMPT if isinstance(row.get("prompt"), str) else CONVERSATION


def record_format(tokenizer: PreTrainedTokenizerBase, form: str) -> None:
    """Have a tokenizer say, wherever it is saved, what its model is trained in."""
    tokenizer.init_kwargs[KEY] = form


def recorded_format(tokenizer: Any) -> str | None:
    """What a tokenizer's model was trained in; None where nobody wrote that down."""
    found = getattr(tokenizer, "init_kwargs", {}).get(KEY)
    return found if found in (CONVERSATION, PROMPT, TEXT) else None


def is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text is given to the model as it stands, and not as what a user says in a conversation."""
    recorded = recorded_format(tokenizer)
    return tokenizer.chat_template is None if recorded is None else recorded != CONVERSATION
