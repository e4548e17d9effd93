"""`aurora chat`: a conversation with a run or a model, in the terminal."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from .common import FormOfRun, LoadedIn, Model, quiet
from .printing import complain, note, stderr


def chat(
    folder: Model,
    form: FormOfRun = None,
    dtype: LoadedIn = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Of each answer.")] = 256,
    system: Annotated[str | None, typer.Option("--system", help="What comes before the conversation.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0: the likeliest token each time.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of answers at a temperature.")] = 0,
) -> None:
    """Talk to a language model: each line is a message, and the answer is shown as it is written.

    A model that was trained on plain texts goes on with each line as it stands. The conversation goes on until the end
    of the input, or `/exit`; `/new` begins another one. A message that cannot be answered is reported, and
    counts as not said.
    """
    quiet()
    from aurora_lora.errors import UserError
    from aurora_lora.train.chat_answers import Talk
    from aurora_lora.train.predicting import load_predictor

    with stderr().status("loading the model"):
        predictor = load_predictor(folder, form=form, dtype=dtype)
        talk = Talk(predictor, max_new_tokens, system=system, temperature=temperature, seed=seed)
    if talk.is_plain:
        plain = "the model was trained on plain text: what is typed is continued as it stands"
        note(plain, style="dim")
    is_terminal, failed = sys.stdin.isatty(), False
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a message that is no text is refused, and those after it read
    if is_terminal:
        stderr().print("/new begins another conversation, /exit or Ctrl-D ends", style="dim")
    while True:
        if is_terminal:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        said = line.strip()
        if not line or said == "/exit":
            break
        if said == "/new":
            talk.begin()
        elif said:
            try:
                talk.say(line.rstrip("\r\n") if talk.is_plain else said, lambda text: print(text, end="", flush=True))
                print(flush=True)
            except UserError as error:
                complain(str(error))
                failed = True
    if failed and not is_terminal:
        raise typer.Exit(2)
