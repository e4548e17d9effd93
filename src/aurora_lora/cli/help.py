"""How `--help` is shown, the same with every version of Typer."""

from __future__ import annotations

import re
from shutil import get_terminal_size
from typing import Any

import typer
from typer.core import TyperCommand

UsageError: Any = typer.BadParameter.__mro__[1]
"""The class of Click, which newer versions of Typer have in themselves."""
NARROW = 62
"""Columns of a terminal below which boxes would cut what is in them."""
COLUMN = 16
"""Width of the column of names in a narrow terminal; what is longer has a line to itself."""


def reflowed(text: str) -> str:
    """Paragraphs of a docstring in one line each; lists, indented lines and blocks that begin with \\b as they are."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(one if _is_laid_out(one) else " ".join(one.split()) for one in paragraphs)


def _is_laid_out(paragraph: str) -> bool:
    return re.search(r"^(\x08|\s|[-*] |\d+\. )", paragraph, re.MULTILINE) is not None


class Help:
    """The help of a command and of the group: flags and arguments have no type; a narrow terminal gets no boxes."""

    rich_markup_mode: Any

    def get_params(self, ctx: Any) -> Any:
        """The parameters as Typer has them, but flags and arguments show no type."""
        found = super().get_params(ctx)  # type: ignore[misc]
        for one in found:
            if one.param_type_name == "argument" or getattr(one, "is_flag", False):
                one.display_type_rich = lambda ctx: None
        return found

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help as Typer does; in a narrow terminal, without boxes."""
        columns = get_terminal_size().columns
        if columns >= NARROW:
            super().format_help(ctx, formatter)  # type: ignore[misc]
            return
        self.rich_markup_mode, before = None, self.rich_markup_mode
        write_list = formatter.write_dl
        formatter.width = columns - 1
        formatter.write_dl = lambda rows: write_list(rows, col_max=COLUMN)
        try:
            super().format_help(ctx, formatter)  # type: ignore[misc]
        finally:
            self.rich_markup_mode = before


class Command(Help, TyperCommand):
    """A command whose usage has its arguments as they are written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = reflowed(self.help or "")
        self.short_help = self.help.partition("\n\n")[0]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The parts of the usage line behind the command's name: `[OPTIONS]`, and the arguments."""
        arguments = [one.metavar or one.name for one in self.get_params(ctx) if one.param_type_name == "argument"]
        return ["[OPTIONS]", *map(str, arguments)]

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a mistake in the arguments that it finds says which command it was."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            error.ctx = error.ctx or ctx
            raise


def usage_mistake(error: Any) -> str:
    """A mistake in the arguments, in one line, with the command whose help says what they are."""
    text = " ".join(error.format_message().split())
    context = error.ctx
    command = f"{context.info_name} " if context is not None and context.parent is not None else ""
    return f"{text}{'' if text.endswith(('.', '?')) else '.'} See `aurora {command}--help`."
