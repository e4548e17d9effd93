"""The command `aurora`: parses, calls, prints. A user's mistake is one plain line on stderr and exit code 2."""

from __future__ import annotations

import gc
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
    help="AuroRA: fine-tune with a nonlinear low-rank adapter, calibrate it, merge it, use it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (*train.COMMANDS, *use.COMMANDS, *deploy.COMMANDS, *research.COMMANDS, lists.init):
    app.command(cls=Command, hidden=command is train.pretrain)(plain_errors(command))
app.command(name="list", cls=Command)(plain_errors(lists.list_command))


@app.callback(invoke_without_command=True)
def main_options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"aurora-lora {__version__}")
        raise typer.Exit


def main() -> None:
    """The entry point of the command `aurora`."""
    gc.set_threshold(20_000)  # imports make a million objects that stay: looking through them takes seconds
    plain_warnings()
    app()
