"""What a run probes before its training, for the `budget` and the `start` of its method; kept in the run's folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import files
from ..deploy.probe import Loss, Probe, probe
from ..deploy.ranks import adapted_layers, aligned_rows, mistakable, rank_fields, set_rows, share_out
from ..errors import AuroraError, UserError
from ..methods.base import Options
from ..methods.lora import LORA
from ..methods.options import TARGETS
from ..methods.start import ALIGNED, PROBED, ordinary, wants_probe
from ..methods.targets import ALL_LINEAR, lora_targets, target_paths
from ..tuner.combine import exactly
from .data import Data
from .distributed import on_main, state
from .memory import checkpoint_activations
from .recipe import Recipe

PROBE = "probe.safetensors"
"""In a run's folder: the start of A by layer, the singular values of all layers, and the ranks."""
MOST = 32
"""Directions that a layer can get of a budget."""


@dataclass(frozen=True)
class Start:
    """What a run begins with.

    Args:
        ranks: by layer, where a budget was shared out.
        rows: A (r, d_in) by layer, where the start is aligned.
        spectra: singular values by layer.
        mistakable: modules without a rank whose paths end with that of a layer.
    """

    ranks: dict[str, int] | None
    rows: dict[str, Tensor]
    spectra: dict[str, Tensor]
    mistakable: tuple[str, ...] = ()

    def resolved(self, recipe: Recipe) -> Recipe:
        """The recipe with the method's ordinary options, that stock PEFT understands."""
        options = ordinary(recipe.method.options)
        if self.ranks is not None:
            alpha = alpha_name(recipe.method.name)
            given = {name: value for name, value in options.items() if name not in TARGETS}
            fields = rank_fields(self.ranks, options[alpha] / options["r"], alpha, self.mistakable)
            options = {**given, **fields}
        return recipe.model_copy(update={"method": recipe.method.bind(options)})

    def align(self, model: nn.Module) -> None:
        """Give each adapter its A."""
        layers = adapted_layers(model, "default")
        set_rows(layers, self.rows, "default")


def alpha_name(method: str) -> str:
    """How a method's options call alpha."""
    return "lora_alpha" if method == LORA.name else "alpha"


def start_for(recipe: Recipe, base: Any, data: Data, folder: Path, loss: Callable[[], Loss]) -> Start | None:
    """What the recipe's run begins with: from its folder, or else from a probing pass; None where it asks for nothing.

    Args:
        recipe: of the run.
        base: the pretrained model with its head.
        data: of the recipe.
        folder: of the run.
        loss: makes the loss of a model on a batch.

    Raises:
        UserError: the pass cannot be made, the budget is too small, or the kept file is damaged.
    """
    if not wants_probe(recipe.method.options):
        return None
    if (kept := kept_start(folder)) is not None:
        return kept
    if recipe.training.gradient_checkpointing:
        checkpoint_activations(base)
    try:
        found = probe_for(recipe, base, data, loss())
        start = _decided(recipe.method.options, found)
    except (AuroraError, ValueError) as error:
        raise UserError(f"method: {' '.join(str(error).split())}") from error
    on_main(lambda: _write(start, recipe, found, folder / PROBE))
    return start


def probe_for(recipe: Recipe, base: nn.Module, data: Data, loss: Loss) -> Probe:
    """The probing pass of a recipe, over this process's share of its examples."""
    options = recipe.method.options
    budget = options.get("budget")
    named = {name: options.get(name) for name in TARGETS}
    paths = target_paths(base, named, lora_targets(base) if budget is None else ALL_LINEAR)
    ranks = (MOST,) if budget is not None else (options["r"], *(options.get("rank_pattern") or {}).values())
    share = min(1.0, options.get("probe_examples", PROBED["probe_examples"][1]) / len(data.splits["train"]))
    batches, peers = data.training_batches(share, recipe.training.batch_size), state()
    own = batches[peers.process_index :: peers.num_processes]
    exact = exactly(paths, [path for path, _ in base.named_modules()])
    return probe(base, own, loss, rank=max(ranks), target_modules=exact, seed=recipe.seed)


def _decided(options: Options, found: Probe) -> Start:
    ranks = None
    if options["budget"] is not None:
        ranks = share_out(found.layers, options["budget"]).by_layer
    rows = {}
    if options["start"] == ALIGNED:
        for layer in found.layers:
            if ranks is None or layer.layer in ranks:
                k = len(layer.singular_values)
                rows[layer.layer] = aligned_rows(layer, k if ranks is None else ranks[layer.layer])
    spectra = {layer.layer: layer.singular_values for layer in found.layers}
    return Start(ranks, rows, spectra, mistakable(ranks or (), found.modules))


# ---------------------------------------------------------------- what is kept


def _write(start: Start, recipe: Recipe, found: Probe, path: Path) -> None:
    tensors = {f"{layer}/start": rows.contiguous() for layer, rows in start.rows.items()}
    tensors |= {f"{layer}/singular_values": values.contiguous() for layer, values in start.spectra.items()}
    facts = {
        "options": {name: recipe.method.options[name] for name in PROBED},
        "seed": recipe.seed,
        "batches": found.batches,
        "ranks": start.ranks,
        "mistakable": start.mistakable,
    }
    text = json.dumps(facts, sort_keys=True)
    with files.new_file(path) as partial:
        save_file(tensors, str(partial), metadata={"probe": text, "sha256": _sha256(tensors, text)})


def kept_start(folder: Path) -> Start | None:
    """What the run of this folder began with; None where nothing is kept.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / PROBE
    if not path.exists():
        return None
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}. Remove it to probe again") from error
    text = metadata.get("probe", "")
    if metadata.get("sha256") != _sha256(tensors, text):
        raise UserError(f"{path} is damaged. Remove it to probe again")
    by_end: dict[str, dict[str, Tensor]] = {"start": {}, "singular_values": {}}
    for name, value in tensors.items():
        layer, _, end = name.rpartition("/")
        by_end[end][layer] = value
    facts = json.loads(text)
    return Start(facts["ranks"], by_end["start"], by_end["singular_values"], tuple(facts.get("mistakable", ())))


def _sha256(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0")
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
