"""The command `aurora`: parses, calls, prints. A user's mistake is one plain line on stderr and exit code 2."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Annotated

from aurora_lora._version import __version__
from aurora_lora.cli.common import Command, PlainGroup, plain_errors, plain_warnings
from aurora_lora.extras import drop_import_noise

# isort: split
import typer

from aurora_lora.cli import deploy, lists, research, train, use

drop_import_noise()
app = typer.Typer(
    cls=PlainGroup,
    help="Fine-tune with PEFT, know what a merge costs. More: `aurora COMMAND --help`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
GROUPS: dict[str, dict[Callable[..., None], str]] = {
    "Use your data": {
        lists.init: "Print a commented recipe to start from.",
        train.train: "Fine-tune, keep the best epoch, calibrate, score each form.",
        use.evaluate: "Score a run again, or on new examples.",
        use.predict: "Label or answer texts, images or the rows of a file.",
        use.chat: "Talk to a language model.",
        use.generate: "Draw images with a run of image generation.",
        lists.list_command: "Recipes, tasks, models, methods, studies that there are.",
    },
    "Deploy": {
        deploy.gap: "Measure what a merge loses, by layer and end to end.",
        deploy.merge: "Write a stand-alone model, also in 4 bits or GGUF.",
        deploy.export: "Write the adapter as a plain LoRA, exactly.",
        deploy.push: "Upload a run's adapter to the Hugging Face hub.",
    },
    "Research": {
        train.rank: "Find where an adapter's weights would do most.",
        deploy.sigma: "Draw the learned activation of each layer.",
        research.reproduce: "Run one table or figure of the paper.",
        research.sweep: "Tune every setting at one budget, then test it.",
        research.report: "Tables, a page or figures about runs.",
    },
}
for group, commands in GROUPS.items():
    for command, line in commands.items():
        name = command.__name__.removesuffix("_command")
        app.command(name, cls=Command, short_help=line, rich_help_panel=group)(plain_errors(command))
app.command(cls=Command, hidden=True)(plain_errors(train.pretrain))


@app.callback(invoke_without_command=True)
def main_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, hidden=True)
    ] = False,
) -> None:
    if version:
        print(f"aurora-lora {__version__}")
        raise typer.Exit


def main() -> None:
    """The entry point of the command `aurora`."""
    gc.set_threshold(20_000)  # imports make a million objects that stay: looking through them takes seconds
    plain_warnings()
    app()
