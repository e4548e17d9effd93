"""What the commands share: options, consoles, errors as one plain line, progress."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

from aurora_lora.errors import ArgumentError, AuroraError, FormError, UserError, one_line
from aurora_lora.extras import missing
from aurora_lora.files import json_text, write_json
from aurora_lora.machine import launched_as_main
from aurora_lora.termination import TerminatedError, watched

try:
    import typer
    from rich.console import Console
    from typer.core import TyperCommand, TyperGroup
except ModuleNotFoundError as error:
    print(missing(error, "train"), file=sys.stderr)
    raise SystemExit(2) from None

if TYPE_CHECKING:
    from aurora_lora.text_table import TextTable
    from aurora_lora.train.trainer import ProgressBar

P = ParamSpec("P")
R = TypeVar("R")

RESUMABLE = ("train", "pretrain", "reproduce", "sweep")
UsageError: Any = typer.BadParameter.__mro__[1]
"""The class of Click, which newer versions of Typer have in themselves."""
WIDTH = 80

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished `aurora train`.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a run, or a merged model.")]
RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A name that `aurora list recipes` has, or a YAML file.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, such as training.epochs=1.")
]
FormOfRun = Annotated[
    str | None, typer.Option("--form", metavar="FORM", help="Form of a run; by default the one that is deployed.")
]
Examples = Annotated[int | None, typer.Option("--examples", metavar="N", help="At most N of the inputs.")]
Encoding = Annotated[str | None, typer.Option("--encoding", metavar="NAME", help="Of FILE, as `cp1252`.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the runs, and run nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier OUT.")]
LoadedIn = Annotated[str | None, typer.Option("--dtype", metavar="DTYPE", help="float32, bfloat16 or float16.")]
Split = Annotated[
    str | None,
    typer.Option("--split", metavar="NAME", help="train, validation or a test set; else the reported."),
]

# ---------------------------------------------------------------- what is printed


def stdout() -> Console:
    """What is printed there has texts, names and paths of the user's: brackets in them are no markup.

    As wide as the terminal, but no narrower than `WIDTH`, which it is in a file or a pipe.
    """
    width = max(WIDTH, get_terminal_size((WIDTH, 0)).columns) if sys.stdout.isatty() else WIDTH
    return Console(width=width, markup=False, emoji=False, highlight=False)


def stderr() -> Console:
    """The console for notes and errors; silent in other processes than the one that prints."""
    return Console(stderr=True, quiet=not launched_as_main(), markup=False, emoji=False, highlight=False)


def print_tables(tables: Iterable[TextTable]) -> None:
    """Tables on stdout. No number in them is broken where nothing sets the width: in a file or a pipe."""
    for table in tables:
        console = stdout()
        if not sys.stdout.isatty():
            console.width = max(console.width, table.least_width)
        console.print(table)


def print_json(value: Any) -> None:
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json_text(value, ascii_only=not is_utf8))


def complain(text: str) -> None:
    """A line on stderr, of the main process alone."""
    if launched_as_main():
        print(text, file=sys.stderr)


def note(text: str, style: str | None = None) -> None:
    """A line on stderr, as long as it is, beside what the command gives."""
    stderr().print(text, style=style, soft_wrap=True)


def say_written(paths: Iterable[Path]) -> None:
    stdout().print("wrote " + ", ".join(map(str, paths)), soft_wrap=True)


def plain_warnings() -> None:
    """Print a warning at a line of this package as one line; others as Python does, which says whose they are."""
    ours, as_python_does = Path(__file__).parents[1], warnings.formatwarning

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if category is UserWarning and Path(filename).is_relative_to(ours):
            return f"aurora: warning: {message}\n"
        return as_python_does(message, category, filename, lineno, line)

    warnings.formatwarning = formatted


# ---------------------------------------------------------------- errors as one line

_OPTIONS = {"inference_steps": "--steps", "columns": "--column"}
"""The options for those arguments of the library that have another name here."""


def _with_options(error: AuroraError) -> str:
    """An error, with the command's options in place of the library's arguments."""
    if isinstance(error, FormError):
        return re.sub("^form='(.*?)'", r"--form \1", str(error))
    if not isinstance(error, ArgumentError):
        return str(error)
    return re.sub(r"`(\w+)`", lambda name: _OPTIONS.get(name[1], f"--{name[1].replace('_', '-')}"), str(error))


def _as_line(error: BaseException) -> str | None:
    """What a user can put right, as one line; None of a defect of ours."""
    torch: Any = sys.modules.get("torch")
    cause: BaseException | None = error
    while torch is not None and cause is not None:
        if isinstance(cause, torch.OutOfMemoryError):
            return (
                f"out of GPU memory: {one_line(cause).partition('. ')[0]}: take a smaller training.batch_size with "
                "more training.gradient_accumulation_steps, or --batch-size; training.precision=bf16; --dtype bfloat16;"
                " training.gradient_checkpointing=true; model.quantization=nf4: `aurora train ... --dry-run` estimates"
            )
        cause = cause.__cause__
    if isinstance(error, AuroraError):
        return _with_options(error)
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("aurora_lora"):
        return missing(error, "train")
    if isinstance(error, OSError) and error.errno != errno.EPIPE:  # `aurora ... | head`
        return f"{error.filename or 'cannot write'}: {error.strerror or error}"
    if str(error).startswith("Symlink loop"):  # of pathlib, before Python 3.13
        return one_line(error)
    if type(error).__name__ == "PanicException":  # of tokenizers, in Rust: no Exception, and of no public class
        return f"a tokenizer failed, it may be damaged: {one_line(error)}"
    return None


def plain_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print what a user can put right as one line, without a traceback."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with watched():
                done = command(*args, **kwargs)
                if "torch.distributed" in sys.modules:  # the end of what `accelerate launch` has started
                    from aurora_lora.deploy.calibrate import leave_processes

                    leave_processes()
            return done
        except (KeyboardInterrupt, TerminatedError) as error:
            resumes = command.__name__ in RESUMABLE and not kwargs.get("dry_run")
            complain("interrupted" + (": the same command resumes where it was" if resumes else ""))
            raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 143) from error
        except BaseException as error:
            if (line := _as_line(error)) is None:
                raise
            if launched_as_main() or os.environ.get("LOCAL_RANK") == "0":  # the first process of each machine
                print(line, file=sys.stderr)
            raise typer.Exit(2) from error

    return guarded


class Command(TyperCommand):
    """A command whose usage has its arguments as they are written, and whose help fills its lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = re.sub(r"(?<!\n)\n(?!\n)", " ", (self.help or "").strip())

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


class PlainGroup(TyperGroup):
    """The command: a mistake in its arguments is one plain line, as any other, and so is an output that is full."""

    def get_help_option(self, ctx: Any) -> Any:
        """`--help`, which the first screen has no room to list."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.hidden = True
        return option

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command that was typed, as Typer does, and always exit."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a file's name may be no text
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
            sys.stdout.flush()
        except UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
            else:
                complain(_usage_mistake(error))
            sys.exit(2)
        except OSError as error:
            code = 1 if error.errno == errno.EPIPE else 2
            if code == 2:
                complain(f"cannot write the output: {error.strerror or error}")
            with contextlib.suppress(OSError, ValueError):  # so that Python does not fail once more when it ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(code if isinstance(code, int) else 0)


def _usage_mistake(error: Any) -> str:
    """A mistake in the arguments, in one line, with the command whose help says what they are."""
    text = " ".join(error.format_message().split())
    context = error.ctx
    command = f"{context.info_name} " if context is not None and context.parent is not None else ""
    return f"{text}{'' if text.endswith(('.', '?')) else '.'} See `aurora {command}--help`."


# ---------------------------------------------------------------- progress


def quiet() -> None:
    """Silence the libraries."""
    from aurora_lora.train.trainer import quiet_libraries

    quiet_libraries()


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str], ProgressBar]]:
    """Gives a maker of progress bars, which are taken off the screen at the end."""
    from aurora_lora.train.trainer import ProgressBar

    console = stderr()
    bars: list[ProgressBar] = []

    def bar(title: str) -> ProgressBar:
        bars.append(ProgressBar(console, title))
        return bars[-1]

    try:
        yield bar
    finally:
        for each in bars:
            each.stop()


def make_models(names: Sequence[str]) -> None:
    """Pretrain those of the models that are pretrained here and have not been yet."""
    from aurora_lora.data.models import is_missing

    missing = list(filter(is_missing, names))
    if not missing or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return  # under `accelerate launch`, the error of the model that is not there names the command
    from aurora_lora.train.run import ensure

    quiet()
    with progress_bars() as bar:

        def callbacks(name: str) -> Callable[[], list[ProgressBar]]:
            shown = [bar(f"pretraining {name}")]
            return lambda: shown

        ensure(missing, callbacks)


# ---------------------------------------------------------------- what is measured

Figures = dict[str, Callable[[dict[str, Any]], Any]]
"""What draws what was measured, by the name of the file."""
MeasuredInto = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="OUT", help="Where the files go; DIR by default.")
]


def write_measured(path: Path, record: dict[str, Any], figures: Figures, subject: str, as_json: bool) -> None:
    """Write what was measured as JSON, its figures beside it where any can be drawn, and say so."""
    from aurora_lora.lab.report.figures import about, check_matplotlib, save

    write_json(path, record)
    written = [path]
    try:
        if figures:
            check_matplotlib()
    except UserError as error:
        note(f"no figure: {error}")
    else:
        for name, figure in figures.items():
            written += save(about(figure(record), subject), path.with_name(name))
    if as_json:
        print_json({**record, "written": [str(each) for each in written]})
    else:
        say_written(written)
