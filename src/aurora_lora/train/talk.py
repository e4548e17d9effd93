"""A conversation with a language model, token by token: `aurora chat`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import TextStreamer

from ..data.loading import reason
from ..data.own.columns import text as text_in
from ..data.own.split import BadRow
from ..errors import ArgumentError, UserError
from .kinds.chat import NEW_TOKENS, generation, is_plain, prompt_ids, recorded_format
from .models import room
from .predicting import Predictor
from .tokens import ends_of, until_end

_COLDEST = 1e-3
"""Below it, logits that are divided by the temperature leave float32."""


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
        text_in(said, name)
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
