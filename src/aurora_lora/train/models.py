"""Pretrained models and tokenizers for a recipe's task, also quantised, and which commit of the hub they are of."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BaseImageProcessor,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..data import Task
from ..data.loading import NO_CODE, OnlyPicklesError, only_pickles, reason
from ..data.models import MODELS, resolve_model
from ..deploy.export import DTYPES, rounded
from ..deploy.formats import check_quantization
from ..deploy.inputs import plain_model
from ..errors import ArgumentError, UserError, one_line
from ..files import expanded, file_digest, plain_write_errors
from ..methods.base import apply_method, load_finite
from ..methods.parameters import head_modules, is_head, mark_random, marked_random
from .kind_facts import facts_of
from .recipe import ModelSection, Precision, Recipe
from .trainer import state

FLOAT32 = "float32"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
M = TypeVar("M", bound=nn.Module)
Processor: TypeAlias = PreTrainedTokenizerBase | BaseImageProcessor
"""What makes a model's inputs: its `save_pretrained` writes it beside the model."""
_POOLER = "pooler"
"""What Transformers calls the part of a body behind its last block, for a head: pretraining may have had none."""
_POSITIONS = ("position_embeddings", "wpe", "embed_positions")
"""What the models of Transformers call their embeddings of positions."""


# ---------------------------------------------------------------- loading


@contextmanager
def loading(base: ModelSection | str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Where a model is, and its revision or GGUF file as an argument of `from_pretrained`, if it has one; whatever is
    raised within the block is a UserError that says that it cannot be loaded."""
    base = ModelSection(name=base) if isinstance(base, str) else base
    where = {} if base.revision is None else {"revision": base.revision}
    try:
        if is_gguf(base.name):
            yield str(expanded(base.name).parent), {"gguf_file": expanded(base.name).name}
        else:
            yield resolve_model(base.name), where
    except UserError:
        raise
    except Exception as error:  # Transformers and tokenizers raise of every kind on files that are damaged
        no_folder = "" if base.name in MODELS or expanded(base.name).exists() else ", which is no folder here,"
        at = "" if base.revision is None else f" at revision '{base.revision}'"
        raise UserError(f"model: '{base.name}'{no_folder}{at} cannot be loaded: {reason(error)}") from error


def load_tokenizer(model: ModelSection | str) -> PreTrainedTokenizerBase:
    """The tokenizer of a packaged model, a folder or a hub model; raises a UserError where it cannot be loaded, or has
    no token to pad with."""
    with loading(model) as (source, where):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **where, **NO_CODE)
        tokenizer.model_max_length = int(min(tokenizer.model_max_length, 1e30))  # infinite where it names no limit
        tokenizer.truncation_side = "right"  # texts are cut at their end, whatever it says
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token is None:
            raise ValueError("its tokenizer has neither a pad_token nor an eos_token: shorter texts cannot be padded")
    return tokenizer


def load_config(model: ModelSection | str) -> PretrainedConfig:
    """The configuration of a model; raises as `loading`."""
    with loading(model) as (source, where):
        config: PretrainedConfig = AutoConfig.from_pretrained(source, **where, **NO_CODE)
    return config


def base_for(recipe: Recipe, processor: Processor, labels: Sequence[str]) -> PreTrainedModel:
    """The pretrained model in the precision that the recipe keeps it in, or still exact where the method asks for that;
    raises as `load_base_model`."""
    exact = recipe.method.base_use == "start"
    return load_base_model(recipe.base, recipe.task.definition, processor, labels, frozen_dtype(recipe), exact=exact)


def load_base_model(
    base: ModelSection | str,
    task: Task,
    processor: Processor,
    names: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    *,
    exact: bool = False,
) -> PreTrainedModel:
    """The pretrained model, with a new head where the task needs one; raises a UserError where it cannot be loaded.

    `names` are the class names, where they come with the data and not with the task. Weights are read one by one in
    `dtype`: there is never a whole copy in another. With `exact`, those that are not stored in it are in float32.
    """
    base = ModelSection(name=base) if isinstance(base, str) else base
    facts = facts_of(task)
    config: Any = load_config(base)
    with loading(base) as (source, where):
        if exact and config.dtype != dtype:
            dtype = torch.float32
        fill_padding(config, processor)
        more: dict[str, Any] = dict(where)
        if facts.problem_type is not None:  # a new head, which replaces one that was trained on other classes
            config.id2label = dict(enumerate(names or task.labels or (task.name,)))
            config.label2id = {label: index for index, label in config.id2label.items()}
            config.problem_type = facts.problem_type
            more["ignore_mismatched_sizes"] = True
        kind = getattr(transformers, facts.auto)
        if base.attention is not None:
            more["attn_implementation"] = base.attention
        else:
            check_attention(config)
        if base.quantization is not None:
            check_quantization(base.quantization)
            with torch.device("meta"):
                heads = head_modules(kind.from_config(config, **NO_CODE))
            more |= _bitsandbytes(base.quantization, heads, dtype)
        loaded: Any = _pretrained(kind, source, config, dtype=dtype, **more)
        for module in loaded.modules():  # on some CPUs bitsandbytes packs 4-bit weights in an evaluation, for good
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        if reads_last_token(loaded):
            fill_padding(loaded.config, processor, replace=True)
        loaded.base_commit = digest_of(source) or cached_commit(source, base.revision)
    return cast(PreTrainedModel, loaded)


def is_gguf(model: str) -> bool:
    """Whether it is a GGUF file here."""
    return model.endswith(".gguf") and expanded(model).is_file()


def load_causal_model(model: str, like: str | None = None) -> PreTrainedModel:
    """The pretrained causal language model, in float32: dequantised if it is a GGUF file, or stored in a format of
    compressed-tensors; raises as `loading`.

    Args:
        model: as in a recipe, or a GGUF file.
        like: a model whose config is that of the file; what the file says if None.
    """
    config: Any = load_config(like or model)
    more: dict[str, Any] = {}
    if is_gguf(model):
        config.__dict__.pop("quantization_config", None)  # of the model that it is like
        more = {"quantization_config": transformers.GgufConfig(dequantize=True)}
    elif quantization_of(config) == "compressed-tensors":
        more = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}
    with loading(model) as (source, where):
        return _pretrained(AutoModelForCausalLM, source, config, dtype=torch.float32, **where, **more)


def _pretrained(kind: Any, source: str, config: Any, **more: Any) -> PreTrainedModel:
    """The pretrained model; raises a ValueError where a weight of its body has another shape than its config says, or
    is missing. Poolers and classifiers that the checkpoint has no weights for count to the head."""
    loaded: PreTrainedModel
    stored: Any = config.dtype or torch.float32
    loaded, info = from_safetensors(kind, source, config=config, **more)
    loaded.stored_dtype = stored
    if quantization_of(config) is None:
        check_floats(expanded(source))
    for key, *shapes in sorted(info["mismatched_keys"], key=str):
        if not is_head(loaded, key):
            stored, wanted = (tuple(shape) for shape in shapes)
            raise ValueError(f"its config does not fit its weights: {key} is {stored}, and the config says {wanted}")
    random = list(
        dict.fromkeys(
            key.rpartition(".")[0]
            for key, weight in loaded.named_parameters()
            if key in info["missing_keys"] and not is_head(loaded, key)
            if (weight != weight.flatten()[0]).any()  # a norm starts with one value, the same at each load
        )
    )
    poolers = [path for path in random if _POOLER in path.split(".")]
    labels = config.num_labels
    classifiers = [
        path for path in random if "." not in path and getattr(loaded.get_submodule(path), "out_features", 0) == labels
    ]
    if others := [path for path in random if path not in (*poolers, *classifiers)]:
        raise ValueError(f"its files have no weights for {', '.join(others[:3])}, which would be random")
    if loaded.base_model is loaded:  # all body: nothing comes behind a pooler
        random = [path for path in random if path not in poolers]
    if random and getattr(loaded, "is_quantized", False):
        raise ValueError(f"its files have no weights for {random[0]}, which cannot be trained quantised")
    mark_random(loaded, random)
    return loaded


def check_floats(folder: Path) -> None:
    """Raise a UserError where a weight of a model or an adapter in a folder is stored as integers, which loading takes
    for the numbers that they are."""
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                dtype = file.get_slice(name).get_dtype()
                if name.endswith(("weight", "bias")) and not dtype.lstrip("B").startswith("F"):
                    raise UserError(f"{path}: {name} is stored as {dtype}, which is no floating point")


def check_attention(config: Any) -> None:
    """Raise a ValueError where a configuration of Transformers, or a part of it, names code of the hub for its
    attention, `owner/kernel`, which Transformers would fetch and run."""
    for field, value in vars(config).items():
        if "implementation" in field and "/" in str(value):
            raise ValueError(
                f"its config.json names {value!r}, code of the hub, and aurora-lora never runs such code: "
                "`model.attention` of a recipe names an implementation of Transformers"
            )
        if hasattr(value, "model_type"):
            check_attention(value)


def from_safetensors(kind: Any, source: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    """A model of Transformers and the report of its loading; never of pickles, which can run code."""
    where = {"revision": more["revision"]} if more.get("revision") is not None else {}
    if "attn_implementation" not in more:  # which counts in the place of the config's
        check_attention(more.get("config") or AutoConfig.from_pretrained(source, **where, **NO_CODE))
    try:
        found = kind.from_pretrained(source, use_safetensors=True, output_loading_info=True, **NO_CODE, **more)
        return cast(tuple[Any, dict[str, Any]], found)
    except Exception as error:  # Transformers, safetensors and the hub's client raise of many kinds
        if (file := only_pickles(source, **where)) is not None:
            written = getattr(more.get("config"), "architectures", None) or (kind.__name__,)
            raise OnlyPicklesError(file, source, written[0], **where) from error
        raise


# ---------------------------------------------------------------- the method on it


def make_model(
    recipe: Recipe, base: PreTrainedModel, adapter: Path | None = None, kept: Path | None = None
) -> nn.Module:
    """The recipe's method on a pretrained model: new, or as it was saved in `adapter`; raises a UserError where it does
    not fit or cannot be read, a NotFiniteError where it holds NaN or infinity."""
    pretrained = list(base.parameters())
    if adapter is None:
        model = apply_method(recipe.method, base, recipe.task.kind.task_type, kept)
    else:
        model = load_finite(recipe.method, base, adapter)
    if recipe.method.base_use == "start":
        keep_frozen_in(frozen_dtype(recipe), pretrained)
    return model


def checkpoint_activations(model: nn.Module) -> None:
    """Let training keep the inputs of the model's blocks alone, and compute the rest again for the backward pass."""
    try:
        cast(Any, model).gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"training.gradient_checkpointing: {one_line(error)}") from error


# ---------------------------------------------------------------- quantised bases


def quantization_of(config: PretrainedConfig) -> str | None:
    """How the weights of a model with this configuration are quantised as they are stored, by Transformers' name for
    it; None if they are not."""
    method = _quantization(config).get("quant_method")
    return None if method is None else str(getattr(method, "value", method))


def stored_quantization(model: ModelSection | str) -> str | None:
    """How the checkpoint of a model is quantised: `quantization_of` its configuration; raises as `loading`."""
    return quantization_of(load_config(model))


def exact_modules(config: PretrainedConfig) -> list[str]:
    """The modules of a base that its quantisation has left as they were: the head of a classifier."""
    return list(_quantization(config).get("llm_int8_skip_modules") or ())


def quantized(base: PreTrainedModel, quantization: str) -> PreTrainedModel:
    """A loaded model as Transformers loads it in this format: 4 bits compute in bfloat16 on a GPU, else in float32."""
    check_quantization(quantization)
    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    settings = _bitsandbytes(quantization, head_modules(base), compute)
    with tempfile.TemporaryDirectory() as folder:
        with plain_write_errors(Path(folder)):
            base.save_pretrained(folder)
        found: PreTrainedModel = type(base).from_pretrained(folder, dtype=torch.float32, **settings, **NO_CODE)
    found.config.name_or_path = base.config.name_or_path
    mark_random(found, marked_random(base))
    return found


def _quantization(config: PretrainedConfig) -> Mapping[str, Any]:
    stored: Any = getattr(config, "quantization_config", None) or {}
    return stored if isinstance(stored, dict) else vars(stored)


def _bitsandbytes(quantization: str, heads: list[str], compute: torch.dtype) -> dict[str, Any]:
    """The arguments of `from_pretrained` that quantise layer by layer: there is never a whole model of wide weights."""
    more: dict[str, Any] = {"llm_int8_skip_modules": heads} if heads else {}  # none: the output layer, by default
    if quantization == "int8":
        more["load_in_8bit"] = True
    else:
        more |= {"load_in_4bit": True, "bnb_4bit_quant_type": quantization, "bnb_4bit_compute_dtype": compute}
    return {"device_map": {"": state().device}, "quantization_config": cast(Any, BitsAndBytesConfig)(**more)}


# ---------------------------------------------------------------- which commit it is of

RESULT_OF_PRETRAINING = "pretraining-result.json"
"""The file in the folder of a model that `aurora pretrain` has trained."""


def commit_of(model: nn.Module) -> str | None:
    """The commit of the hub that a base model was loaded from, `digest_of` one that was pretrained here; else None."""
    found: str | None = getattr(model, "base_commit", None)
    return found


def digest_of(source: str) -> str | None:
    """The sha256 of the weights of a model that was pretrained here, which another machine makes otherwise; of any
    other folder or model None."""
    folder = expanded(source)
    is_made_here = (folder / RESULT_OF_PRETRAINING).is_file()
    return f"sha256:{file_digest(folder / 'model.safetensors')}" if is_made_here else None


def cached_commit(source: str, revision: str | None = None, file: str = "config.json") -> str | None:
    """The commit that the hub's cache has of what was just loaded; None for a folder."""
    if expanded(source).exists():
        return None
    found = try_to_load_from_cache(source, file, revision=revision)
    commit = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", found) if isinstance(found, str) else None
    return commit[1] if commit else None


# ---------------------------------------------------------------- padding and positions


def padding_of(config: Any) -> int | None:
    """The padding token that a model's configuration names, or that of its texts where it sees images, too."""
    found: int | None = getattr(config, "pad_token_id", None)
    return getattr(config.get_text_config(), "pad_token_id", None) if found is None else found


def fill_padding(config: Any, processor: Processor, *, replace: bool = False) -> None:
    """Let a model know its tokenizer's padding token if it names none, or with `replace` in any case; see
    `reads_last_token`."""
    if isinstance(processor, PreTrainedTokenizerBase):
        texts = config.get_text_config()  # itself, where a model sees nothing else
        for one in (config, texts):
            is_open = replace or getattr(one, "pad_token_id", None) is None
            if is_open and (one is texts or hasattr(one, "pad_token_id")):
                one.pad_token_id = processor.pad_token_id


def reads_last_token(model: nn.Module) -> bool:
    """Whether a model classifies a text by its last token, which it finds as the last that is none of padding: those
    of Transformers whose head is called so. The padding must be that of the tokenizer then."""
    return hasattr(model, "score")


def longest_text(max_length: int | None, processor: Processor) -> int | None:
    """The tokens that a recipe's `max_length` and its tokenizer leave a text; None where none is cut."""
    if max_length is None or not isinstance(processor, PreTrainedTokenizerBase):
        return None
    return min(max_length, processor.model_max_length)


def most_tokens(model: nn.Module) -> int | None:
    """How many positions a model has embeddings of; None where they are rotary or relative."""
    limits = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and path.rsplit(".", 1)[-1] in _POSITIONS:
            # RoBERTa counts from behind the index that pads, OPT and BART from an offset
            first = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - first)
    return min(limits, default=None)


def positions(config: PretrainedConfig) -> int | None:
    """How long a text its config gives a model positions for, learned or rotary; None where it does not say."""
    most = getattr(config, "max_position_embeddings", None)
    return int(most) if most is not None and most > 0 else None  # XLNet has -1


def cached_width(config: PretrainedConfig) -> int:
    """How many numbers a causal language model keeps as the keys and values of one token, in all layers; an upper
    bound where they are kept compressed, or where a layer keeps a state instead."""
    heads = getattr(config, "num_attention_heads", None) or 1
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * int(config.num_hidden_layers * groups * width)


def room(model: Any, max_new_tokens: int) -> tuple[int, int]:
    """The tokens of a prompt and of its answer that a model has positions for: at most half are the answer's."""
    most = positions(model.config.get_text_config()) or 2**31
    new = min(max_new_tokens, max(1, most // 2))
    return most - new, new


# ---------------------------------------------------------------- dtypes
# A run computes in `training.precision`, and keeps what it does not train in it. What it trains is in float32.


def frozen_dtype(recipe: Recipe) -> torch.dtype:
    """The dtype of the weights that are not trained: the recipe's precision; float32 where the body's own are trained,
    for the few that such a method freezes are in the same modules."""
    return torch.float32 if recipe.method.base_use == "trained" else PRECISIONS[recipe.training.precision]


def keep_frozen_in(dtype: torch.dtype, pretrained: Iterable[nn.Parameter]) -> None:
    """Round those of the pretrained weights to a precision that are not trained, where they are."""
    for parameter in pretrained:
        if parameter.is_floating_point() and not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def computing(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The context in which a model computes in the recipe's precision, outside of a Trainer."""
    dtype = PRECISIONS[recipe.training.precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def check_dtype(dtype: str) -> None:
    """Raise an ArgumentError for one that nothing is loaded, merged or exported in."""
    if dtype not in DTYPES:
        raise ArgumentError(f"`dtype`: {dtype!r} is not allowed: it must be one of {', '.join(DTYPES)}")


def precision_of(dtype: str) -> Precision:
    """What recipes call a dtype."""
    return cast(Precision, next(name for name, one in PRECISIONS.items() if one == DTYPES[dtype]))


def on_device(model: M) -> M:
    """A model in eval mode, on the device that training computes on; a quantised one is loaded there."""
    device = state().device
    if next(model.parameters()).device.type != device.type:
        model.to(device)
    return model.eval()


def compute_in(model: nn.Module, dtype: str) -> None:
    """Let a model, plain or of PEFT, compute in a dtype as a training of that precision does, whatever calls it."""
    plain: Any = plain_model(model)
    plain.forward = torch.autocast(next(plain.parameters()).device.type, DTYPES[dtype])(plain.forward)


def round_weights(model: PreTrainedModel, dtype: str) -> None:
    """Round a model's weights, and the buffers that are saved, where they are, and say so in its configuration; raises
    a NotFiniteError for a number that is too large for the dtype."""
    kept = model.state_dict().keys()  # without the constants of masks and the like, which are not saved
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and (name in kept or isinstance(tensor, nn.Parameter)):
            tensor.data = rounded(name, tensor.detach(), DTYPES[dtype])
    config: Any = model.config
    for one in (config, *(getattr(config, part, None) for part in config.sub_configs)):
        if one is not None:
            one.dtype = DTYPES[dtype]
