"""Conversations: a causal language model is trained to answer by TRL's SFTTrainer, and judged by the tokens of held-out
answers."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
)

from ...chat_template import without_none
from ...data.loading import reason
from ...data.metrics import chat_metrics
from ...data.own import columns as cells
from ...data.own.chat import Question, answer_of, opening, question_of, template_options, text_of
from ...data.own.split import BadRow
from ...deploy.inputs import evaluated, plain_model
from ...errors import ArgumentError, UserError, one_line
from ...extras import extra
from ...files import expanded, file_digest, read_json, write_json
from ..data import Data
from ..kind_facts import CHAT, TrainedWith
from ..models import Processor, base_for, room
from ..recipe import Recipe
from ..tokens import PLAIN, answers_after, open_ended
from ..trainer import is_main, on_main, state
from .base import Kind, as_answers

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
"""The key in `tokenizer_config.json` that has one of the three below: what the model is trained in, and so asked in."""
CONVERSATION, PROMPT, TEXT = "conversation", "prompt", "text"
NEW_TOKENS, SAMPLE_TOKENS = 256, 64
"""The most tokens of an answer, and of one that is written for the result."""
SAMPLES = 3
"""Held-out conversations that answers are written for, where `task.samples` does not say how many."""
Prompt = Question | Sequence[Any] | str
"""The messages so far, with what else the chat template gets or without, or a text to go on with."""


@dataclass(frozen=True)
class ChatData(Data):
    """`Data`, and the held-out conversations that answers are written for: `prompt`, what is asked, and `expected`."""

    asked: Sequence[Mapping[str, Any]] = field(default=())


class Chat(Kind):
    """Columns `messages`; `prompt` and `completion`; or `text`."""

    facts = CHAT

    def metrics(self, data: Data, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return chat_metrics(predictions)

    def made(self, config: Any) -> bool:
        return False  # its models look like those of multiple choice

    def encode(self, recipe: Recipe, processor: Processor, splits: Mapping[str, Any]) -> Data:
        with extra("chat"):
            from . import sft
        tokenizer, section, source = cast(Any, processor), recipe.task, recipe.task.definition.source
        assert section.max_length is not None  # filled in by validation
        first = next(iter(splits.values()))[0]
        form = TEXT if "text" in first else PROMPT if isinstance(first.get("prompt"), str) else CONVERSATION
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
        tokenizer.init_kwargs[KEY] = form  # it goes with the tokenizer, wherever that is saved
        max_length, answers = min(section.max_length, tokenizer.model_max_length), section.loss_on != "all"
        marked, by_turn = copy.copy(tokenizer), answers and "messages" in first
        if by_turn:
            marked.chat_template = sft.training_template(tokenizer, recipe.model)
        prepared = functools.partial(sft.prepared, recipe, completion_only_loss=answers, eval_packing=False)
        splits = {name: _with_options(split) for name, split in splits.items()}
        try:
            whole = prepared(marked, splits, assistant_only_loss=by_turn, max_length=None)
        except Exception as error:  # Jinja, tokenizers and TRL raise of many kinds
            raise _not_prepared(error, tokenizer, splits, source) from error
        made = prepared(tokenizer, whole, max_length=max_length)
        texts, lost = {}, {}
        for name, split in whole.items():
            texts[name] = [int((_lengths(split) > max_length).sum()), len(split)]
            lost[name] = len(split) - len(made[name])
            if not len(made[name]):
                raise UserError(f"task.max_length: no answer of the {name} split begins within {max_length} tokens")
            if name != "train":
                made[name] = made[name].select(np.argsort(_lengths(made[name]), kind="stable"))
        record: dict[str, Any] = {"cut": {"max_length": max_length, "texts": texts}, "files": template}
        if any(lost.values()):
            record["without_answer"] = {name: count for name, count in lost.items() if count}
        if form == CONVERSATION and (behind := _asked_otherwise(tokenizer, first, next(iter(whole.values()))[0])):
            record["asked_otherwise"] = behind
        unpacked = made.get("train") if section.packing else None
        if unpacked is not None:
            packed = prepared(tokenizer, {"train": unpacked}, packing=True, max_length=max_length)
            made |= packed
            record["packed"] = len(packed["train"])
        held_out = splits[[name for name in splits if name != "train"][-1]]
        rows = (
            _plain(held_out[at])
            for at in range(min(len(held_out), SAMPLES if section.samples is None else section.samples))
        )
        return ChatData(
            recipe.task.definition,
            tokenizer,
            made,
            sft.DataCollatorForLanguageModeling(tokenizer.pad_token_id),
            unchanged=unpacked,
            record=record,
            lengths={name: _lengths(split).tolist() for name, split in made.items()},
            asked=[
                {"prompt": asked, "expected": answer_of(row)} for row in rows if (asked := opening(row)) is not None
            ],
        )

    def trainer(
        self,
        recipe: Recipe,
        model: nn.Module,
        data: Data,
        arguments: dict[str, Any],
        callbacks: Sequence[TrainerCallback],
    ) -> Trainer:
        with extra("chat"):
            from . import sft
        given = self.trainer_options(model, data, arguments, callbacks)
        for name in ("model", "args", "data_collator"):  # the last is TRL's own
            del given[name]
        fields = {**arguments, "max_length": None, "padding_free": bool(recipe.task.packing)}
        fields["dataset_kwargs"] = {"skip_prepare_dataset": True}  # which `encode` has done
        kept = [(one, one.dtype, one.data) for one in model.parameters() if one.requires_grad]
        try:
            trainer = sft.made(model, fields, processing_class=data.processor, **given)
        except ValueError as error:
            raise UserError(f"method: {one_line(error)}") from error
        for parameter, dtype, before in kept:  # TRL rounds adapters on a quantised base to bfloat16
            if parameter.dtype != dtype:
                parameter.data = before.to(parameter.device)
        if recipe.task.packing and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            with trainer.accelerator.autocast():
                check_packing(model)
        return cast(Trainer, trainer)

    def before(self, recipe: Recipe, trainer: Any, data: Data) -> dict[str, float]:
        if not _has_base(recipe, trainer.model):
            return {}
        with trainer.model.disable_adapter():
            return self.evaluate(trainer, data, (recipe.test_sets or ("test",))[0])

    def samples(self, recipe: Recipe, trainer: Any, data: Data) -> list[dict[str, str]]:
        """Answers in held-out conversations, before the training and after, in the form that is deployed.

        Of several processes, the main one writes them while the others wait; none where each has a part of the model.
        """
        assert isinstance(data, ChatData)
        is_shared_out = state().num_processes > 1 and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
        if is_shared_out and data.asked and is_main():
            warnings.warn("no sample answers are written: the processes share out the model", stacklevel=2)
        if is_shared_out or not data.asked:
            return []
        try:
            return on_main(lambda: _samples(recipe, trainer, data))
        except torch.OutOfMemoryError:  # as for a base that is loaded beside the model: no run is lost for that
            warnings.warn("no sample answers are written: the GPU has too little memory for them", stacklevel=2)
            return []

    def finish_merged(self, folder: Path, model: Any, processor: Processor) -> None:
        """An answer ends where a turn does, which the base's own generation config need not say."""
        last = sorted(ends(model, cast(PreTrainedTokenizerBase, processor)))
        path = folder / "generation_config.json"
        settings = read_json(path) if path.is_file() else {}
        write_json(path, {**settings, "eos_token_id": last[0] if len(last) == 1 else last})

    def answers(
        self, model: Any, processor: Processor, texts: Sequence[Any], source: str, trained: TrainedWith
    ) -> list[dict[str, Any]]:
        tokenizer = cast(PreTrainedTokenizerBase, processor)
        if tokenizer.chat_template is None and not all(isinstance(text, str) for text in texts):
            raise UserError(f"{source} answers plain texts alone, and no messages: its tokenizer has no chat template")
        prompts = texts if is_plain(tokenizer) else [_as_said(text) for text in texts]
        written, cut = answers_greedily(model, tokenizer, prompts)
        return as_answers(texts, ({"answer": answer} for answer in written), cut)

    def asked(self, row: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> Any:
        """The messages up to the last answer, left out where there is one; or a text, that of a named column."""
        if named := columns.get("text"):
            if len(named) > 1:
                raise ArgumentError(f"`columns`: {', '.join(named)} are too many: a language model is asked one text")
            return cells.text(row[named[0]], named[0])
        return question_of(_plain(row), *columns.get("format", ()))

    def check_asked(self, asked: Any, processor: Processor) -> None:
        tokenizer = cast(PreTrainedTokenizerBase, processor)
        prompt = asked if is_plain(tokenizer) else _as_said(asked)
        if isinstance(prompt, str) or tokenizer.chat_template is None:
            return
        messages, options = _parts(prompt)
        try:
            tokenizer.apply_chat_template(list(messages), **{**options, "tokenize": False})
        except Exception as error:  # Jinja's, and whatever templates raise
            raise BadRow(f"the chat template refuses it: {reason(error)}") from error

    def shown(self, answer: Mapping[str, Any]) -> tuple[str, ...]:
        return answer["answer"], "", str(answer["text"])


def _as_said(text: Any) -> Any:
    """A text as what the user says."""
    return [{"role": "user", "content": text}] if isinstance(text, str) else text


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what Arrow adds to it: a message has only the fields that it was given."""
    return {name: without_none(value) for name, value in row.items()}


# ---------------------------------------------------------------- data


def _with_options(split: Any) -> Any:
    """A split in which every row gives the chat template options, where some do: TRL takes no null for none."""
    column = "chat_template_kwargs"
    if column not in split.column_names or all(given is not None for given in split[column]):
        return split
    if all(given is None for given in split[column]):
        return split.remove_columns(column)
    return split.map(lambda row: {column: row[column] or {}}, features=split.features)


def set_template(tokenizer: PreTrainedTokenizerBase, given: str | None) -> dict[str, str]:
    """Give a tokenizer the chat template that a recipe names: `chatml`, or a file.

    Returns:
        The sha256 of the file by its name, where it is one.

    Raises:
        UserError: the file cannot be read.
    """
    if given == "chatml":
        end = "<|im_end|>" if "<|im_end|>" in tokenizer.get_vocab() else tokenizer.eos_token
        tokenizer.chat_template = CHATML.replace("END", str(end))
    elif given is not None:
        try:
            tokenizer.chat_template = expanded(given).read_text(encoding="utf-8-sig")
            return {given: file_digest(expanded(given))}
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"task.chat_template: {given} is neither 'chatml' nor a file to read: {why}") from error
    return {}


def _not_prepared(error: Exception, tokenizer: Any, splits: Mapping[str, Any], source: str) -> UserError:
    """What is said where conversations cannot be prepared; names the first row that the chat template refuses."""
    for name, split in splits.items():
        for row in map(_plain, split):
            said = [row.get("messages") or row.get("prompt"), row.get("completion")]
            try:
                if isinstance(said[0], list):
                    tokenizer.apply_chat_template([*said[0], *(said[1] or ())], **template_options(row))
            except Exception as refused:
                return UserError(
                    f"{source}, {name}, row {row['row'] + 1}: the chat template refuses it: {reason(refused)}"
                )
    return UserError(f"{source}: the conversations cannot be prepared: {reason(error)}")


def _asked_otherwise(tokenizer: Any, first: Mapping[str, Any], example: Mapping[str, Any]) -> str | None:
    """The end of a prompt in the chat template that no trained answer follows, such as the `<think>` that some end a
    prompt with and leave out of answers. None where a model is asked as it is trained."""
    row = _plain(first)
    said = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
    place = next(number for number, one in enumerate(said) if one["role"] == "assistant")
    try:
        prompt = Question(said[:place], template_options(row))
        asked = str(tokenizer.decode(prompt_ids(tokenizer, prompt))) if place else ""
    except Exception:  # a template may refuse a part of a conversation that it takes whole
        return None
    trained = str(tokenizer.decode(example["input_ids"]))
    same = next((at for at, (a, b) in enumerate(zip(asked, trained, strict=False)) if a != b), len(trained))
    return None if trained.startswith(asked) else asked[same:]


def _lengths(data: Any) -> np.ndarray[Any, Any]:
    """The tokens of each row."""
    with extra("chat"):
        import pyarrow.compute as pc
    found: np.ndarray[Any, Any] = pc.list_value_length(data.with_format("arrow")[:]["input_ids"]).to_numpy()
    return found


@torch.no_grad()
def check_packing(model: nn.Module) -> None:
    """Raise a UserError where the second of two texts in a row sees the first: where each begins is told by positions
    alone, of which some models make no mask (OPT, Falcon), and some have none (BLOOM) or a state besides (LFM2)."""
    device = next(model.parameters()).device
    first, second = (torch.arange(start, start + 6, device=device)[None] for start in (5, 12))
    whole, at = torch.cat((first, second), dim=1), torch.arange(6, device=device)[None]
    with evaluated(model):
        try:
            alone = model(input_ids=second, position_ids=at, use_cache=False).logits.float()
            packed = model(input_ids=whole, position_ids=torch.cat((at, at), dim=1), use_cache=False).logits.float()
        except TypeError as error:
            raise UserError(f"task.packing: true is not allowed: {one_line(error)}") from error
        seen = model(input_ids=whole, use_cache=False).logits.float()  # with nothing between them
    if (packed[:, 6:] - alone).norm() > 0.1 * (seen[:, 6:] - alone).norm():
        kind = type(plain_model(model)).__name__
        raise UserError(
            f"task.packing: true is not allowed: conversations in a row would see each other in a {kind}: leave it out"
        )


# ---------------------------------------------------------------- answers


def is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text is given to the model as it stands, and not as what a user says in a conversation."""
    recorded = recorded_format(tokenizer)
    return tokenizer.chat_template is None if recorded is None else recorded != CONVERSATION


def recorded_format(tokenizer: Any) -> str | None:
    """What a tokenizer's model was trained in; None where nobody wrote that down."""
    found = getattr(tokenizer, "init_kwargs", {}).get(KEY)
    return found if found in (CONVERSATION, PROMPT, TEXT) else None


def answers_greedily(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int = NEW_TOKENS,
    longest: int | None = None,
) -> tuple[list[str], list[int | None]]:
    """The most likely next token each time, until the turn ends; the prompts are padded left.

    Args:
        model: a causal language model, in eval mode.
        tokenizer: with its chat template, where prompts are messages.
        prompts: a batch; of one that is too long for the model, its end is read.
        max_new_tokens: of each answer.
        longest: tokens of a prompt that are read at most, where that is fewer.

    Returns:
        The answers, and the number of tokens that each prompt was cut to, if it was.
    """
    most, max_new_tokens = room(model, max_new_tokens)
    most = most if longest is None else min(most, longest)
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    settings = generation(model, tokenizer, max_new_tokens)
    texts_alone = all(isinstance(prompt, str) for prompt in prompts)  # an answer goes on where the prompt ends
    return answers_after(model, tokenizer, rows, most, settings, as_it_begins=texts_alone)


def generation(
    model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, temperature: float = 0.0
) -> GenerationConfig:
    """Greedy, or sampled at a temperature; ends where a turn does. What is not said, the model says."""
    sampled = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(ends(model, tokenizer)),
        num_beams=1,
        **PLAIN,
        **(sampled if temperature else {"do_sample": False}),
    )


def ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer: the tokenizer's, the model's, and what the chat template ends a turn with."""
    found = getattr(model.generation_config, "eos_token_id", None)
    known = {tokenizer.eos_token_id, *(found if isinstance(found, list) else [found])}
    if tokenizer.chat_template is not None:
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        with contextlib.suppress(Exception):  # a template that wants more of a conversation
            ids = cast(Any, tokenizer).apply_chat_template(turn, return_dict=True)["input_ids"]
            special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
            known |= {[token for token in ids if str(tokenizer.decode([token])).strip()][-1]} & special
    return {token for token in known if token is not None}


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The tokens after which an answer begins."""
    if isinstance(prompt, str):
        return open_ended(tokenizer, [prompt])[0]
    messages, options = _parts(prompt)
    return list(cast(Any, tokenizer).apply_chat_template(list(messages), return_dict=True, **options)["input_ids"])


def _parts(prompt: Question | Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    """The messages, and what else the chat template gets."""
    messages, options = (prompt.messages, prompt.options) if isinstance(prompt, Question) else (prompt, {})
    return messages, {**options, "add_generation_prompt": True}


def _has_base(recipe: Recipe, model: Any) -> bool:
    """Whether the base model is there, below its adapter."""
    return recipe.method.base_use == "frozen" and hasattr(model, "disable_adapter")


def _samples(recipe: Recipe, trainer: Any, data: ChatData) -> list[dict[str, str]]:
    tokenizer: Any = data.processor
    prompts, longest = [one["prompt"] for one in data.asked], recipe.task.max_length  # what is held out may be longer
    trainer.model.eval()
    autocast = trainer.accelerator.autocast  # `generate` does not go through the `forward` that has it
    with autocast(), recipe.method.using(trainer.model, recipe.method.deployed_form):
        after, _ = answers_greedily(trainer.model, tokenizer, prompts, SAMPLE_TOKENS, longest)
    with autocast(), _untrained(recipe, trainer, data) as model:
        before, _ = answers_greedily(model, tokenizer, prompts, SAMPLE_TOKENS, longest)
    said = [prompt if isinstance(prompt, str) else text_of(prompt.messages[-1]) for prompt in prompts]
    return [
        {"prompt": prompt, "expected": str(asked["expected"]), "before": old, "after": new}
        for prompt, asked, old, new in zip(said, data.asked, before, after, strict=True)
    ]


@contextlib.contextmanager
def _untrained(recipe: Recipe, trainer: Any, data: Data) -> Iterator[Any]:
    """The base model: below its adapter, or loaded anew where its own weights were trained."""
    model: Any = trainer.model
    if _has_base(recipe, model):
        with model.disable_adapter():
            yield model
    else:
        yield base_for(recipe, data.processor, data.labels).to(next(model.parameters()).device).eval()
