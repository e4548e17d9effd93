"""The settings that PEFT's parametrised tests run with: its own rows for LoRA in AuroRA's forms, and some of ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aurora_lora import AuroraConfig

from .stand_in import LoraConfig, UntranslatableError, translate

Kwargs = dict[str, Any]

FORMS: dict[str, Kwargs] = {
    "static": {"train_form": "static"},
    # The matrix is made where the weights are random. PEFT's tests ask for that where they compare outputs; those that
    # train in eval mode, as the ones on Transformers models do, do not ask for it, and get the dynamic form.
    "calibrated": {"train_form": "dynamic", "eval_form": "calibrated", "calibrated": True},
}
DYNAMIC: Kwargs = {"train_form": "dynamic", "eval_form": "dynamic"}

REFUSED_MODELS = {"MHA": "target_modules in a torch.nn.MultiheadAttention"}
"""Models of which PEFT's rows adapt what AuroRA refuses to."""

# (name, model, arguments): for each form
CUSTOM: Sequence[tuple[str, str, Kwargs]] = (
    ("rank 1", "MLP", {"target_modules": ["lin0", "lin1"], "r": 1}),
    ("rank 2, summed spline", "MLP", {"target_modules": ["lin0"], "r": 2, "spline": "summed"}),
    ("rank 16, skip", "MLP", {"target_modules": ["lin0", "lin1"], "r": 16, "skip": True}),
    ("rank pattern", "MLP", {"target_modules": ["lin0", "lin1"], "rank_pattern": {"lin1": 3}, "use_rslora": True}),
    ("without spline", "MLP", {"target_modules": ["lin0"], "spline": None, "fixed_activation": "leaky_relu"}),
    ("without fixed part", "MLP", {"target_modules": ["lin0"], "fixed_activation": None}),
    ("modules_to_save, dropout", "MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"], "lora_dropout": 0.1}),
    ("embedding, rank 3", "EmbConv1D", {"target_modules": ["emb"], "r": 3, "modules_to_save": ["lin0"]}),
    ("Conv1d, larger", "Conv1dBigger", {"target_modules": ["conv1d", "lin0"], "r": 4}),
    ("Conv1d, groups", "Conv1dGroups", {"target_modules": ["conv1d"], "r": 2}),
    ("Conv2d, kernel 1", "Conv2d1x1", {"target_modules": ["conv2d"], "r": 2}),
    ("Conv2d and linear", "Conv2d2", {"target_modules": ["lin0", "conv2d", "lin1"], "r": 4}),
)
CUSTOM_DYNAMIC: Sequence[tuple[str, str, Kwargs]] = (
    ("linear", "MLP", {"target_modules": ["lin0", "lin1"]}),
    ("transformers Conv1D", "EmbConv1D", {"target_modules": ["conv1d"]}),
    ("Conv2d", "Conv2d", {"target_modules": ["conv2d"]}),
)
# (name, first adapter, second adapter)
MULTIPLE: Sequence[tuple[str, Kwargs, Kwargs]] = (
    ("ranks", {"target_modules": ["lin0"], "r": 2}, {"target_modules": ["lin0", "lin1"], "r": 16}),
    ("splines", {"target_modules": ["lin0"], "spline": "summed"}, {"target_modules": ["lin0"], "skip": True}),
)
TRANSFORMERS: Sequence[Kwargs] = ({"r": 2, "target_modules": None, "spline": "summed", "use_rslora": True},)
QUANTIZED: Sequence[Kwargs] = (
    {"r": 8, "target_modules": ["q_proj", "v_proj"]},
    {"r": 2, "target_modules": ["q_proj", "v_proj"], "spline": "summed"},
)


class Rows:
    """The rows of one test module.

    Attributes:
        left_out: how many of PEFT's rows for LoRA need an option that AuroRA has not, by option.
    """

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()

    def _translatable(self, *settings: Kwargs) -> bool:
        try:
            for kwargs in settings:
                translate(**kwargs)
        except UntranslatableError as error:
            self.left_out[str(error)] += 1
            return False
        return True

    def custom(self, peft: Sequence[Any]) -> list[Any]:
        """(name, model, class, arguments) of test_custom_models."""
        rows = []
        forms = {**FORMS, "calibrated": {**FORMS["calibrated"], "init_lora_weights": False}}
        for name, model, cls, kwargs in peft:
            if cls is not LoraConfig:
                continue
            if model in REFUSED_MODELS:
                self.left_out[REFUSED_MODELS[model]] += 1
            elif self._translatable(kwargs):
                rows += [(f"{name} {form}", model, cls, {**kwargs, **fields}) for form, fields in forms.items()]
        for name, model, kwargs in CUSTOM:
            rows += [(f"{name} {form}", model, LoraConfig, {**kwargs, **fields}) for form, fields in forms.items()]
        for name, model, kwargs in CUSTOM_DYNAMIC:
            rows.append((f"{name} dynamic", model, LoraConfig, {**kwargs, **DYNAMIC}))
        return rows

    def multiple(self, peft: Sequence[Any]) -> list[Any]:
        """(name, method, class, arguments, arguments): two adapters, active together."""
        pairs = [row for row in peft if row[2] is LoraConfig and self._translatable(*row[3:])]
        pairs += [(name, "lora", LoraConfig, first, second) for name, first, second in MULTIPLE]
        return [
            (f"{name} {form}", *kind, *({**kwargs, **fields, "init_lora_weights": False} for kwargs in both))
            for name, *kind, both in ((name, tuner, cls, both) for name, tuner, cls, *both in pairs)
            for form, fields in FORMS.items()
        ]

    def transformers(self, peft: Sequence[Any]) -> list[Any]:
        """(class, arguments) of the tests on Transformers models; the task is that of PEFT's rows."""
        settings = [kwargs for cls, kwargs in peft if cls is LoraConfig]
        task = {"task_type": settings[0]["task_type"]}
        settings = [kwargs for kwargs in settings if self._translatable(kwargs)]
        settings += [{**kwargs, **task} for kwargs in TRANSFORMERS]
        return [(LoraConfig, {**kwargs, **fields}) for kwargs in settings for fields in FORMS.values()]

    def vision(self, peft: AuroraConfig) -> dict[str, AuroraConfig]:
        """Configs by name, from PEFT's one for LoRA."""
        return {form: replace(peft, **fields) for form, fields in FORMS.items()}

    def diffusers(self, peft: Sequence[Any]) -> list[Any]:
        """(class, {part of the pipeline: arguments})."""
        return [
            (cls, {part: {**kwargs, **fields} for part, kwargs in parts.items()})
            for cls, parts in peft
            if cls is LoraConfig
            for fields in FORMS.values()
        ]

    def quantized(self) -> list[Any]:
        """(class, arguments) of test_quantization, which has no rows for LoRA."""
        return [(LoraConfig, {**kwargs, **fields}) for kwargs in QUANTIZED for fields in FORMS.values()]
