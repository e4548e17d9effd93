"""The errors that aurora-lora raises on purpose.

Everything here derives from `AuroraError`. Bad values in an `AuroraConfig` raise plain `ValueError`, as in PEFT.
"""

import difflib
from collections.abc import Iterable, Sequence

DIVERGED = "training diverged"
"""How the message of a `UserError` begins where a loss or the scores are no longer numbers."""

_WORDS = {
    "learning_rate": "lr",
    "batch_size": "batch bs train_batch_size per_device_train_batch_size micro_batch_size",
    "epochs": "num_epochs num_train_epochs n_epochs",
    "max_length": "max_len max_seq_len max_seq_length cutoff_len sequence_len",
    "r": "rank lora_r lora_rank",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "target_modules": "modules lora_target lora_target_modules",
    "seed": "random_seed random_state",
    "scheduler": "lr_scheduler lr_scheduler_type",
    "gradient_accumulation_steps": "grad_accum accumulation gradient_accumulation",
    "warmup_ratio": "warmup",
    "weight_decay": "wd",
    "max_grad_norm": "clip grad_clip",
    "precision": "bf16 fp16 dtype",
    "patience": "early_stopping early_stopping_patience",
    "quantization": "load_in_4bit load_in_8bit",
    "model": "base_model model_name model_name_or_path",
    "data": "dataset train_data train_file data_path",
    "text": "text_column",
    "label": "labels target label_column",
}
SYNONYMS = {other: ours for ours, others in _WORDS.items() for other in others.split()}
"""What other tools call our fields and options."""


class AuroraError(Exception):
    """Base class of the errors below."""


class FormError(AuroraError, ValueError):
    """An adapter was asked for a form that it cannot give, such as merging with `eval_form="dynamic"`."""


class NotCalibratedError(AuroraError, RuntimeError):
    """A merge or export of a trained adapter needs the calibrated matrix, and `calibrate` has not run."""


class StaleCalibrationError(NotCalibratedError):
    """The adapter was trained further after `calibrate`: the calibrated matrix no longer belongs to it."""


class CalibrationError(AuroraError, RuntimeError):
    """A pass over examples (`calibrate`, `probe`, `align`, `merge_gap`, `merge_quantized`) cannot work with what it was
    given: no batches, activations that are not finite, adapters that are switched off."""


class NotFiniteError(AuroraError, ArithmeticError):
    """NaN or infinity, where a weight, an answer or an image must be a number."""


class NotFiniteInputsError(CalibrationError, NotFiniteError):
    """What comes to a layer in a pass over examples is NaN or infinity. It is caught as either of the two."""


class MergeError(AuroraError, RuntimeError):
    """A merge that would be lost, as into a weight that is computed from others; or `merge_quantized` or `merge_gap`
    cannot work with a model: none of it is quantised, say, or the format of a weight or the method is unknown."""


class AlreadyMergedError(FormError, CalibrationError, MergeError):
    """An adapter is merged at present: `unmerge_adapter` comes before another form is set, before an export, before a
    pass over examples and `merge_quantized`. It is caught as the errors that these raise, too."""


class CheckpointError(AuroraError, RuntimeError):
    """An adapter checkpoint does not fit the model: missing or unknown `aurora_` entries.

    An entry of a wrong shape is PyTorch's own `RuntimeError`.
    """


class UserError(AuroraError):
    """A mistake that the user can correct. The command line prints it as one plain line and exits with code 2."""


class ArgumentError(UserError, ValueError):
    """An argument has a value that is not allowed, or is missing.

    Arguments are named in backticks; the command line puts its own options in their place.
    """


class RunLockedError(UserError):
    """Another process is writing into a run's folder."""


def check_count(name: str, value: int | None, least: int = 1) -> None:
    """Raise an ArgumentError for an argument that counts something, unless it is at least so many or was not given."""
    if value is not None and value < least:
        raise ArgumentError(f"`{name}` must be at least {least}, got {value}")


def one_line(error: BaseException) -> str:
    """What an error says, without its line breaks."""
    return " ".join(str(error).split())


def counted(number: int, what: str) -> str:
    """`1 run`, `3 runs`: so many of what has a regular plural."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def abridged(parts: Sequence[str], most: int = 8) -> str:
    """`a, b and 3 more`: the first of many, and how many more there are."""
    return ", ".join(parts[:most]) + (f" and {len(parts) - most:,} more" if len(parts) > most else "")


def unknown(what: str, known: Iterable[str], given: str, see: str | None = None) -> str:
    """`unknown option; did you mean 'x'?`, or all that is known when nothing is near.

    Args:
        what: it would be.
        known: the names that there are.
        given: the name that is none of them.
        see: what prints the names, where they are too many for a message.
    """
    known, meant = list(known), SYNONYMS.get(given, given)
    same = [one for one in known if one.rpartition(".")[2] == meant]
    near = same or difflib.get_close_matches(given, known, n=1)
    if near:
        return f"unknown {what}; did you mean '{near[0]}'?"
    if not known:
        return f"unknown {what}; there are none here"
    return f"unknown {what} (see {see})" if see else f"unknown {what} (allowed: {', '.join(known)})"
