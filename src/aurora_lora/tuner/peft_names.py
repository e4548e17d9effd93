# mypy: implicit-reexport
# ruff: noqa: F401
"""Every name of PEFT that is not part of its documented interface, in one place."""

from __future__ import annotations

from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _get_in_out_features,
    check_adapters_to_merge,
    check_target_module_exists,
    onload_layer,
)
from peft.utils import (
    CONFIG_NAME,
    SAFETENSORS_WEIGHTS_NAME,
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    AuxiliaryTrainingWrapper,
    get_quantization_kwargs,
    quantization_extra_repr,
    register_peft_method,
    resolve_quantization_backend,
)
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from peft.utils.other import get_pattern_key
from peft.utils.quantization_utils import QuantizationBackend

PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the paths of the adapted model."""
