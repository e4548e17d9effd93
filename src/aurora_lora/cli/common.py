"""What the commands share: options, errors as one plain line, progress."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import gc
import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

from aurora_lora.errors import ArgumentError, AuroraError, FormError, one_line
from aurora_lora.extras import missing
from aurora_lora.termination import TerminatedError, watched

try:
    import typer
    from typer.core import TyperGroup

    from .printing import complain, fail, stderr
except ModuleNotFoundError as error:
    print(missing(error, "train"), file=sys.stderr)
    raise SystemExit(2) from None

from .help import Help, UsageError, usage_mistake

if TYPE_CHECKING:
    from aurora_lora.train.progress import ProgressBar

P = ParamSpec("P")
R = TypeVar("R")

RESUMABLE = ("train", "pretrain", "reproduce", "sweep")
TRAINING = ("train", "reproduce", "sweep", "rank")
"""Commands whose memory the fields of a recipe decide."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished `aurora train`.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a run, or a merged model.")]
RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A name that `aurora list recipes` has, or a YAML file.")
]
FormOfRun = Annotated[
    str | None, typer.Option("--form", metavar="FORM", help="Form of a run; by default the one that is deployed.")
]
Encoding = Annotated[
    str | None, typer.Option("--encoding", metavar="NAME", help="Of FILE, as `cp1252`; by default as in training.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the runs, and run nothing.")]
LoadedIn = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="Load in float32, bfloat16 or float16; by default a run in float32, a model as it was saved.",
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        "--split", metavar="NAME", help="train, validation or a test set; what the result reports by default."
    ),
]


_OPTIONS = {"options": "--set", "inference_steps": "--steps", "columns": "--column"}
"""The options for those arguments of the library that have another name here."""


def _with_options(error: AuroraError) -> str:
    """An error, with the command's options in place of the library's arguments."""
    if isinstance(error, FormError):
        return re.sub("^form='(.*?)'", r"--form \1", str(error))
    if not isinstance(error, ArgumentError):
        return str(error)
    return re.sub(r"`(\w+)`", lambda name: _OPTIONS.get(name[1], f"--{name[1].replace('_', '-')}"), str(error))


def plain_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print what a user can put right as one line, without a traceback."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with watched():
                done = command(*args, **kwargs)
                _leave_processes()
            return done
        except AuroraError as error:
            if (cause := _out_of_memory(error)) is None:
                fail(_with_options(error))
            else:
                _say_out_of_memory(cause, command.__name__)
            raise typer.Exit(2) from error
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("aurora_lora"):
                raise
            fail(missing(error, "train"))
            raise typer.Exit(2) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # `aurora ... | head`
                raise
            fail(f"{error.filename or 'cannot write'}: {error.strerror or error}")
            raise typer.Exit(2) from error
        except (KeyboardInterrupt, TerminatedError) as error:
            again = ": the same command resumes where it was" if _resumes(command.__name__, kwargs) else ""
            complain("interrupted" + again)
            raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 143) from error
        except BaseException as error:
            if (cause := _out_of_memory(error)) is not None:
                _say_out_of_memory(cause, command.__name__)
                raise typer.Exit(2) from error
            if type(error).__name__ != "PanicException":  # of tokenizers, in Rust: no Exception, and of no public class
                raise
            fail(f"a tokenizer failed, it may be damaged: {one_line(error)}")
            raise typer.Exit(2) from error

    return guarded


def _resumes(command: str, options: Mapping[str, Any]) -> bool:
    """Whether an interrupted command has kept what it did: `predict` where it writes into a file."""
    if command == "predict":
        return bool(options.get("output"))
    return command in RESUMABLE and not options.get("dry_run")


def _out_of_memory(error: BaseException | None) -> BaseException | None:
    """What a GPU that has too little memory has raised, if that is what an error comes from; torch is not imported."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return None
    full: type[BaseException] = torch.OutOfMemoryError
    while error is not None and not isinstance(error, full):
        error = error.__cause__
    return error


class _LessMemory:
    """Advice, by command."""

    predict = "take less with a smaller --batch-size or --dtype bfloat16 (an --output is then begun anew)"
    chat = "take less with --dtype bfloat16 or a smaller --max-new-tokens"
    train = (
        "halve training.batch_size and double training.gradient_accumulation_steps; set, where the recipe has them, "
        "training.gradient_checkpointing=true, training.precision=bf16 or model.quantization=nf4; or lower "
        "task.max_length, of texts: `aurora train ... --dry-run` says what fits. Of an evaluation, a smaller "
        "training.eval_batch_size is enough, with which a run that has begun goes on"
    )


def _say_out_of_memory(error: BaseException, command: str) -> None:
    """On whatever process has too little: the others may have enough."""
    said = ". ".join(one_line(error).split(". ")[:3]).rstrip(".")  # the rest is of PyTorch's own settings
    other = "end other programs that use the GPU, or compute without it: CUDA_VISIBLE_DEVICES= aurora ..."
    advice = getattr(_LessMemory, "train" if command in TRAINING else command, other)
    print(f"out of GPU memory: {said}: {advice}", file=sys.stderr)


def _leave_processes() -> None:
    """At the end of what `accelerate launch` has started; without an import of torch where none was needed."""
    if "torch.distributed" in sys.modules:
        from aurora_lora.deploy.moments import leave_processes

        leave_processes()


class PlainGroup(Help, TyperGroup):
    """The command: a mistake in its arguments is one plain line, as any other, and so is an output that is full."""

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
                complain(usage_mistake(error))
            sys.exit(2)
        except OSError as error:
            if error.errno == errno.EPIPE:
                code = 1
            else:
                complain(f"cannot write the output: {error.strerror or error}")
                code = 2
            _forget_output()
        sys.exit(code if isinstance(code, int) else 0)


def _forget_output() -> None:
    """Nothing more is written to stdout, so that Python does not fail once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def quiet() -> None:
    """Silence the libraries."""
    from aurora_lora.train.progress import quiet_libraries

    quiet_libraries()


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str], ProgressBar]]:
    """Gives a maker of progress bars, which are taken off the screen at the end."""
    from aurora_lora.train.progress import ProgressBar

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


NOTICE_AFTER = 2.0
"""Seconds that a stage before the training may take before a line says what it is."""


class Stages:
    """Says what a command does before it has a bar to show: a line for each stage that takes a while."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def __call__(self, text: str) -> None:
        """Another stage begins."""
        self.done()
        self._timer = threading.Timer(NOTICE_AFTER, lambda: complain(f"aurora: {text}"))
        self._timer.daemon = True
        self._timer.start()

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        self.done()

    def done(self) -> None:
        """Something else is shown from here on."""
        if self._timer is not None:
            self._timer.cancel()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around the imports of a command: the garbage collector rests, and never looks through what they made.

    They make about a million objects that stay, and forked processes would each copy what it looks through: one to two
    of the seconds before the first training step.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # else libraries complain of what is left when the process ends
        if was_on:
            gc.enable()


def make_models(names: Sequence[str]) -> None:
    """Pretrain those of the models that are pretrained here and have not been yet."""
    from aurora_lora.data.models import is_missing

    missing = list(filter(is_missing, names))
    if not missing or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return  # under `accelerate launch`, the error of the model that is not there names the command
    from aurora_lora.train.pretraining import ensure

    quiet()
    with progress_bars() as bar:

        def callbacks(name: str) -> Callable[[], list[ProgressBar]]:
            shown = [bar(f"pretraining {name}")]
            return lambda: shown

        ensure(missing, callbacks)
