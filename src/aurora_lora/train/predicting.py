"""What a model says about texts, images, the rows of a file, and in a conversation: `aurora predict` and `chat`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas
import torch
import transformers
from torch import nn
from transformers import AutoConfig, TextStreamer

from .. import files
from ..data.loading import NO_CODE, plainly
from ..data.own.columns import text as text_in
from ..data.own.kinds import OWN
from ..data.own.source import FORMATS, UTF_8, OwnData, open_given, separator_of
from ..data.own.split import BadRow, bad_row
from ..data.vision import as_files
from ..deploy.export import DTYPES
from ..errors import ArgumentError, FormError, NotFiniteError, UserError, check_count
from ..files import expanded
from ..values import check_finite
from . import BATCH_SIZE
from .data import in_batches
from .finished_run import TrainedRun, as_run, merge_note
from .kind_facts import TrainedWith
from .kinds import KINDS, Kind, chat, kind_of, kind_of_model
from .models import (
    FLOAT32,
    Processor,
    check_dtype,
    compute_in,
    fill_padding,
    from_safetensors,
    on_device,
    precision_of,
    room,
)
from .publish import RECIPE
from .recipe import own_source
from .run import load_trained_model

LINES = (".jsonl", ".ndjson")
"""What a file with a line of JSON for each row may be called, of the suffixes that tell a format."""
CSV = tuple(ending for ending, kind in FORMATS.items() if kind == "csv")


@dataclass(frozen=True)
class Predictor:
    """A model that answers, of the kind of task that it was made for: a run in one form, or a plain model."""

    folder: Path
    kind: Kind = field(repr=False)
    model: nn.Module = field(repr=False)
    processor: Processor = field(repr=False)
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    """The columns of a file to predict, by the field of a recipe's task that names them."""
    data: OwnData | None = field(default=None, repr=False)
    """Where the data of the user's own is that it was trained on."""
    trained: TrainedWith = field(default_factory=TrainedWith, repr=False)
    form: Any = field(default=None, repr=False)
    """The context in which the model computes its form."""

    def answers(self, texts: Sequence[str], *, batch_size: int = BATCH_SIZE) -> list[dict[str, Any]]:
        """What the model says about texts, or about images; see `predict`."""
        if isinstance(texts, str | bytes | Path):  # whose letters would be taken for texts
            raise TypeError(f"texts={texts!r:.80} is a {type(texts).__name__}: it must be a list of texts")
        check_count("batch_size", batch_size)
        takes_images = self.kind.facts.inputs == "image"
        if len(pair := self.columns.get("text", ())) > 1 and self.kind.facts.problem_type is not None:
            raise UserError(f"the model takes pairs of texts ({', '.join(map(str, pair))}), from the rows of a file")
        for number, text in enumerate(texts, start=1):
            if not isinstance(text, str | Path if takes_images else str):
                raise TypeError(f"text {number} must be a str, and is a {type(text).__name__}: {text!r:.80}")
            if not takes_images:
                _check_text(str(text), f"text {number}")
        return self.answers_to(list(map(str, texts)), batch_size)

    def answers_to(self, asked: Sequence[Any], batch_size: int) -> list[dict[str, Any]]:
        """What the model says about texts or images, or about what `Kind.asked` gives of the rows of a file."""
        found: list[dict[str, Any]] = []
        for batch in in_batches(asked, batch_size):
            with plainly(f"{self.folder} cannot be used"):  # settings of a model or tokenizer that fit each other not
                found += self.kind.answers(self.model, self.processor, batch, str(self.folder), self.trained)
        return found


def predict(
    run: TrainedRun | Path | str,
    texts: Sequence[str],
    *,
    batch_size: int = BATCH_SIZE,
    form: str | None = None,
    dtype: str | None = None,
) -> list[dict[str, Any]]:
    """What a model says about texts, or about images.

    Args:
        run: a finished run or its folder; or the folder of any sequence or image classifier or causal language model
            that plain Transformers can load, such as the output of `merge`.
        texts: a list of texts; the paths of the files for an image classifier.
        batch_size: texts of one forward pass.
        form: see `load_predictor`.
        dtype: see `load_predictor`.

    Returns:
        For each text: `text`, `label` and `probability`; `text` and `value` for a regression; `text`, `labels` (those
        above a half) and `probabilities` (of every label) where a text has several; `text` and `answer` for a language
        model, which is given the text in the format that it was trained in: as an instruction, as what a user says, or
        as it stands; and `cut_at`, a number of tokens, for a text that was cut, as in training, or of which a language
        model reads the end alone, as it has no positions for more.

    Raises:
        UserError: the folder holds neither; no such dtype or batch size; an image cannot be read; a text is empty or
            no UTF-8, or one where the run was trained on pairs.
        NotFiniteError: NaN or infinity among the weights, also as rounded, or in the logits of a classifier.
        StaleCalibrationError: the run's calibrated matrix does not belong to its adapter.
        FormError: the run has no such form, or the folder is no run.
        TypeError: `run` is neither a run nor a path, or `texts` is no list of texts.
    """
    return load_predictor(run, form=form, dtype=dtype).answers(texts, batch_size=batch_size)


def _check_text(said: str, name: str) -> None:
    try:
        text_in(said, name)
    except BadRow as error:
        raise UserError(str(error)) from error


def load_predictor(run: TrainedRun | Path | str, *, form: str | None = None, dtype: str | None = None) -> Predictor:
    """What answers with a run or with the model in a folder; the errors are those of `predict`.

    Args:
        run: a finished run, its folder, or that of a plain model.
        form: of the run; the one that it deploys if None.
        dtype: "float32", "bfloat16" or "float16": of the weights, which are read in it one by one, and of the
            computation. Of a run, adapter and head stay in float32, as in a training of that precision. None is float32
            for a run, and for a plain model what its configuration says.

    Raises:
        FormError: the run has no such form, or the folder is no run.
    """
    if dtype is not None:
        check_dtype(dtype)
    if isinstance(run, (str, Path)) and not (Path(run) / RECIPE).is_file():
        return _of_model(Path(run), form, dtype)
    return _of_run(as_run(run), form, dtype or FLOAT32)


def _of_run(run: TrainedRun, form: str | None, dtype: str) -> Predictor:
    folder, kind, section = run.folder, kind_of(run.task), run.recipe.task
    if kind.facts.no_answer:
        raise UserError(f"the run in {folder} {kind.facts.no_answer}")
    form = form or run.deployed_form
    run.check_form(form)
    is_rounded = dtype != FLOAT32
    model, processor = load_trained_model(run.in_precision(precision_of(dtype)), rounded=is_rounded)
    if is_rounded:
        _check_rounded(model, folder, dtype)  # what was trained is rounded only now
    model = on_device(model)
    if is_rounded:
        compute_in(model, dtype)
        kind.keep_exact(model)
    computes = run.recipe.method.using(model, form)
    computes.__enter__()  # for as long as it answers; refuses a calibration of other weights
    data = own_source(OWN[section.name], dict(section))[0] if section.name in OWN else None
    return Predictor(folder, kind, model, processor, run.columns, data, run.trained_with, computes)


def _of_model(folder: Path, form: str | None, dtype: str | None) -> Predictor:
    """The predictor of a plain model."""
    if form is not None:
        raise FormError(f"form={form!r}: {folder} is not the folder of a run, and has no forms")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is neither the folder of a run ({RECIPE}) nor a model (config.json)")
    note = merge_note(folder)
    with plainly(f"{folder} cannot be loaded"):  # Transformers and tokenizers raise of every kind on damaged files
        # of causal language models, the note alone can tell
        kind = KINDS.get(note.get("kind", "")) or kind_of_model(AutoConfig.from_pretrained(folder, **NO_CODE))
        if kind.facts.no_answer:
            raise UserError(f"the model in {folder} {kind.facts.no_answer}")
        given = {} if dtype is None else {"dtype": DTYPES[dtype]}
        model, info = from_safetensors(getattr(transformers, kind.facts.auto), str(folder), **given)
        if missing := sorted({*info["missing_keys"], *(str(key[0]) for key in info["mismatched_keys"])}):
            raise UserError(f"{folder} cannot be used: its files lack {', '.join(missing[:3])}, which would be random")
        _check_rounded(model, folder, dtype)
        processor = kind.processor(str(folder.resolve()))
        talks = chat.recorded_format(processor) or getattr(processor, "chat_template", None)
        if not note and kind is KINDS["multiple-choice"] and talks:
            kind = KINDS["chat"]  # a model of someone else's
        fill_padding(model.config, processor)
        trained = TrainedWith(**note.get("trained_with", {}))
        columns = {name: tuple(some) for name, some in note.get("columns", {}).items()}
        return Predictor(folder, kind, on_device(model), processor, columns, trained=trained)


def _check_rounded(model: nn.Module, folder: Path, dtype: str | None) -> None:
    """Raise a NotFiniteError for a weight that is not finite in the dtype that it was loaded in."""
    try:
        check_finite(model.state_dict().items(), f"{folder} cannot be used")
    except NotFiniteError as error:
        if dtype == "float16":
            raise NotFiniteError(f"{error}; as float16, which ends at 65,504: bfloat16 does not") from error
        raise


# ---------------------------------------------------------------- the rows of a file


@dataclass(frozen=True)
class Written:
    """What was written: of how many rows of what, and how many of them were cut, to how many tokens."""

    name: str
    rows: int
    cut: int
    cut_at: int | None


def check_answers_file(file: Path | str, output: Path, overwrite: bool = False) -> None:
    """Raise an ArgumentError where the answers to the rows of a file cannot be written to `output`."""
    if Path(file).exists() and Path(file).resolve() == output.resolve():
        raise ArgumentError(f"`output`: {output} is the file that is read: choose another")
    if output.is_dir():
        raise ArgumentError(f"`output`: {output} is a folder: name a file, such as {output / 'answers.jsonl'}")
    ending = output.suffix.lower()
    if ending in FORMATS.keys() - {*LINES, ".txt"} and not (Path(file).suffix.lower() == ending in CSV):
        raise ArgumentError(
            f"`output`: {output}: answers are JSON lines, or CSV where FILE is: name it {output.with_suffix(LINES[0])}"
        )
    if output.exists() and not overwrite:
        raise ArgumentError(f"{output} is there already: choose another file, or `overwrite` replaces it")


def predict_file(
    predictor: Predictor,
    file: Path | str,
    output: Path | str,
    columns: Sequence[str] = (),
    *,
    encoding: str | None = None,
    split: str | None = None,
    batch_size: int = BATCH_SIZE,
    overwrite: bool = False,
    step: Callable[[int, int], None] = lambda done, of: None,
) -> Written:
    """Write a line of JSON, or a row of CSV, for each row of a file: its columns, and the answer, `predicted_X` where X
    is one of them, and `predicted_X_2` where that is one, too.

    Args:
        predictor: what answers.
        file: what `task.data` may be: .csv, .tsv, .json, .jsonl, .parquet or .arrow, a folder, a data set of the hub.
        output: .jsonl, or .csv where `file` is; has its place when the last row is answered; see `check_answers_file`.
        columns: the columns with the texts or images, or with the question and then the options, where they are not
            those that the run was trained on.
        encoding: of a text file; None is that of the data that the run was trained on.
        split: of a folder or a data set of the hub; None is `train`, or the only one.
        batch_size: rows of one forward pass.
        overwrite: replace a file that is there.
        step: called with the rows that are answered and all of them.

    Raises:
        UserError: the file cannot be read, or a row cannot be answered: none is, then; or `output` cannot be written.
    """
    file, output = str(file), Path(output)
    check_answers_file(file, output, overwrite)
    check_count("batch_size", batch_size)
    kind = predictor.kind
    named = {**predictor.columns}
    if columns and kind.facts.has_choices:
        named |= {"question": columns[:1], **({"options": columns[1:]} if columns[1:] else {})}
    elif columns:
        named[kind.facts.inputs] = columns
    own = predictor.data or OwnData(file)
    own = own if encoding is None else replace(own, encoding=encoding)
    piece = open_given(file, own, split=split)["train"]
    rows, cut, table = as_files(piece.data), [], []

    def free(name: str, row: Mapping[str, Any]) -> str:
        names = (name, f"predicted_{name}", *(f"predicted_{name}_{at}" for at in range(2, len(row) + 2)))
        return next(one for one in names if one not in row)

    def asked(number: int, row: Mapping[str, Any]) -> Any:
        try:
            return kind.asked(row, named, piece.folder)
        except KeyError as error:
            there = ", ".join(map(repr, rows.column_names))
            raise ArgumentError(f"{piece.name} has no column {error} (it has {there}): `columns` names it") from None
        except ValueError as error:
            raise bad_row(piece, number, error) from error

    try:
        for number, row in enumerate(rows, start=1):  # before hours of answers are in vain
            asked(number, row)
    except UnicodeDecodeError as error:
        raise UserError(f"{piece.name} has text that is no UTF-8: {error}") from error
    with files.plain_write_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with files.new_file(output) as partial, partial.open("w", encoding="utf-8", newline="") as out:
            for places in in_batches(range(len(rows)), batch_size):
                batch = [(place + 1, rows[place]) for place in places]
                answers = predictor.answers_to([asked(*one) for one in batch], batch_size)
                for (number, row), answer in zip(batch, answers, strict=True):
                    said = {free(name, row): value for name, value in answer.items() if name != "text"}
                    shown = {name: _shown(value, rows.features[name], number) for name, value in row.items()}
                    line = files.finite_or_none({**shown, **said})
                    said = {name: _in_json(one) if isinstance(one, list | dict) else one for name, one in line.items()}
                    table += [said] if output.suffix.lower() in CSV else []
                    out.write("" if table else _in_json(line) + "\n")
                    cut += [answer["cut_at"]] if "cut_at" in answer else []
                step(places[-1] + 1, len(rows))
            if table:
                separator = separator_of(expanded(file), own.encoding or UTF_8)
                pandas.DataFrame(table, dtype=object).to_csv(out, sep=separator, index=False)
    return Written(piece.name, len(rows), len(cut), cut[0] if cut else None)


def _in_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)


def _shown(value: Any, feature: Any, number: int) -> Any:
    """What stands in a line for a class, also in a list or a field of an object: its name; and for an image: its path,
    or the row's number if it has none.
    """
    if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:
        return value["path"] or number
    if isinstance(value, Mapping) and isinstance(feature, Mapping):
        return {name: _shown(one, feature[name], number) for name, one in value.items()}
    if isinstance(value, list):
        return [_shown(one, getattr(feature, "feature", None), number) for one in value]
    if isinstance(value, int) and hasattr(feature, "int2str"):
        return feature.int2str(value) if value >= 0 else None
    return number if isinstance(value, bytes) else value


# ---------------------------------------------------------------- a conversation

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
        max_new_tokens: int = chat.NEW_TOKENS,
        *,
        system: str | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        tokenizer: Any = predictor.processor
        if predictor.kind.facts.task_type != "CAUSAL_LM":
            raise UserError(f"{predictor.folder} is a model of {predictor.kind.facts.name}: it has no conversations")
        if chat.recorded_format(tokenizer) is None and getattr(tokenizer, "chat_template", None) is None:
            raise UserError(f"the tokenizer in {predictor.folder} has no chat template")
        self.is_plain = chat.is_plain(tokenizer)
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
        self.settings = chat.generation(self.model, tokenizer, max_new_tokens, temperature)
        torch.manual_seed(seed)
        self.begin()

    def begin(self) -> None:
        """Forget what was said."""
        self.said: list[dict[str, str]] = [] if self.system is None else [{"role": "system", "content": self.system}]

    def say(self, text: str, show: Callable[[str], None]) -> str:
        """The answer to a message, or what a plain text goes on with; without the oldest turns, where the conversation
        is too long.

        Args:
            text: what the user says.
            show: called with each piece of the answer as it is written.

        Raises:
            UserError: the chat template refuses the conversation, the message is empty or no UTF-8, or alone too long
                for the model; it is as if it had not been said.
        """
        _check_text(text, "message")
        said, first = [*self.said, {"role": "user", "content": text}], 0 if self.system is None else 1
        while len(ids := chat.prompt_ids(self.tokenizer, text if self.is_plain else said)) > self.most:
            if len(said) < first + 3:
                raise UserError(
                    f"the message is too long: {len(ids):,} tokens, where the model takes {self.most:,} and "
                    f"an answer of {self.settings.max_new_tokens:,}"
                )
            del said[first : first + 2]
        inputs = torch.tensor([ids], device=next(self.model.parameters()).device)
        with torch.no_grad():
            written = self.model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                generation_config=self.settings,
                streamer=_Show(self.tokenizer, show, chat.ends_of(self.settings)),
            )
        found = chat.until_end(written[0, len(ids) :].tolist(), self.settings)
        answer = str(self.tokenizer.decode(found, skip_special_tokens=True)).strip()
        if not self.is_plain:  # a text is no turn of a conversation
            self.said = [*said, {"role": "assistant", "content": answer}]
        return answer


class _Show(TextStreamer):
    """Gives on what is written, without the prompt and the end of the turn."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None], ends: set[int]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_finalized_text, self.ends = lambda text, stream_end=False: show(text), ends  # type: ignore[method-assign]

    def put(self, value: Any) -> None:
        if self.next_tokens_are_prompt or int(value.reshape(-1)[-1]) not in self.ends:
            super().put(value)  # type: ignore[no-untyped-call]
