"""What a budget of weights buys in a recipe's model, before anything is trained."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..deploy.gradients import frozen_weights
from ..errors import ArgumentError, UserError
from ..methods.start import ALIGNED, EVA, PATTERNS, ProbedMethod
from ..methods.targets import blocks_and_kinds
from .build import make_trainer
from .probing import kept_start
from .recipe import Recipe


def ranking(recipe: Recipe, budget: int | None = None) -> dict[str, Any]:
    """Probe a recipe's model and share a budget out, as its run would do.

    Where the recipe has a budget of its own, `target_modules` limits what that is spent on; without one, all linear
    layers are probed, whatever modules the recipe adapts, but those that it excludes.

    Args:
        recipe: of AuroRA or LoRA.
        budget: weights; the recipe's own if None.

    Returns:
        `budget`, `weights` (those that are used), `examples` (that were probed), `energy` (the share of the squared
        gradient, as far as it was found, along the chosen directions), `left_out` (the recipe's options that say which
        modules and ranks, and that the budget decides now), `exhausted` (layers that got every direction that was
        looked for, and have more), `without_gradient` (layers that no gradient came through, which are not among
        `layers`), `method` (the ordinary options, and `start: aligned` if the recipe has it) and `layers`: of each its
        `layer`, `block` (its number in the list of blocks, or None), `kind` (its name in there), `d_out`, `d_in`,
        `singular_values` and `rank`.

    Raises:
        UserError: no budget, a method without one, or one too small for any direction.
    """
    options = recipe.method.options
    if not isinstance(recipe.method, ProbedMethod):
        raise UserError(f"method.name: {recipe.method.name} takes no budget; aurora, its presets and lora do")
    if budget is None and options.get("budget") is None:
        raise ArgumentError("method.budget: this field must be given, or `budget`")
    left_out = []
    if options.get("budget") is None:
        left_out = [name for name in ("target_modules", *PATTERNS) if options.get(name)]
        options = {name: value for name, value in options.items() if name not in ("target_modules", *PATTERNS)}
        options |= {"start": "default"} if options.get("start") == EVA else {}
    try:
        method = recipe.method.bind({**options, "budget": options.get("budget") if budget is None else budget})
    except ValueError as error:
        raise UserError(f"method.{error}") from error
    asked = recipe.model_copy(update={"method": method})
    with tempfile.TemporaryDirectory() as nowhere:
        trainer, _ = make_trainer(asked, Path(nowhere) / "checkpoints")
        start = kept_start(Path(nowhere))
    model: Any = trainer.model
    assert start is not None
    assert start.ranks is not None
    resolved = start.resolved(asked).method
    usual = resolved.bind({}).options
    unusual = {name: value for name, value in resolved.options.items() if name not in usual or value != usual[name]}
    weights = {path: weight for path, weight in frozen_weights(model).items() if path in start.spectra}
    layers: list[dict[str, Any]] = [
        {
            "layer": path,
            "block": block,
            "kind": kind,
            "d_out": weights[path].d_out,
            "d_in": weights[path].d_in,
            "direction": weights[path].d_in + weights[path].d_out,
            "singular_values": start.spectra[path].tolist(),
            "rank": start.ranks.get(path, 0),
        }
        for path, (block, kind) in blocks_and_kinds(weights).items()
    ]
    aligned = {"start": ALIGNED} if options.get("start") == ALIGNED else {}
    every = sum(value**2 for layer in layers for value in layer["singular_values"])
    bought = sum(value**2 for layer in layers for value in layer["singular_values"][: layer["rank"]])
    return {
        "schema": 1,
        "budget": method.options["budget"],
        "weights": sum(layer["rank"] * layer["direction"] for layer in layers),
        "examples": method.options["probe_examples"],
        "energy": bought / every,
        "left_out": left_out,
        "exhausted": exhausted(layers),
        "without_gradient": list(start.without_gradient),
        "method": {"name": resolved.name, **unusual, **aligned},
        "layers": layers,
    }


def exhausted(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """The layers that got every direction that was looked for, and have more; each as `ranking` gives it."""
    return [
        layer["layer"]
        for layer in layers
        if layer["rank"] == len(layer["singular_values"]) < min(layer["d_out"], layer["d_in"])
    ]
