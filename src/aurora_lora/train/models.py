"""Pretrained models and tokenizers for a recipe's task."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BaseImageProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from ..data import Task
from ..data.loading import NO_CODE, OnlyPicklesError, check_attention, only_pickles, reason, wants_code
from ..data.models import MODELS, resolve_model
from ..errors import UserError
from ..extras import extra
from ..files import expanded
from ..methods.parameters import is_head, mark_random
from ..values import is_number, require
from .base_commit import with_commit
from .kinds import kind_of
from .model_inputs import Processor, fill_padding, reads_last_token
from .quantized_base import quantized_while_loading, trainable
from .sections import ModelSection

_POOLER = "pooler"
"""What Transformers calls the part of a body behind its last block, for a head: pretraining may have had none."""


def load_processor(model: ModelSection | str, task: Task) -> Processor:
    """The tokenizer or image processor of a model, as the task needs it.

    Args:
        model: as for `load_base_model`.
        task: what for.

    Raises:
        UserError: it cannot be loaded.
    """
    return kind_of(task).processor(model)


def load_image_processor(model: ModelSection | str) -> BaseImageProcessor:
    """The image processor of a local folder or a hub model, as one that sees images as they are scored here.

    Raises:
        UserError: it cannot be loaded, has a field that cannot be honoured, or torchvision is missing.
    """
    with extra("vision"):
        import torchvision  # noqa: F401 (Transformers' own error does not name our extra)
    from .images import as_scored

    base = _section(model)
    with _loading(base, "images") as (source, where):
        processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(source, **where, **NO_CODE)  # type: ignore[no-untyped-call]
    try:
        return as_scored(processor)
    except UserError as error:
        raise UserError(f"model: '{base.name}': {error}") from error


def load_tokenizer(model: ModelSection | str) -> PreTrainedTokenizerBase:
    """The tokenizer of a packaged model, a local folder or a hub model; it can pad.

    Raises:
        UserError: it cannot be loaded, has no token to pad with, or names a longest text that is no number of tokens.
    """
    base = _section(model)
    with _loading(base, "texts") as (source, where):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **where, **NO_CODE)
        length: Any = tokenizer.model_max_length
        if length == math.inf:
            length = VERY_LARGE_INTEGER  # as of tokenizers that name no limit
        is_whole = is_number(length) and length >= 1 and int(length) == length
        require(is_whole, "the tokenizer's model_max_length", length, "a whole number of tokens from 1")
        tokenizer.model_max_length = int(length)
        tokenizer.truncation_side = "right"  # texts are cut at their end, whatever it says
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UserError(
            f"the tokenizer of {base.name} has neither a pad_token nor an eos_token: shorter texts cannot be padded"
        )
    return tokenizer


def load_base_model(
    base: ModelSection | str,
    task: Task,
    processor: Processor,
    names: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    *,
    exact: bool = False,
) -> PreTrainedModel:
    """The pretrained model, with a new head where the task needs one.

    Args:
        base: the recipe's section; or a packaged model, a local folder or a hub model, as it is.
        task: what for.
        processor: the model's tokenizer or image processor.
        names: the class names, where they come with the data and not with the task.
        dtype: of its weights. They are read one by one: there is never a whole copy in another.
        exact: do not round: weights that are not stored in `dtype` are in float32 instead.

    Raises:
        UserError: it cannot be loaded.
    """
    base = _section(base)
    kind, config = kind_of(task), load_config(base)
    with _loading(base) as (source, where):
        if exact and config.dtype != dtype:
            dtype = torch.float32
        fill_padding(config, processor)
        kind.set_head(config, names or task.labels or (task.name,))
        auto = getattr(transformers, kind.auto)
        loaded = _as_asked(auto, source, config, base, dtype, **where, **kind.load_options)
        if reads_last_token(loaded):
            fill_padding(loaded.config, processor, replace=True)
        return with_commit(loaded, source, base.revision)


def _section(base: ModelSection | str) -> ModelSection:
    return ModelSection(name=base) if isinstance(base, str) else base


def load_config(model: ModelSection | str) -> PretrainedConfig:
    """The configuration of a model.

    Args:
        model: as for `load_base_model`.

    Raises:
        UserError: it cannot be loaded.
    """
    with _loading(_section(model)) as (source, where):
        config: PretrainedConfig = AutoConfig.from_pretrained(source, **where, **NO_CODE)
    return config


def stored_quantization(model: ModelSection | str) -> str | None:
    """How the checkpoint of a model is quantised: `quantization_of` its configuration.

    Raises:
        UserError: it cannot be loaded.
    """
    return quantization_of(load_config(model))


def quantization_of(config: PretrainedConfig) -> str | None:
    """How the weights of a model are quantised as they are stored, by Transformers' name for it; None if they are not.

    Args:
        config: its configuration.
    """
    stored: Any = getattr(config, "quantization_config", None) or {}
    fields = stored if isinstance(stored, dict) else vars(stored)
    method = fields.get("quant_method")
    if method is None and (fields.get("load_in_4bit") or fields.get("load_in_8bit")):
        method = "bitsandbytes"  # the first to have configurations, which did not say so
    return None if method is None else str(getattr(method, "value", method))


def load_causal_model(model: str) -> PreTrainedModel:
    """The pretrained causal language model, in float32.

    Raises:
        UserError: it cannot be loaded.
    """
    return _in_float32(AutoModelForCausalLM, model)


def load_classifier(model: str, labels: int | None) -> PreTrainedModel:
    """The pretrained model with a head for texts, in float32.

    Args:
        model: a packaged model, a local folder or a hub model.
        labels: how many classes; as the model says if None.

    Raises:
        UserError: it cannot be loaded.
    """
    more = {"ignore_mismatched_sizes": True}  # a head of other classes is replaced by the adapter's
    return _in_float32(AutoModelForSequenceClassification, model, labels, **more)


def _in_float32(kind: Any, model: str, labels: int | None = None, **more: Any) -> PreTrainedModel:
    config = load_config(model)
    with _loading(_section(model)) as (source, _):
        if labels is not None:
            config.num_labels = labels
        return _pretrained(kind, source, config, dtype=torch.float32, **more)


def _as_asked(
    kind: Any, source: str, config: Any, base: ModelSection, dtype: torch.dtype, **more: Any
) -> PreTrainedModel:
    """The pretrained model with the section's attention, and quantised as it says; see `_pretrained`."""
    if base.attention is not None:
        more["attn_implementation"] = config._attn_implementation = base.attention
    else:
        check_attention(config)
    if base.quantization is not None:
        more |= quantized_while_loading(kind, config, base.quantization, dtype)
    return trainable(_pretrained(kind, source, config, dtype=dtype, **more))


def _pretrained(kind: Any, source: str, config: Any, **more: Any) -> PreTrainedModel:
    """The pretrained model; of what the checkpoint has no weights for, poolers and classifiers count to the head.

    Raises:
        ValueError: a weight of its body has another shape than its config says, or is missing.
    """
    loaded: PreTrainedModel
    loaded, info = from_safetensors(kind, source, config=config, **more)
    for key, *shapes in sorted(info["mismatched_keys"], key=str):
        if not is_head(loaded, key):  # a head of other classes is replaced
            stored, wanted = (tuple(shape) for shape in shapes)
            raise ValueError(f"its config does not fit its weights: {key} is {stored}, and the config says {wanted}")
    random = _without_weights(loaded, info["missing_keys"])
    if others := [path for path in random if not _belongs_to_head(loaded, path)]:
        raise ValueError(f"its files have no weights for {', '.join(others[:3])}, which would be random")
    if loaded.base_model is loaded:  # all body: nothing comes behind a pooler
        random = [path for path in random if _POOLER not in path.split(".")]
    if random and getattr(loaded, "is_quantized", False):
        raise ValueError(
            f"its files have no weights for {random[0]}, which would be random, and cannot be trained quantised"
        )
    mark_random(loaded, random)
    return loaded


def from_safetensors(kind: Any, source: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    """A model of Transformers and the report of its loading.

    Args:
        kind: the auto class.
        source: a folder or a hub model.
        more: arguments of `from_pretrained`.

    Raises:
        OnlyPicklesError: its weights are there as pickles alone.
    """
    where = {"revision": more["revision"]} if more.get("revision") is not None else {}
    try:
        if "attn_implementation" not in more:  # which counts in the place of the config's
            check_attention(more.get("config") or AutoConfig.from_pretrained(source, **where, **NO_CODE))
        loaded: tuple[Any, dict[str, Any]] = kind.from_pretrained(
            source,
            use_safetensors=True,  # a pickle can run code
            output_loading_info=True,
            **NO_CODE,
            **more,
        )
        return loaded
    except Exception as error:  # Transformers, safetensors and the hub's client raise of many kinds
        if (file := only_pickles(source, **where)) is not None:
            raise OnlyPicklesError(file, source, _converting(kind, more.get("config")), **where) from error
        raise


def _converting(kind: Any, config: Any) -> str:
    """The class that writes all of a checkpoint's weights again, and no new head or pooler: the one that it was
    written by."""
    name = str(kind.__name__)
    head = name.removeprefix("AutoModel")
    written = getattr(config, "architectures", None) or ()
    if config is None or head == "ForCausalLM" or any(one.endswith(head) for one in written):
        return name
    return next((one for one in written if hasattr(transformers, one)), "AutoModel")


def _belongs_to_head(model: PreTrainedModel, path: str) -> bool:
    """Whether a module is a pooler, or the classifier of a model that has no name for its body, as CLIP's."""
    layer = model.get_submodule(path)
    is_classifier = isinstance(layer, nn.Linear) and layer.out_features == getattr(model.config, "num_labels", None)
    return _POOLER in path.split(".") or (is_classifier and "." not in path)


def _without_weights(model: PreTrainedModel, missing: Collection[str]) -> list[str]:
    """The modules outside the head that a checkpoint without these weights leaves as they were drawn at random.

    What starts with one value, as a norm does, is the same at each load.
    """
    found = {
        key.rpartition(".")[0]: None
        for key, parameter in model.named_parameters()
        if key in missing and not is_head(model, key) and (parameter != parameter.flatten()[0]).any()
    }
    return list(found)


@contextmanager
def _loading(base: ModelSection, wanted: str | None = None) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Where a model is, and its revision as an argument of `from_pretrained`, if it has one; whatever is raised within
    the block is a UserError that says that it cannot be loaded.

    Args:
        base: a packaged model, a local folder or a hub model.
        wanted: "images" or "texts", where it has to take these.
    """
    source = resolve_model(base.name)
    where = {} if base.revision is None else {"revision": base.revision}
    try:
        yield source, where
    except Exception as error:
        if wanted is not None:
            _check_inputs(base.name, source, where, wanted, error)
        raise _unusable(base, error) from error


def _check_inputs(model: str, source: str, where: Mapping[str, str], wanted: str, error: Exception) -> None:
    """Raise a UserError where a model that is here takes texts and the task has images, or the other way round."""
    if wants_code(error):
        return
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True, **where, **NO_CODE)
    except Exception:  # its own error is told
        return
    takes = {name for name, field in (("images", "num_channels"), ("texts", "vocab_size")) if hasattr(config, field)}
    if takes and wanted not in takes:
        raise UserError(f"model: '{model}' is a model of {', '.join(takes)}, and the task has {wanted}")


def _unusable(base: ModelSection, error: Exception) -> Exception:
    """What a user reads: Transformers and tokenizers raise of every kind on files that are damaged."""
    if isinstance(error, UserError):
        return error
    model, revision = base.name, "" if base.revision is None else f" at revision '{base.revision}'"
    is_here = model in MODELS or expanded(model).exists()
    where = "" if is_here else ", which is no folder here,"
    # not the same weights, as a GGUF file rounds them: `packaged_name` does not take it for this one
    packaged = next((name for name, one in MODELS.items() if not is_here and one.hub_id == model), None)
    hint = f"; what was trained on the packaged model of this id needs that: '{packaged}'" if packaged else ""
    return UserError(f"model: '{model}'{where}{revision} cannot be loaded: {reason(error)}{hint}")
