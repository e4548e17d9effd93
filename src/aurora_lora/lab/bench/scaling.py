"""How the cost grows with tokens, width, rank, layers and the adapters in a mixed batch; with fitted exponents."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import get_peft_model

from .measure import TrainingStep
from .timing import Action, clock_of, interleave, paired_difference
from .variants import BASE, REFERENCE, VARIANTS, Variant, aurora, build, lora, share
from .workloads import Case, linear_case

LORA, AURORA = "lora", "aurora"
"""The two series of every axis, beside the frozen base."""


@dataclass(frozen=True)
class Axis:
    """What is varied while the rest is fixed.

    Args:
        name: of the quantity.
        values: it takes, smallest first.
        quick: values for a quick look.
        fixed: the rest, for the caption.
        lora: label of the LoRA series.
        aurora: label of the AuroRA series.
        actions: makes the base, LoRA and AuroRA at one value.
    """

    name: str
    values: tuple[int, ...]
    quick: tuple[int, ...]
    fixed: str
    lora: str
    aurora: str
    actions: Callable[[int, str, torch.dtype], dict[str, Action]]


def fit(values: Sequence[float], costs: Sequence[float]) -> dict[str, float] | None:
    """Exponent b of cost = a value^b, by least squares of the logarithms, with its standard error; None below 3 points.

    Costs that are not above 0 have no logarithm: with one among them there is no fit.
    """
    from scipy.stats import linregress

    if len(values) < 3 or min(costs) <= 0:
        return None
    found = linregress([math.log(v) for v in values], [math.log(c) for c in costs])
    return {"exponent": float(found.slope), "standard_error": float(found.stderr)}


def measure_axis(
    axis: Axis, rounds: int, device: str, dtype: torch.dtype, after_round: Callable[[], object], *, quick: bool
) -> dict[str, Any]:
    """Seconds of the base, LoRA and AuroRA at each value, what the adapters add to the base, and the exponents."""
    points = []
    for value in axis.quick if quick else axis.values:
        torch.manual_seed(0)
        actions = axis.actions(value, device, dtype)
        seconds = interleave(actions, rounds, clock_of(torch.device(device)), after_round=after_round)
        point: dict[str, Any] = {"value": value, "seconds": {}, "added": {}}
        for name, own in seconds.items():
            point["seconds"][name] = statistics.median(own)
            if name != BASE:
                point["added"][name] = asdict(paired_difference(own, seconds[BASE]))
        points.append(point)
    labels = {BASE: "frozen base", LORA: axis.lora, AURORA: axis.aurora}
    return {"name": axis.name, "fixed": axis.fixed, "labels": labels, "points": points, "fits": _fits(points)}


def _fits(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [point["value"] for point in points]
    fits: dict[str, Any] = {"seconds": {}, "added": {}}
    for name in (BASE, LORA, AURORA):
        fits["seconds"][name] = fit(values, [point["seconds"][name] for point in points])
        if name != BASE:
            fits["added"][name] = fit(values, [point["added"][name]["median"] for point in points])
    return fits


# ---------------------------------------------------------------- the axes


def _steps(case: Case, lora_variant: Variant, aurora_variant: Variant) -> dict[str, Action]:
    """A training step of each."""
    variants = {BASE: VARIANTS[BASE], LORA: lora_variant, AURORA: aurora_variant}
    return {name: TrainingStep(build(variant, case, training=True), case) for name, variant in variants.items()}


def _tokens(value: int, device: str, dtype: torch.dtype) -> dict[str, Action]:
    return _steps(linear_case(value, 768, device=device, dtype=dtype), VARIANTS[REFERENCE], VARIANTS["aurora-dynamic"])


def _width(value: int, device: str, dtype: torch.dtype) -> dict[str, Action]:
    return _steps(linear_case(1024, value, device=device, dtype=dtype), VARIANTS[REFERENCE], VARIANTS["aurora-dynamic"])


def _rank(value: int, device: str, dtype: torch.dtype) -> dict[str, Action]:
    return _steps(linear_case(1024, 768, device=device, dtype=dtype), lora(value), aurora(value))


def _layers(value: int, device: str, dtype: torch.dtype) -> dict[str, Action]:
    case = linear_case(512, 384, layers=value, device=device, dtype=dtype)
    return _steps(case, VARIANTS[REFERENCE], VARIANTS["aurora-dynamic"])


def _adapters(value: int, device: str, dtype: torch.dtype) -> dict[str, Action]:
    """A batch of 32 examples whose adapters, `value` different ones, come in turn; inference."""
    case = linear_case(32 * 32, 768, device=device, dtype=dtype)
    names = [f"adapter{i % value}" for i in range(32)]
    actions: dict[str, Action] = {BASE: _on_examples(share(case.base).eval(), case)}
    for key, variant in ((LORA, VARIANTS[REFERENCE]), (AURORA, VARIANTS["aurora-calibrated"])):
        assert variant.config is not None
        config = variant.config(random=True, target_modules=list(case.targets))
        model = get_peft_model(share(case.base), config, adapter_name="adapter0")
        for number in range(1, value):
            model.add_adapter(f"adapter{number}", config)
        actions[key] = _on_examples(model.eval(), case, adapter_names=names)
    return actions


def _on_examples(model: Any, case: Case, **names: Any) -> Action:
    """Inference on the tokens of a batch as 32 examples."""

    def run(number: int) -> None:
        x = case.batch(number)["x"].detach()
        with torch.no_grad():
            model(x.view(32, -1, x.shape[-1]), **names)

    return run


_PAIR = ("LoRA r=8", "AuroRA r=2")
AXES: tuple[Axis, ...] = (
    Axis("tokens", (128, 256, 512, 1024, 2048, 4096, 8192), (16, 32, 64), "d = 768, step", *_PAIR, _tokens),
    Axis("width", (128, 256, 512, 768, 1024, 1536), (16, 32, 64), "1,024 tokens, step", *_PAIR, _width),
    Axis("rank", (1, 2, 4, 8, 16, 32, 64), (1, 2, 4), "1,024 tokens, d = 768, step", "LoRA", "AuroRA", _rank),
    Axis("layers", (1, 2, 4, 8, 16), (1, 2, 3), "512 tokens, d = 384, step", *_PAIR, _layers),
    Axis("adapters", (1, 2, 4, 8, 16, 32), (1, 2, 4), "32 x 32 tokens, d = 768, calibrated", *_PAIR, _adapters),
)
