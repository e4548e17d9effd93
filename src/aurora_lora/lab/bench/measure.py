"""The comparison of variants on one case: training steps, then inference, in counts and in times."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ...errors import UserError
from ..saved_tensors import count_saved
from . import counts
from .timing import clock_of, interleave, paired_ratio
from .variants import BASE, REFERENCE, Variant, build
from .workloads import Batch, Case, Loss

LEARNING_RATE = 1e-4
Key = tuple[str, bool]
"""A variant's name, and whether it is compiled."""

EAGER_ANCHORS = (BASE, REFERENCE, "aurora-dynamic")
"""The variants that run eagerly too beside compiled ones, so that the two modes can be compared."""


class TrainingStep:
    """One whole step: forward, loss, backward, AdamW (as Transformers' Trainer has it), zero_grad.

    Where nothing is trained there is no optimizer.
    """

    def __init__(self, model: nn.Module, case: Case, compiled: bool = False) -> None:
        self.model, self.case, self.compiled = model, case, compiled
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True) if trained else None
        self.loss: Loss = torch.compile(case.loss, dynamic=False) if compiled else case.loss

    def __call__(self, number: int = 0) -> None:
        batch = self.case.batch(number)
        self.loss(self.model, batch).backward()  # type: ignore[no-untyped-call]
        if self.optimizer is not None:
            self.optimizer.step()
        self.clear(batch)

    def clear(self, batch: Batch) -> None:
        """Drop the gradients."""
        for tensor in batch.values():
            tensor.grad = None
        if self.optimizer is not None:
            self.optimizer.zero_grad()


class Inference:
    """One forward pass without gradients."""

    def __init__(self, model: nn.Module, case: Case, compiled: bool = False) -> None:
        self.case, self.compiled = case, compiled
        self.model: Any = torch.compile(model, dynamic=False) if compiled else model

    def __call__(self, number: int = 0) -> None:
        with torch.no_grad():
            self.case.run(self.model, self.case.batch(number))


@dataclass(frozen=True)
class Plan:
    """How a case is measured.

    Args:
        variants: what is compared.
        rounds: interleaved rounds.
        compiled: whether the variants go through torch.compile, with some eager ones beside them.
    """

    variants: Sequence[Variant]
    rounds: int
    compiled: bool = False

    def entries(self) -> list[tuple[Variant, bool]]:
        eager = [(v, False) for v in self.variants if not self.compiled or v.name in EAGER_ANCHORS]
        return eager + [(v, True) for v in self.variants if self.compiled]


def measure(case: Case, plan: Plan, after_round: Callable[[], object] = lambda: None) -> list[dict[str, Any]]:
    """One entry for each variant and mode: see `docs/performance.md` for what the figures are.

    Raises:
        UserError: torch.compile finds no compiler.
    """
    found: dict[Key, dict[str, Any]] = {}
    for variant, compiled in plan.entries():
        found[variant.name, compiled] = {"variant": variant.name, "label": variant.label, "compiled": compiled}
    try:
        for kind in ("training", "inference"):
            for key, values in _phase(case, plan, kind, after_round).items():
                found[key][kind] = values
            torch.compiler.reset()  # graphs of this phase, and with them its models
    except Exception as error:
        if "InvalidCxxCompiler" in type(error).__name__ or "InvalidCxxCompiler" in str(error):
            raise UserError("torch.compile finds no C++ compiler: install one, or measure without compiling") from error
        raise
    return list(found.values())


def _phase(case: Case, plan: Plan, kind: str, after_round: Callable[[], object]) -> dict[Key, dict[str, Any]]:
    training = kind == "training"
    actions: dict[Key, TrainingStep | Inference] = {}
    values: dict[Key, dict[str, Any]] = {}
    for variant, compiled in plan.entries():
        if not (variant.trains if training else variant.infers):
            continue
        torch.manual_seed(0)
        model = build(variant, case, training=training)
        action: TrainingStep | Inference = (TrainingStep if training else Inference)(model, case, compiled)
        for number in range(2):  # what is done once only: tables, the optimizer's state, compilation
            action(number)
        values[variant.name, compiled] = count_step(action) if isinstance(action, TrainingStep) else count_run(action)
        actions[variant.name, compiled] = action
    _per_layer(values, case)
    device = next(case.base.parameters()).device
    names = {f"{name} {compiled}": (name, compiled) for name, compiled in actions}
    timed = interleave(
        {text: actions[key] for text, key in names.items()}, plan.rounds, clock_of(device), after_round=after_round
    )
    seconds = {key: timed[text] for text, key in names.items()}
    for key, own in seconds.items():
        values[key] |= _ratios(key, own, seconds, REFERENCE if training else BASE)
    return values


def _ratios(key: Key, own: Sequence[float], seconds: Mapping[Key, Sequence[float]], reference: str) -> dict[str, Any]:
    found: dict[str, Any] = {"seconds": statistics.median(own)}
    found["ratio"] = asdict(paired_ratio(own, seconds[reference, key[1]]))
    if key[1]:
        found["ratio_to_eager"] = asdict(paired_ratio(own, seconds[reference, False]))
        if (key[0], False) in seconds:
            found["ratio_to_itself_eager"] = asdict(paired_ratio(own, seconds[key[0], False]))
    return found


# ---------------------------------------------------------------- counts


def count_step(step: TrainingStep) -> dict[str, Any]:
    """Calls forward, and forward and backward, bytes kept for the backward pass, and peak memory of a whole step."""
    case, batch = step.case, step.case.batch(0)
    device = next(step.model.parameters()).device
    # of a compiled step the loss is a part that cannot be left out
    plain = case.counted_loss if not step.compiled else None
    loss = plain or step.loss

    def forward() -> Any:
        return case.run(step.model, batch) if plain is not None else loss(step.model, batch)

    def both() -> None:
        loss(step.model, batch).backward()  # type: ignore[no-untyped-call]

    calls = {}
    for name, function in (("forward", forward), ("both", both)):
        calls[name] = _names(function, step.compiled).total()
        step.clear(batch)
    result: dict[str, Any] = {"calls": calls}
    if device.type == "cuda":
        result["launches"] = counts.cuda_launches(both)
        step.clear(batch)
    # of compiled code the loss of a single layer cannot be left out: what it alone keeps is not counted
    given = [batch["labels"]] if step.compiled and case.counted_loss is not None else []
    result["saved_bytes"] = count_saved(forward, given).bytes()
    weights = (*step.model.parameters(), *step.model.buffers(), *given)
    result["saved_bytes_but_weights"] = count_saved(forward, weights).bytes()
    result["peak_bytes"] = counts.peak_bytes(step, device)
    result["parameters"] = sum(p.numel() for p in step.model.parameters() if p.requires_grad)
    return result


def count_run(run: Inference) -> dict[str, Any]:
    """Calls of a forward pass, with their names."""
    names = _names(run, run.compiled)
    result: dict[str, Any] = {"calls": {"forward": names.total()}, "names": names}
    if next(iter(run.case.batch(0).values())).device.type == "cuda":
        result["launches"] = counts.cuda_launches(run)
    return result


def _names(function: Callable[[], Any], compiled: bool) -> Counter[str]:
    return counts.profiled_calls(function) if compiled else counts.calls_of(function)


def _per_layer(values: Mapping[Key, dict[str, Any]], case: Case) -> None:
    """Calls of one adapted layer: all of them where a layer is all there is, else what the adapter adds to the base."""
    for (_, compiled), entry in values.items():
        base = values.get((BASE, compiled))
        if base is None:
            continue
        entry["per_layer"] = {
            name: (total - (0 if case.counted_loss is not None else base["calls"][name])) / case.layers
            for name, total in entry["calls"].items()
        }
        if "names" in entry:
            entry["same_calls_as_base"] = entry["names"] == base["names"]
    for entry in values.values():
        entry.pop("names", None)
