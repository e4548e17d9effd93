"""What a model says about texts or images, a finished run or a plain model: `aurora predict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig

from ..data.loading import NO_CODE, reason
from ..data.own.kinds import OWN
from ..data.own.source import OwnData
from ..data.own.split import BadRow
from ..deploy.export import DTYPES
from ..errors import AuroraError, FormError, NotFiniteError, UserError, check_count
from ..finite import check_finite
from .build import load_trained_model
from .chat_format import recorded_format
from .data import in_batches
from .defaults import BATCH_SIZE
from .finished_run import TrainedRun, as_run
from .kind_facts import TrainedWith
from .kinds import KINDS, Kind, kind_of, kind_of_model
from .merge_note import merge_note, noted_columns, noted_training
from .models import Processor, fill_padding, from_safetensors
from .precision import FLOAT32, check_dtype, compute_in, on_device, precision_of
from .publish import RECIPE
from .recipe import own_source


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
    form_name: str | None = None
    """The name of the form that a run computes."""
    dtype: str | None = None
    """The dtype that it was asked to be loaded in."""

    def answers(self, texts: Sequence[str], *, batch_size: int = BATCH_SIZE) -> list[dict[str, Any]]:
        """What the model says about texts, or about images; see `predict`."""
        _check_list(texts)
        check_count("batch_size", batch_size)
        asked = [self._checked(number, text) for number, text in enumerate(texts, start=1)]
        return self.answers_to(asked, batch_size)

    def _checked(self, number: int, text: Any) -> str:
        if isinstance(text, Path) and self.kind.facts.inputs == "image":
            return str(text)
        if not isinstance(text, str):
            raise TypeError(f"text {number} must be a str, and is a {type(text).__name__}: {text!r:.80}")
        return text

    def answers_to(self, asked: Sequence[Any], batch_size: int) -> list[dict[str, Any]]:
        """What the model says about texts or images, or about what `Kind.asked` gives of the rows of a file."""
        found: list[dict[str, Any]] = []
        for number, given in enumerate(asked, start=1):
            if isinstance(given, str):
                try:
                    self.kind.check_text(given, f"text {number}", self.columns)
                except BadRow as error:
                    raise UserError(str(error)) from error
        for batch in in_batches(asked, batch_size):
            try:
                found += self.kind.answers(self.model, self.processor, batch, str(self.folder), self.trained)
            except AuroraError:
                raise
            except Exception as error:  # settings of a model or tokenizer that do not fit each other
                raise UserError(f"{self.folder} cannot be used: {reason(error)}") from error
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
    _check_list(texts)
    check_count("batch_size", batch_size)
    return load_predictor(run, form=form, dtype=dtype).answers(texts, batch_size=batch_size)


def _check_list(texts: Any) -> None:
    """Raise a TypeError for a single text, whose letters would be taken for texts."""
    if isinstance(texts, (str, bytes, Path)):
        raise TypeError(f"texts={texts!r:.80} is a {type(texts).__name__}: it must be a list, such as [{texts!r:.80}]")


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
    return _of_run(as_run(run), form, dtype)


def _of_run(run: TrainedRun, form: str | None, dtype: str | None) -> Predictor:
    folder, kind = run.folder, kind_of(run.task)
    if kind.facts.no_answer:
        raise UserError(f"the run in {folder} {kind.facts.no_answer}")
    form = form or run.deployed_form
    run.check_form(form)
    if dtype in (None, FLOAT32):
        model, processor = load_trained_model(run.in_float32)
        model = on_device(model)
    else:
        assert dtype is not None
        model, processor = load_trained_model(run.in_precision(precision_of(dtype)), rounded=True)
        _check_rounded(model, folder, dtype)  # what was trained is rounded only now
        model = on_device(model)
        compute_in(model, dtype)
        kind.keep_exact(model)
    computes = run.recipe.method.using(model, form)
    computes.__enter__()  # for as long as it answers; refuses a calibration of other weights
    section = run.recipe.task
    data = own_source(OWN[section.name], dict(section))[0] if section.name in OWN else None
    return Predictor(
        folder, kind, model, processor, run.columns, data, run.trained_with, computes, form, dtype or FLOAT32
    )


def _of_model(folder: Path, form: str | None, dtype: str | None) -> Predictor:
    """The predictor of a plain model."""
    if form is not None:
        raise FormError(f"form={form!r}: {folder} is not the folder of a run, and has no forms")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is neither the folder of a run ({RECIPE}) nor a model (config.json)")
    try:
        note = merge_note(folder)
        noted = KINDS.get((note or {}).get("kind", ""))  # of causal language models, the note alone can tell
        kind = noted or kind_of_model(AutoConfig.from_pretrained(folder, **NO_CODE))
        if kind.facts.no_answer:
            raise UserError(f"the model in {folder} {kind.facts.no_answer}")
        model = on_device(_pretrained(getattr(transformers, kind.facts.auto), folder, dtype))
        processor = kind.processor(str(folder.resolve()))
        talks = recorded_format(processor) or getattr(processor, "chat_template", None)
        if note is None and kind is KINDS["multiple-choice"] and talks:
            kind = KINDS["chat"]  # a model of someone else's
        fill_padding(model.config, processor)
        columns, trained = noted_columns(folder), noted_training(folder)
        return Predictor(folder, kind, model, processor, columns, trained=trained, dtype=dtype)
    except AuroraError:
        raise
    except Exception as error:  # Transformers and tokenizers raise of every kind on damaged files
        raise UserError(f"{folder} cannot be loaded: {reason(error)}") from error


def _pretrained(kind: Any, folder: Path, dtype: str | None) -> nn.Module:
    given = {} if dtype is None else {"dtype": DTYPES[dtype]}
    model, info = from_safetensors(kind, str(folder), **given)
    if missing := sorted({*info["missing_keys"], *(str(key[0]) for key in info["mismatched_keys"])}):
        raise UserError(f"{folder} cannot be used: its files lack {', '.join(missing[:3])}, which would be random")
    plain: nn.Module = model
    _check_rounded(plain, folder, dtype)
    return plain


def _check_rounded(model: nn.Module, folder: Path, dtype: str | None) -> None:
    """Raise a NotFiniteError for a weight that is not finite in the dtype that it was loaded in."""
    try:
        check_finite(model.state_dict().items(), f"{folder} cannot be used")
    except NotFiniteError as error:
        if dtype == "float16":
            raise NotFiniteError(f"{error}; as float16, which ends at 65,504: bfloat16 does not") from error
        raise
