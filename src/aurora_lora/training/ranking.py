"""What a budget of weights buys in a recipe's model, before anything is trained."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from ..deploy.gradients import Weight, frozen_weights
from ..errors import UserError
from ..methods.options import TARGETS
from ..methods.start import EVA, PATTERNS, ProbedMethod
from .probing import kept_start
from .recipe import Recipe
from .run import make_trainer


def ranking(recipe: Recipe, budget: int | None = None) -> dict[str, Any]:
    """Probe a recipe's model and share a budget out, as its run would do.

    Where the recipe has a budget of its own, `target_modules` limits what that is spent on; without one, all linear
    layers are probed, whatever modules the recipe adapts.

    Args:
        recipe: of AuroRA or LoRA.
        budget: weights; the recipe's own if None.

    Returns:
        `budget`, `weights` (those that are used), `energy` (the share of the squared gradient, as far as it was found,
        along the chosen directions), `method` (the ordinary options) and `layers`: of each its `layer`, `block` (its
        number in the list of blocks, or None), `kind` (its name in there), `d_out`, `d_in`, `singular_values` and
        `rank`.

    Raises:
        UserError: no budget, a method without one, or one too small for any direction.
    """
    options = recipe.method.options
    if not isinstance(recipe.method, ProbedMethod):
        raise UserError(f"method.name: {recipe.method.name} takes no budget; aurora, its presets and lora do")
    if budget is None and options.get("budget") is None:
        raise UserError("method.budget: this field must be given, or `budget`")
    if options.get("budget") is None:
        options = {name: value for name, value in options.items() if name not in (*TARGETS, *PATTERNS)}
        options |= {"start": "default"} if options.get("start") == EVA else {}
    try:
        method = recipe.method.bind({**options, "budget": options.get("budget") if budget is None else budget})
    except ValueError as error:
        raise UserError(f"method.{error}") from error
    asked = recipe.model_copy(update={"method": method})
    with tempfile.TemporaryDirectory() as nowhere:
        trainer, _ = make_trainer(asked, Path(nowhere) / "checkpoints")
        start = kept_start(Path(nowhere))
    assert start is not None
    assert start.ranks is not None
    resolved = start.resolved(asked).method
    usual = resolved.bind({}).options
    unusual = {name: value for name, value in resolved.options.items() if name not in usual or value != usual[name]}
    layers = [
        _described(path, weight, start.spectra[path].tolist(), start.ranks.get(path, 0))
        for path, weight in frozen_weights(trainer.module).items()
        if path in start.spectra
    ]
    every = sum(value**2 for layer in layers for value in layer["singular_values"])
    bought = sum(value**2 for layer in layers for value in layer["singular_values"][: layer["rank"]])
    return {
        "schema": 1,
        "budget": method.options["budget"],
        "weights": sum(layer["rank"] * layer["direction"] for layer in layers),
        "examples": method.options["probe_examples"],
        "energy": bought / every,
        "method": {"name": resolved.name, **unusual},
        "layers": layers,
    }


def _described(path: str, weight: Weight, singular_values: list[float], rank: int) -> dict[str, Any]:
    match = re.search(r"(?:^|\.)(\d+)\.(.+)", path)
    return {
        "layer": path,
        "block": int(match[1]) if match else None,
        "kind": match[2] if match else path,
        "d_out": weight.d_out,
        "d_in": weight.d_in,
        "direction": weight.d_in + weight.d_out,
        "singular_values": singular_values,
        "rank": rank,
    }
