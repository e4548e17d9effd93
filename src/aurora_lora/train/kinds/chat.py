"""Conversations: a causal language model is trained to answer by TRL's SFTTrainer, and judged by the tokens of held-out
answers."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase, Trainer

from ...chat_template import template_options, without_none
from ...data.loading import plainly, reason
from ...data.metrics import chat_metrics
from ...data.own import columns as cells
from ...data.own.chat import Question, as_ours, question_of
from ...deploy.inputs import evaluated, plain_model
from ...errors import ArgumentError, UserError, one_line
from ...extras import extra
from ...files import expanded, file_digest, read_json, write_json
from ..data import Data, open_ended, padded
from ..kind_facts import CHAT, TrainedWith
from ..models import Processor, room
from ..recipe import Recipe
from .text import Kind, as_answers

PLAIN: dict[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "length_penalty": 1.0}
"""What is not left to the model's own settings of generation."""
NEW_TOKENS = 256
"""The most tokens of an answer."""
KEY = "aurora_chat_format"
"""The key in `tokenizer_config.json` that has one of the three below: what the model is trained in, and so asked in."""
CONVERSATION, PROMPT, TEXT = "conversation", "prompt", "text"
Prompt = Question | Sequence[Any] | str
"""The messages so far, with what else the chat template gets or without, or a text to go on with."""
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
        tokenizer, section = cast(Any, processor), recipe.task
        assert section.max_length is not None  # filled in by validation
        first = next(iter(splits.values()))[0]
        form = TEXT if "text" in first else PROMPT if isinstance(first.get("prompt"), str) else CONVERSATION
        if form == TEXT and section.loss_on == "answer":
            raise UserError(
                "task.loss_on: 'answer' needs conversations, or prompt and completion: a 'text' is learned whole"
            )
        template = set_template(tokenizer, section.chat_template)
        if is_templated := form == PROMPT and tokenizer.chat_template is not None:
            form, splits = CONVERSATION, {name: split.map(_as_messages) for name, split in splits.items()}
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
            raise _not_prepared(error, tokenizer, splits, section.definition.source) from error
        made = prepared(tokenizer, whole, max_length=max_length)
        texts = {name: [int((_lengths(split) > max_length).sum()), len(split)] for name, split in whole.items()}
        for name, split in made.items():
            if not len(split):
                raise UserError(f"task.max_length: no answer of the {name} split begins within {max_length} tokens")
            if name != "train":
                made[name] = split.select(np.argsort(_lengths(split), kind="stable"))
        record: dict[str, Any] = {"cut": {"max_length": max_length, "texts": texts}, "files": template}
        if is_templated:
            record["said_by"] = ["user", "assistant"]
        if lost := {name: len(whole[name]) - len(made[name]) for name in made if len(whole[name]) > len(made[name])}:
            record["without_answer"] = lost
        unpacked = made.get("train") if section.packing else None
        if unpacked is not None:
            made |= prepared(tokenizer, {"train": unpacked}, packing=True, max_length=max_length)
            record["packed"] = len(made["train"])
        return Data(
            section.definition,
            tokenizer,
            made,
            sft.DataCollatorForLanguageModeling(tokenizer.pad_token_id),
            unchanged=unpacked,
            record=record,
            lengths={name: _lengths(split).tolist() for name, split in made.items()},
        )

    def trainer(self, recipe: Recipe, data: Data, arguments: dict[str, Any], **given: Any) -> Trainer:
        with extra("chat"):
            from . import sft
        model = given.pop("model")
        given |= self.of_data(data)
        del given["data_collator"]  # TRL has its own
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
        if recipe.method.base_use != "frozen" or not hasattr(trainer.model, "disable_adapter"):
            return {}
        with trainer.model.disable_adapter():
            return self.evaluate(trainer, data, (recipe.test_sets or ("test",))[0])

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
        prompts = texts
        if not is_plain(tokenizer):
            prompts = [[{"role": "user", "content": text}] if isinstance(text, str) else text for text in texts]
        written, cut = answers_greedily(model, tokenizer, prompts)
        return as_answers(texts, ({"answer": answer} for answer in written), cut)

    def asked(self, row: Mapping[str, Any], columns: Mapping[str, Sequence[str]], folder: Path | None = None) -> Any:
        """The messages up to the last answer, left out where there is one; or a text, that of a named column."""
        if named := columns.get("text"):
            if len(named) > 1:
                raise ArgumentError(f"`columns`: {', '.join(named)} are too many: a language model is asked one text")
            return cells.text(row[named[0]], named[0])
        return question_of(as_ours(_plain(row), columns), *columns.get("format", ()))


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what Arrow adds to it: a message has only the fields that it was given."""
    return {name: without_none(value) for name, value in row.items()}


def _as_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    """A plain prompt as what a user says, and its completion as the assistant's answer."""
    said = {"prompt": "user", "completion": "assistant"}
    return {name: [{"role": role, "content": row[name]}] for name, role in said.items()}


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
                where = f"{source}, {name}, row {row['row'] + 1}"
                return UserError(f"{where}: the chat template refuses it: {reason(refused)}")
    return UserError(f"{source}: the conversations cannot be prepared: {reason(error)}")


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


# ---------------------------------------------------------------- what a language model writes


def is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text is given to the model as it stands, and not as what a user says in a conversation."""
    recorded = recorded_format(tokenizer)
    return tokenizer.chat_template is None if recorded is None else recorded != CONVERSATION


def recorded_format(tokenizer: Any) -> str | None:
    """What a tokenizer's model was trained in; None where nobody wrote that down."""
    found = getattr(tokenizer, "init_kwargs", {}).get(KEY)
    return found if found in (CONVERSATION, PROMPT, TEXT) else None


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The tokens after which an answer begins; a UserError where the chat template refuses the conversation."""
    if isinstance(prompt, str):
        return open_ended(tokenizer, [prompt])[0]
    messages, options = (prompt.messages, prompt.options) if isinstance(prompt, Question) else (prompt, {})
    more: Mapping[str, Any] = {**options, "add_generation_prompt": True, "return_dict": True}
    with plainly("the chat template refuses it"):
        if not (ids := cast(Any, tokenizer).apply_chat_template(list(messages), **more)["input_ids"]):
            raise ValueError("it writes nothing")
    return list(ids)


def answers_greedily(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int = NEW_TOKENS,
) -> tuple[list[str], list[int | None]]:
    """The most likely next token each time, until the turn ends; the prompts are padded left.

    Args:
        model: a causal language model, in eval mode.
        tokenizer: with its chat template, where prompts are messages.
        prompts: a batch; of one that is too long for the model, its end is read.
        max_new_tokens: of each answer.

    Returns:
        The answers, and the number of tokens that each prompt was cut to, if it was.

    Raises:
        UserError: the chat template refuses a conversation.
    """
    most, max_new_tokens = room(model, max_new_tokens)
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    ids, mask = padded([row[-most:] for row in rows], tokenizer.pad_token_id, left=True)
    texts = written_after(model, tokenizer, ids, mask, generation(model, tokenizer, max_new_tokens))
    goes_on = all(isinstance(prompt, str) for prompt in prompts)  # where the prompt ends
    cut = [most if len(row) > most else None for row in rows]
    return [text.rstrip() if goes_on else text.strip() for text in texts], cut


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


def written_after(
    model: Any, tokenizer: PreTrainedTokenizerBase, ids: Tensor, mask: Tensor, settings: GenerationConfig
) -> list[str]:
    """What a model writes after prompts (batch, tokens) that are padded left, without special tokens."""
    device = next(model.parameters()).device
    with torch.no_grad():
        written = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings)
    rows = [until_end(row, settings) for row in written[:, ids.shape[1] :].tolist()]
    return list(map(str, tokenizer.batch_decode(rows, skip_special_tokens=True)))


def ends_of(settings: GenerationConfig) -> set[int]:
    """The tokens that end what is written."""
    found = settings.eos_token_id
    return set(found) if isinstance(found, list) else set() if found is None else {found}


def until_end(ids: list[int], settings: GenerationConfig) -> list[int]:
    """The tokens before the one that ends them, which need not be special, and would be decoded."""
    stops = ends_of(settings)
    return ids[: next((place for place, token in enumerate(ids) if token in stops), len(ids))]
