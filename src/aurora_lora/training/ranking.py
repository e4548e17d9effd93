"""What a budget of weights buys in a recipe's model, before anything is trained."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from ..deploy.probe import LayerProbe
from ..deploy.ranks import cost, share_out
from ..errors import AuroraError, UserError
from ..methods.full import FULL
from ..methods.options import TARGETS
from ..methods.start import PATTERNS, ProbedMethod
from .probing import Start, probe_for
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
    try:
        method = recipe.method.bind({**options, "budget": options.get("budget") if budget is None else budget})
    except ValueError as error:
        raise UserError(f"method.{error}") from error
    asked = recipe.model_copy(update={"method": method})
    plain = recipe.model_copy(update={"method": FULL})
    with tempfile.TemporaryDirectory() as nowhere:
        trainer, data = make_trainer(plain, Path(nowhere) / "checkpoints")
    try:
        found = probe_for(asked, trainer.module, data, trainer.loss_of)
        shared = share_out(found.layers, method.options["budget"])
    except (AuroraError, ValueError) as error:
        raise UserError(f"method: {' '.join(str(error).split())}") from error
    resolved = Start(shared.by_layer, {}, {}).resolved(asked).method
    usual = resolved.bind({}).options
    unusual = {name: value for name, value in resolved.options.items() if name not in usual or value != usual[name]}
    layers = [_described(layer, shared.by_layer.get(layer.layer, 0)) for layer in found.layers]
    every = sum(value**2 for layer in layers for value in layer["singular_values"])
    bought = sum(value**2 for layer in layers for value in layer["singular_values"][: layer["rank"]])
    return {
        "schema": 1,
        "budget": method.options["budget"],
        "weights": shared.weights,
        "examples": method.options["probe_examples"],
        "seconds": found.seconds,
        "energy": bought / every,
        "method": {"name": resolved.name, **unusual},
        "layers": layers,
    }


def _described(layer: LayerProbe, rank: int) -> dict[str, Any]:
    match = re.search(r"(?:^|\.)(\d+)\.(.+)", layer.layer)
    return {
        "layer": layer.layer,
        "block": int(match[1]) if match else None,
        "kind": match[2] if match else layer.layer,
        "d_out": layer.d_out,
        "d_in": layer.d_in,
        "direction": cost(layer),
        "singular_values": [float(value) for value in layer.singular_values],
        "rank": rank,
    }
