"""What a model answers in a conversation, or goes on with after a text: in batches, and token by token."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextStreamer

from ..data.loading import reason
from ..data.own.chat import Question
from ..data.own.columns import text
from ..data.own.split import BadRow
from ..errors import ArgumentError, UserError
from .chat_format import is_plain, recorded_format, template_ids
from .models import room
from .tokens import PLAIN, answers_after, ends_of, open_ended, until_end

if TYPE_CHECKING:
    from .predicting import Predictor

Prompt = Question | Sequence[Any] | str
"""The messages so far, with what else the chat template gets or without, or a text to go on with."""
NEW_TOKENS = 256
_COLDEST = 1e-3
"""Below it, logits that are divided by the temperature leave float32."""


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
        As `answers_after`.
    """
    most, max_new_tokens = room(model, max_new_tokens)
    most = most if longest is None else min(most, longest)
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    settings = generation(model, tokenizer, max_new_tokens)
    is_plain = all(isinstance(prompt, str) for prompt in prompts)  # an answer goes on where the prompt ends
    return answers_after(model, tokenizer, rows, most, settings, as_it_begins=is_plain)


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
            ids = template_ids(tokenizer, turn)
            special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
            last = [token for token in ids if str(tokenizer.decode([token])).strip()][-1]
            known |= {last} & special
    return {token for token in known if token is not None}


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The tokens after which an answer begins."""
    if isinstance(prompt, str):
        return open_ended(tokenizer, [prompt])[0]
    messages, options = _parts(prompt)
    return template_ids(tokenizer, messages, **options)


def check_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> None:
    """Raise a BadRow where the chat template refuses a prompt."""
    if isinstance(prompt, str) or tokenizer.chat_template is None:
        return
    messages, options = _parts(prompt)
    try:
        tokenizer.apply_chat_template(list(messages), **{**options, "tokenize": False})
    except Exception as error:  # Jinja's, and whatever templates raise
        raise BadRow(f"the chat template refuses it: {reason(error)}") from error


def _parts(prompt: Question | Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    """The messages, and what else the chat template gets."""
    messages, options = (prompt.messages, prompt.options) if isinstance(prompt, Question) else (prompt, {})
    return messages, {**options, "add_generation_prompt": True}


class Talk:
    """A conversation with a model; of one that was trained on plain texts, a text after the other to go on with.

    Args:
        predictor: the model.
        max_new_tokens: of each answer.
        system: what comes before the conversation.
        temperature: 0 takes the likeliest token each time.
        seed: of what is drawn at a temperature.

    Raises:
        UserError: no language model; one without a chat template that is not known to be trained on plain texts; or
            one that is, and `system`; or a temperature that logits cannot be divided by.
    """

    def __init__(
        self,
        predictor: Predictor,
        max_new_tokens: int = NEW_TOKENS,
        *,
        system: str | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        tokenizer: Any = predictor.processor
        if predictor.kind.facts.task_type != "CAUSAL_LM":
            raise UserError(f"{predictor.folder} is a model of {predictor.kind.facts.name}: it has no conversations")
        if recorded_format(tokenizer) is None and getattr(tokenizer, "chat_template", None) is None:
            raise UserError(f"the tokenizer in {predictor.folder} has no chat template")
        self.is_plain = is_plain(tokenizer)
        if self.is_plain and system is not None:
            raise ArgumentError(
                f"`system` goes with conversations: the model in {predictor.folder} was trained on plain text"
            )
        if system:
            _check_text(system, "system")
        if 0 < temperature < _COLDEST:
            raise ArgumentError(f"`temperature` must be 0 or at least {_COLDEST}, got {temperature}")
        self.model: Any = predictor.model
        self.tokenizer, self.system = tokenizer, system
        self.most, max_new_tokens = room(self.model, max_new_tokens)
        self.settings = generation(self.model, tokenizer, max_new_tokens, temperature)
        torch.manual_seed(seed)
        self.begin()

    def begin(self) -> None:
        """Forget what was said."""
        self.said: list[dict[str, str]] = [] if self.system is None else [{"role": "system", "content": self.system}]

    def say(self, text: str, show: Callable[[str], None]) -> str:
        """The answer to a message, or what a plain text goes on with.

        Args:
            text: what the user says.
            show: called with each piece of the answer as it is written.

        Raises:
            UserError: the chat template refuses the conversation, the message is empty or no UTF-8, or alone too long
                for the model; it is as if it had not been said.
        """
        _check_text(text, "message")
        said, ids = self._with({"role": "user", "content": text})
        inputs = torch.tensor([ids], device=next(self.model.parameters()).device)
        with torch.no_grad():
            written = self.model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                generation_config=self.settings,
                streamer=_Show(self.tokenizer, show, ends_of(self.settings)),
            )
        found = until_end(written[0, len(ids) :].tolist(), self.settings)
        answer = str(self.tokenizer.decode(found, skip_special_tokens=True)).strip()
        if not self.is_plain:  # a text is no turn of a conversation
            self.said = [*said, {"role": "assistant", "content": answer}]
        return answer

    def _with(self, message: dict[str, str]) -> tuple[list[dict[str, str]], list[int]]:
        """The conversation with a message more, and its tokens; where it is too long, without its oldest turns."""
        said, first = [*self.said, message], 0 if self.system is None else 1
        while len(ids := self._ids(said)) > self.most:
            if len(said) < first + 3:
                raise UserError(
                    f"the message is too long: {len(ids):,} tokens, where the model takes {self.most:,} and "
                    f"an answer of {self.settings.max_new_tokens:,}"
                )
            del said[first : first + 2]
        return said, ids

    def _ids(self, said: list[dict[str, str]]) -> list[int]:
        try:
            return prompt_ids(self.tokenizer, said[-1]["content"] if self.is_plain else said)
        except Exception as error:  # Jinja's, and whatever templates raise
            raise UserError(f"the chat template refuses it: {reason(error)}") from error


def _check_text(said: str, name: str) -> None:
    try:
        text(said, name)
    except BadRow as error:
        raise UserError(str(error)) from error


class _Show(TextStreamer):
    """Gives on what is written, without the prompt and the end of the turn."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None], ends: set[int]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.show, self.ends = show, ends

    def put(self, value: Any) -> None:
        if self.next_tokens_are_prompt or int(value.reshape(-1)[-1]) not in self.ends:
            super().put(value)  # type: ignore[no-untyped-call]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.show(text)
