"""Conversations as tokens: by TRL's own preparation for its SFTTrainer, so that both train on the same."""

from __future__ import annotations

import functools
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..chat_template import without_none
from ..data import Task
from ..data.loading import reason
from ..data.own.chat import Question, answer_of, opening, question_of, template_options
from ..deploy.inputs import IGNORED
from ..errors import UserError
from ..extras import extra
from ..machine import usable_cores
from .chat_format import CONVERSATION, TEXT, format_of_row, record_format, set_template, template_ids
from .chat_labels import KEPT, label_answers
from .data import Data, Example
from .recipe import Recipe

if TYPE_CHECKING:
    import datasets

ROWS_EACH = 10_000
"""Conversations for which a further process is worth its start."""
SAMPLES = 3
"""Held-out conversations that answers are written for, where `task.samples` does not say how many."""


@dataclass(frozen=True)
class ChatData(Data):
    """`Data`, and the held-out conversations that answers are written for: `prompt`, what is asked, and `expected`."""

    asked: Sequence[Mapping[str, Any]] = field(default=())


@dataclass(frozen=True)
class Conversations:
    """Collates conversations (batch, longest), padded right; where several are packed into a row, with the positions
    of each from 0 on, by which it sees itself alone.

    Args:
        pad: TRL's collator.
        pack: the same, of rows with several.
    """

    pad: Callable[[list[Example]], dict[str, Tensor]]
    pack: Callable[[list[Example]], dict[str, Tensor]]

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        packed = "seq_lengths" in examples[0]
        batch = (self.pack if packed else self.pad)(list(examples))
        if packed:
            batch.pop("attention_mask", None)  # with one, Transformers does not look at the positions
            batch["labels"][batch["position_ids"] == 0] = IGNORED
        batch["labels"][:, 0] = IGNORED  # it is predicted from nothing
        return batch


def encode_chats(
    recipe: Recipe, task: Task, tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, datasets.Dataset]
) -> ChatData:
    """Tokens and labels of conversations, cut to `task.max_length`; the training split packed where that is asked for.

    Raises:
        UserError: there is no chat template, or it refuses a conversation; or nothing is left to learn.
    """
    with extra("chat"):
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
    section, first = recipe.task, next(iter(splits.values()))[0]
    assert section.max_length is not None  # filled in by validation
    form = format_of_row(first)
    if form == TEXT and section.loss_on == "answer":
        raise UserError(
            "task.loss_on: 'answer' needs conversations, or prompt and completion: a 'text' is learned whole"
        )
    template = set_template(tokenizer, section.chat_template)
    if form == CONVERSATION and tokenizer.chat_template is None:
        raise UserError(
            f"the tokenizer of {recipe.model} has no chat template: task.chat_template=FILE names one (Jinja), and "
            "task.chat_template=chatml takes a plain ChatML"
        )
    record_format(tokenizer, form)
    max_length = min(section.max_length, tokenizer.model_max_length)
    prepare = _Preparation(tokenizer, section.loss_on != "all" and form != TEXT, recipe.seed)
    made: dict[str, Any] = {}
    texts, lost = {}, {}
    asked_otherwise = None
    for name, split in splits.items():
        whole = _tokens(prepare, split, f"{task.source}, {name}")
        if form == CONVERSATION and len(whole) and asked_otherwise is None:
            asked_otherwise = _asked_otherwise(tokenizer, _plain(split[0]), whole[0]["input_ids"])
        lengths = _lengths(whole)
        texts[name] = [int((lengths > max_length).sum()), len(whole)]
        made[name] = prepare.cut(whole, max_length)
        lost[name] = len(whole) - len(made[name])
        if not len(made[name]):
            raise UserError(f"task.max_length: no answer of the {name} split begins within {max_length} tokens")
        if name != "train":
            made[name] = made[name].select(np.argsort(_lengths(made[name]), kind="stable"))
    unpacked, packed = made.get("train"), section.packing and "train" in made
    if packed:
        made["train"] = prepare.pack(unpacked, max_length)
    pad_id = tokenizer.pad_token_id
    # flash attention takes all rows as one; of others, whose mask and work grow with the square, each is by itself
    in_one = (recipe.base.attention or "").startswith("flash")
    collate = Conversations(
        DataCollatorForLanguageModeling(pad_id),
        DataCollatorForLanguageModeling(pad_id, padding_free=in_one, return_position_ids=not in_one),
    )
    record: dict[str, Any] = {"cut": {"max_length": max_length, "texts": texts}, "files": template}
    record |= {"without_answer": {name: count for name, count in lost.items() if count}} if any(lost.values()) else {}
    record |= {"asked_otherwise": asked_otherwise} if asked_otherwise else {}
    record |= {"packed": len(made["train"])} if packed else {}
    return ChatData(
        task,
        tokenizer,
        made,
        collate,
        unchanged=unpacked if packed else None,
        record=record,
        lengths={name: _lengths(split).tolist() for name, split in made.items()},
        asked=_asked(splits, SAMPLES if section.samples is None else section.samples),
    )


def _asked_otherwise(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], ids: Sequence[int]) -> str | None:
    """The end of a prompt in the chat template that no trained answer follows, such as the `<think>` that some end a
    prompt with and leave out of answers. None where a model is asked as it is trained.

    Args:
        tokenizer: with its chat template.
        row: a conversation.
        ids: its tokens, as they are trained.
    """
    said = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
    first = next(number for number, one in enumerate(said) if one["role"] == "assistant")
    if not first:
        return None
    try:
        options = {**template_options(row), "add_generation_prompt": True}
        asked = str(tokenizer.decode(template_ids(tokenizer, said[:first], **options)))
    except Exception:  # a template may refuse a part of a conversation that it takes whole
        return None
    trained = str(tokenizer.decode(list(ids)))
    same = next((place for place, (a, b) in enumerate(zip(asked, trained, strict=False)) if a != b), len(trained))
    return None if trained.startswith(asked) else asked[same:]


def asked_in(row: Mapping[str, Any], trained: str | None = None) -> Question | str:
    """What is to be answered in a row of a file: in any of the formats, with an answer or without; the one that the
    model was `trained` in first.

    Raises:
        BadRow: it cannot be asked, or there is nothing to be answered.
        KeyError: it has no column of any of them.
    """
    return question_of(_plain(row), trained)


def _asked(splits: Mapping[str, datasets.Dataset], most: int) -> list[dict[str, Any]]:
    """The first held-out conversations, of the last split."""
    held_out = splits[[name for name in splits if name != "train"][-1]]
    rows = (held_out[number] for number in range(min(most, len(held_out))))
    return [
        {"prompt": prompt, "expected": answer_of(row)} for row in rows if (prompt := opening(_plain(row))) is not None
    ]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what Arrow adds to it: a message has only the fields that it was given."""
    return {name: without_none(value) for name, value in row.items()}


def _lengths(data: datasets.Dataset) -> np.ndarray[Any, Any]:
    import pyarrow.compute as pc

    batches = data.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=1000)
    return np.concatenate([pc.list_value_length(batch["input_ids"]).to_numpy() for batch in batches] or [np.array([])])


def _has_labels(data: datasets.Dataset) -> np.ndarray[Any, Any]:
    """Whether anything is learned of each row: its first token is predicted from nothing."""
    import pyarrow.compute as pc

    found = [np.zeros(0, dtype=bool)]
    for batch in data.select_columns(["labels"]).with_format("arrow").iter(batch_size=1000):
        learned = pc.not_equal(pc.list_flatten(batch["labels"]), IGNORED).to_numpy(zero_copy_only=False)
        lengths = pc.list_value_length(batch["labels"]).to_numpy()
        ends, so_far = np.cumsum(lengths), np.concatenate([[0], np.cumsum(learned)])
        found.append(so_far[ends] > so_far[np.minimum(ends - lengths + 1, ends)])
    return np.concatenate(found)


def _by_options(split: datasets.Dataset) -> list[tuple[datasets.Dataset, np.ndarray[Any, Any]]]:
    """The rows that give the template options, and those that do not: TRL wants a column without a null, or none."""
    column = "chat_template_kwargs"
    if column not in split.column_names:
        return [(split, np.arange(len(split)))]
    given = np.array([bool(value) for value in split[column]], dtype=bool)
    parts = []
    for data, rows in ((split, np.flatnonzero(given)), (split.remove_columns(column), np.flatnonzero(~given))):
        if len(rows):
            parts.append((data if len(rows) == len(split) else data.select(rows), rows))
    return parts


def _tokens(prepare: _Preparation, split: datasets.Dataset, where: str) -> datasets.Dataset:
    """`input_ids` and `labels` of whole conversations.

    Raises:
        UserError: the chat template refuses one; names its row.
    """
    try:
        return prepare.tokens(split)
    except Exception as error:  # Jinja, tokenizers and TRL raise of many kinds
        for row in split:
            try:
                prepare.render(_plain(row))
            except Exception as refused:
                raise UserError(
                    f"{where}, row {row['row'] + 1}: the chat template refuses it: {reason(refused)}"
                ) from (error)
        raise UserError(f"{where}: the conversations cannot be prepared: {reason(error)}") from error


class _Preparation:
    """What SFTTrainer does with a data set before it trains.

    Args:
        tokenizer: with its chat template.
        answers_only: whether the loss is on the answers alone.
        seed: of the order before packing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, answers_only: bool, seed: int) -> None:
        self.tokenizer, self.answers_only = tokenizer, answers_only
        self.options: dict[str, Any] = {"seed": seed, "report_to": "none", "bf16": False, "use_cpu": True}

    def tokens(self, split: datasets.Dataset) -> datasets.Dataset:
        """`input_ids` and `labels`, uncut."""
        turns = self.answers_only and "messages" in split.column_names
        template = _training_template(self.tokenizer) if turns else None
        if turns and template is None:
            labelled = functools.partial(label_answers, tokenizer=self.tokenizer)
            return split.map(labelled, batched=True, remove_columns=split.column_names, num_proc=_processes(len(split)))
        with extra("chat"):
            from datasets import concatenate_datasets
        parts, places = [], []
        for part, rows in _by_options(split):
            made = self._run(part, template=template, assistant_only_loss=template is not None, max_length=None)
            parts.append(made.select_columns(list(KEPT)))
            places.append(rows)
        if len(parts) == 1:
            return parts[0]
        return concatenate_datasets(parts).select(np.argsort(np.concatenate(places)))

    def cut(self, tokens: datasets.Dataset, max_length: int) -> datasets.Dataset:
        """Cut at the end; without the conversations whose every answer lies behind it."""
        with extra("chat"):
            from datasets import concatenate_datasets
        whole = np.flatnonzero((_lengths(tokens) <= max_length) & _has_labels(tokens))
        if len(whole) == len(tokens):
            return tokens
        places = np.setdiff1d(np.arange(len(tokens)), whole)
        rest = self._run(tokens.select(places).add_column("place", places), max_length=max_length)
        rest = rest.select(np.flatnonzero(_has_labels(rest)))
        order = np.argsort(np.concatenate([whole, np.asarray(rest["place"][:], dtype=np.int64)]))
        return concatenate_datasets([tokens.select(whole), rest.remove_columns("place")]).select(order)

    def pack(self, tokens: datasets.Dataset, max_length: int) -> datasets.Dataset:
        """Several in a row of so many tokens, each whole, with `seq_lengths`."""
        return self._run(tokens, packing=True, max_length=max_length)

    def render(self, row: Mapping[str, Any]) -> None:
        """Put a row through the chat template, for its error."""
        for messages in (
            row.get("messages"),
            row.get("prompt"),
            [*(row.get("prompt") or ()), *row["completion"]] if isinstance(row.get("completion"), list) else None,
        ):
            if isinstance(messages, list):
                self.tokenizer.apply_chat_template(messages, **template_options(row))
        if self.answers_only and "messages" in row:
            label_answers({name: [value] for name, value in row.items()}, self.tokenizer)

    def _run(
        self, split: datasets.Dataset, *, packing: bool = False, template: str | None = None, **options: Any
    ) -> datasets.Dataset:
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer

        trainer: Any = SFTTrainer.__new__(SFTTrainer)  # its preparation needs no model: these three are all it reads
        trainer._tokenizer, trainer.chat_template = self.tokenizer, template
        trainer.completion_only_loss = self.answers_only
        with tempfile.TemporaryDirectory() as nowhere:
            processes = _processes(len(split))  # on several devices, the others wait for the first
            settings = SFTConfig(nowhere, packing=packing, dataset_num_proc=processes, **self.options, **options)
        made: datasets.Dataset = trainer._prepare_dataset(split, self.tokenizer, settings, packing, None, "one")
        return made


def _processes(rows: int) -> int | None:
    """How many processes share so many rows: None for few, or where a process cannot be forked."""
    import multiprocess  # type: ignore[import-untyped]  # what `datasets` starts them with

    method = multiprocess.get_start_method(allow_none=True) or multiprocess.get_all_start_methods()[0]
    if method != "fork" or multiprocess.current_process().daemon or multiprocessing.current_process().daemon:
        return None  # others run the main module once more, and a daemon has no children
    cores = usable_cores()
    wanted = min(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), rows // ROWS_EACH)
    return wanted if wanted > 1 else None


def _training_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template that marks the answers: the tokenizer's own, or TRL's of the same model; None if there is none."""
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    own = tokenizer.chat_template
    try:
        return get_training_chat_template(tokenizer) or (own["default"] if isinstance(own, dict) else own)
    except ValueError:
        return own if isinstance(own, str) and has_generation_markers(own) else None
