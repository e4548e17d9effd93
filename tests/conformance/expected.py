"""What is left out and what is known to fail, each with its reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from aurora_lora import AuroraConfig, FormError, StaleCalibrationError

SKIPS_OF_PEFT = {
    "_skip_if_merging_not_supported",  # grouped convolutions, which LoRA cannot merge and AuroRA can
    "check_beft_config",  # meant for BEFT, it skips Llama and Gemma for every method
    "skip_deberta_lora_tests",  # LoRA does not train on DeBERTa, AuroRA does
}
"""Helpers of PEFT's tests that skip what AuroRA can do: they are switched off."""
GROUPED = ("Conv1dGroups", "Conv2dGroups", "Conv2dGroups2")
"""Models of PEFT's tests that LoRA is not merged in. They compare large numbers, and how a CPU orders the sums of a
convolution decides whether 1e-6 is met: PEFT allows its methods that are merged there `GROUPED_TOLERANCE`."""
GROUPED_TOLERANCE = 1e-3

OTHER_METHOD = "tests another method than LoRA"


@dataclass(frozen=True)
class Rule:
    """Some tests and what is known of them.

    Args:
        tests: regular expression, searched for in `file::class::test[parameters]`.
        reason: a sentence for the docs.
        form: only adapters of this form.
        raises: what the tests fail with, if they are expected to.
    """

    tests: str
    reason: str
    form: str | None = None
    raises: type[BaseException] | tuple[type[BaseException], ...] = AssertionError

    def holds(self, item: pytest.Item) -> bool:
        """Whether the rule is for this test."""
        return re.search(self.tests, item.nodeid) is not None and self.form in (None, form(item))


NAMES = "looks for the names of LoRA's weights, layers or options"
HUB = "asks the hub for more than a model"

LEFT_OUT: Sequence[Rule] = (
    Rule(r"TestLayerRepr|TestMultiRankAdapter|test_loading_adapter_preserves_custom_requires_grad", NAMES),
    Rule(r"test_lora_(linear|embedding|conv2d)_(default|false|init_default)|targets_lora_layer_raises", NAMES),
    Rule(r"::test_get_peft_model_(with_task_type_)?low_cpu_mem_usage_works", NAMES),
    Rule(r"test_from_pretrained_missing_keys_warning|test_inject_from_state_dict_missing_keys_warning", NAMES),
    Rule(r"TestLowLevelFunctional|model_with_weight_conversion|test_prefix_removal_is_undone", NAMES),
    Rule(r"test_save_pretrained_warns_for_unsharded_state_dict", NAMES),
    Rule(r"test_prefixes_(lora|select|model_with_injected|multiple_adapters_and)", NAMES),
    Rule(r"test_(module|adapter_model|peft)_types?_(small|large)|test_nb_params|test_model_status_with_", NAMES),
    Rule(
        r"requires_grad_(model_)?irregular|test_model_with_injected_layers|test_add_second_adapter_with_all_linear_works",
        NAMES,
    ),
    Rule(r"test_targeting_trainable_tokens_raises", NAMES),
    Rule(r"test_weight_tying_applied_when_model_is_tied\[", "counts on the width of the real model"),
    Rule(r"test_get_peft_model_revision_warning|test_save_pretrained_auto.*-True", HUB),
    Rule(r"TestDynamicDispatch", "tests LoRA's own registry of custom layers"),
    Rule(r"TestHotSwapping", "hot-swapping is closed to methods from outside PEFT"),
    Rule(r"TestWeightTying", "tests ensure_weight_tying, which PEFT has for LoRA alone"),
    Rule(
        r"mixed_adapter_batch|mixed_batch|_mixed_adapter|adapters_mixed_forward",
        "names an adapter for each example of a batch",
    ),
    Rule(
        r"add_weighted_adapter|weighted_combination|to_save_merging_adapters|test_multiple_active_adapters_forward",
        "adds adapters up, which LoRA does after an export",
    ),
    Rule(r"opt_timing", "measures time, which depends on what else the machine does"),
)

MHA = "the projections of torch.nn.MultiheadAttention are refused: they are read without being called"
MIXED = "PeftMixedModel is closed to methods from outside PEFT"
DYNAMIC = "the dynamic form is no linear map: merging it is refused"
STALE = "the test changes the weights of a calibrated adapter, which is not merged then"
RANDOM = "a calibrated adapter is never a no-op: here it has random weights"
RANGE = "the model's inputs, up to 57,599, are outside the spline's range: its weights get no gradient"
SLOW = "with B = 0 at the start, three steps move A by less than the test looks for"

GROUPS = "a convolution's A acts on the patch of a whole group: any rank is allowed"
BIAS = "an unknown value is refused earlier, by the config"

FAILURES: Sequence[Rule] = (
    Rule(r"mha_|multihead", MHA, raises=(ValueError, AssertionError)),
    Rule(
        r"test_add_adapter_rejects_duplicate_name_without_mutation\[True|\[PeftMixedModel\]|test_mixed_model_from_pretrained|test_mixed_model_raises",
        MIXED,
        raises=ValueError,
    ),
    Rule(
        r"test_merge|test_safe_merge|test_disable_adapters_with_merging|test_delete_merged|test_forward_b?float16",
        DYNAMIC,
        form="dynamic",
        raises=FormError,
    ),
    Rule(r"test_merge_layers_nan", STALE, form="calibrated", raises=StaleCalibrationError),
    # an embedding alone has one form, which is never calibrated
    Rule(
        r"test_disable_adapters_with_merging\[(Embedding \+ transformers Conv1D 2 |embedding, rank 3)",
        RANDOM,
        form="calibrated",
    ),
    Rule(r"test_disable_adapters_with_merging", STALE, form="calibrated", raises=StaleCalibrationError),
    Rule(r"test_disable_adapters\[", RANDOM, form="calibrated"),
    Rule(r"test_only_params_are_updated.*-Conv2d(2|Groups2)-", RANGE, form="calibrated"),
    Rule(r"test_only_params_are_updated\[Embedding \+ transformers Conv1D 2 ", SLOW, form="static"),
    Rule(
        r"test_error_raised_if_rank_not_divisible_by_groups\[lora with rank not", GROUPS, raises=pytest.fail.Exception
    ),
    Rule(r"test_lora_with_bias_argument\[invalid", BIAS, raises=ValueError),
)


def left_out(item: pytest.Item) -> str | None:
    """Why a test is not run with AuroRA."""
    rule = _first(LEFT_OUT, item)
    return rule.reason if rule else None


def failure(item: pytest.Item) -> Rule | None:
    """Why a test fails with AuroRA: it is run, and must fail."""
    return _first(FAILURES, item)


def _first(rules: Sequence[Rule], item: pytest.Item) -> Rule | None:
    return next((rule for rule in rules if rule.holds(item)), None)


def form(item: pytest.Item) -> str:
    """The form that the adapter which a test is given is evaluated in; of the first, if there are several."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    settings: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, AuroraConfig):
            settings = vars(value)
            break
        if name.startswith("config_kwargs"):
            settings = value
            break
    return "static" if settings.get("train_form", "static") == "static" else str(settings["eval_form"])
