"""A base model whose linear layers, but its head, are in a format of bitsandbytes."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from ..data.loading import NO_CODE
from ..deploy.formats import check_quantization
from ..errors import UserError
from ..files import plain_write_errors
from ..methods.parameters import head_modules, mark_random, marked_random
from ..temporary_attributes import temporary_attributes
from .distributed import state


def quantized(base: PreTrainedModel, quantization: str) -> PreTrainedModel:
    """A loaded model as Transformers loads it in this format: 4 bits compute in bfloat16 on a GPU, else in float32.

    Args:
        base: the model.
        quantization: "nf4", "fp4" or "int8".

    Raises:
        UserError: bitsandbytes is missing, or there is no room for a copy of the base.
    """
    check_quantization(quantization)
    kind, name = type(base), base.config.name_or_path
    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    settings = _settings(quantization, head_modules(base), compute)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with plain_write_errors(Path(folder)):
                base.save_pretrained(folder)
        except UserError as error:
            raise UserError(f"{error}: TMPDIR names another folder for a copy of the base in float32") from error
        found: PreTrainedModel = kind.from_pretrained(folder, dtype=torch.float32, **settings, **NO_CODE)
    found.config.name_or_path = name
    mark_random(found, marked_random(base))
    return found


def quantized_while_loading(kind: Any, config: Any, quantization: str, compute: torch.dtype) -> dict[str, Any]:
    """The arguments of `from_pretrained` that quantise layer by layer: there is never a whole model of wide weights.

    Args:
        kind: the auto class.
        config: of the model.
        quantization: as for `quantized`.
        compute: dtype of the computation in 4 bits.

    Raises:
        UserError: bitsandbytes is missing.
    """
    check_quantization(quantization)
    with torch.device("meta"):
        heads = head_modules(kind.from_config(config, **NO_CODE))
    return _settings(quantization, heads, compute)


def exact_modules(config: PretrainedConfig) -> list[str]:
    """The modules of a base that its quantisation has left as they were: the head of a classifier."""
    settings: Any = getattr(config, "quantization_config", None) or {}
    fields = settings if isinstance(settings, dict) else vars(settings)
    return list(fields.get("llm_int8_skip_modules") or ())


def trainable(base: PreTrainedModel) -> PreTrainedModel:
    """The base, with gradients after an evaluation, too: for that, on some CPUs, bitsandbytes packs 4-bit weights."""
    module: Any
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return base


def probed(base: PreTrainedModel) -> AbstractContextManager[None]:
    """Within the block, Trainer takes a quantised base, which is not going to be trained, as if it had an adapter."""
    return temporary_attributes([base], _hf_peft_config_loaded=True)


def _settings(quantization: str, heads: list[str], compute: torch.dtype) -> dict[str, Any]:
    settings: Any = BitsAndBytesConfig  # Transformers annotates no types here
    more: dict[str, Any] = {"llm_int8_skip_modules": heads} if heads else {}  # none: the output layer, by default
    device = {"device_map": {"": state().device}}
    if quantization == "int8":
        return {**device, "quantization_config": settings(load_in_8bit=True, **more)}
    more |= {"bnb_4bit_quant_type": quantization, "bnb_4bit_compute_dtype": compute}
    return {**device, "quantization_config": settings(load_in_4bit=True, **more)}
