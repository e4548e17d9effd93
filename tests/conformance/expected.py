"""What is left out and what is known to fail, each with its reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from aurora_lora import AuroraConfig

SKIPS_OF_PEFT = {
    "_skip_if_merging_not_supported",  # grouped convolutions, which LoRA cannot merge and AuroRA can
    "check_beft_config",  # meant for BEFT, it skips Llama and Gemma for every method
    "skip_deberta_lora_tests",  # LoRA does not train on DeBERTa, AuroRA does
}
"""Helpers of PEFT's tests that skip what AuroRA can do: they are switched off."""

OTHER_METHOD = "tests another method than LoRA"


@dataclass(frozen=True)
class Rule:
    """Some tests and what is known of them.

    Args:
        tests: regular expression, searched for in `file::class::test[parameters]`.
        reason: a sentence for the docs.
        form: only adapters of this form.
    """

    tests: str
    reason: str
    form: str | None = None

    def holds(self, item: pytest.Item) -> bool:
        """Whether the rule is for this test."""
        return re.search(self.tests, item.nodeid) is not None and self.form in (None, form(item))


LEFT_OUT: Sequence[Rule] = (
    Rule(r"TestLayerRepr", "looks for the name of LoRA's layers in their repr"),
    Rule(r"TestMultiRankAdapter|test_loading_adapter_preserves_custom_requires_grad", "reads LoRA's weights by name"),
    Rule(r"TestDynamicDispatch", "tests LoRA's own registry of custom layers"),
    Rule(
        r"test_generate_with_mixed_adapter_batches",
        "multiplies the weights by ten, so that the calibrated matrix is outdated, and the dynamic form then makes "
        "rounding large enough for beam search to take another branch; in float64 the outputs are equal",
        form="calibrated",
    ),
    Rule(r"opt_timing", "measures time, which depends on what else the machine does"),
)

CAT = "AuroRA's adapters combine exactly, by 'cat' alone; PEFT's other ways are approximations"
MHA = "the projections of torch.nn.MultiheadAttention are refused: they are read without being called"
MIXED = "PeftMixedModel is closed to methods from outside PEFT"
DYNAMIC = "the dynamic form is no linear map: merging it is refused"
STALE = "the test changes the weights of a calibrated adapter, which is not merged then"
EMPTY = "the test merges an adapter that is not calibrated yet, which is refused"
RANDOM = "a calibrated adapter is never a no-op: here it has random weights"
RANGE = "the model's inputs, up to 57,599, are outside the spline's range: its weights get no gradient"
SLOW = "with B = 0 at the start, three steps move A by less than the test looks for"

FAILURES: Sequence[Rule] = (
    Rule(r"test_add_weighted_adapter_(?!cat)|test_weighted_combination_of_adapters", CAT),
    Rule(r"mha_|multihead", MHA),
    Rule(r"test_add_adapter_rejects_duplicate_name_without_mutation\[True", MIXED),
    Rule(
        r"test_merge|test_safe_merge|test_disable_adapters_with_merging|test_delete_merged|test_forward_b?float16",
        DYNAMIC,
        form="dynamic",
    ),
    Rule(r"_models\.py.*test_merge_layers_fp16\[LoraConfig", EMPTY, form="calibrated"),
    Rule(r"test_merge_layers_nan", STALE, form="calibrated"),
    Rule(r"test_disable_adapters_with_merging", STALE, form="calibrated"),
    Rule(r"test_disable_adapters\[", RANDOM, form="calibrated"),
    Rule(r"test_only_params_are_updated.*-Conv2d(2|Groups2)-", RANGE, form="calibrated"),
    Rule(r"test_only_params_are_updated\[Embedding \+ transformers Conv1D 2 ", SLOW, form="static"),
)


def left_out(item: pytest.Item) -> str | None:
    """Why a test is not run with AuroRA."""
    return _first(LEFT_OUT, item)


def failure(item: pytest.Item) -> str | None:
    """Why a test fails with AuroRA: it is run, and must fail."""
    return _first(FAILURES, item)


def _first(rules: Sequence[Rule], item: pytest.Item) -> str | None:
    return next((rule.reason for rule in rules if rule.holds(item)), None)


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
