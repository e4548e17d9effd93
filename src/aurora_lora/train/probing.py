"""What a run probes before its training, for the `budget` and the `start` of its method; kept in the run's folder."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import EvaConfig, LoraConfig, get_eva_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..deploy.align import aligned_rows, layers_of_adapter, set_rows
from ..deploy.inputs import IGNORED
from ..deploy.probe import Loss, Probe, probe
from ..deploy.ranks import rank_fields, share_out
from ..errors import AuroraError, UserError, one_line
from ..files import new_file
from ..methods.base import Method
from ..methods.lora import LORA
from ..methods.options import TARGETS
from ..methods.start import ALIGNED, EVA, PROBED, ordinary
from ..methods.targets import check_modules, is_linear, lora_targets, target_paths
from ..tuner.config import scaling_divisor
from ..tuner.targets import ALL_LINEAR, exactly, mistakable
from .data import Data
from .models import checkpoint_activations, commit_of, on_device
from .publish import PROBE, is_begun
from .recipe import Recipe
from .trainer import on_main, own_part

MOST = 32
"""Directions that a layer can get of a budget."""


@dataclass(frozen=True)
class Start:
    """What a run begins with.

    Args:
        ranks: by layer, where a budget was shared out.
        rows: A (r, d_in) by layer, where the start is aligned.
        spectra: singular values by layer.
        deviations: of z along each of their directions, by layer.
        mistakable: modules without a rank whose paths end with that of a layer.
        without_gradient: layers that no gradient came through.
    """

    ranks: dict[str, int] | None
    rows: dict[str, Tensor]
    spectra: dict[str, Tensor]
    deviations: dict[str, Tensor]
    mistakable: tuple[str, ...] = ()
    without_gradient: tuple[str, ...] = ()

    def resolved(self, recipe: Recipe) -> Recipe:
        """The recipe with the method's ordinary options, that stock PEFT understands."""
        options = ordinary(recipe.method.options)
        if self.ranks is not None:
            alpha = "lora_alpha" if recipe.method.name == LORA.name else "alpha"
            given = {name: value for name, value in options.items() if name not in TARGETS}
            rslora = bool(options.get("use_rslora"))
            scaling = options[alpha] / scaling_divisor(options["r"], rslora)
            options = {**given, **rank_fields(self.ranks, scaling, alpha, self.mistakable, rslora=rslora)}
        return recipe.model_copy(update={"method": recipe.method.bind(options)})

    def align(self, model: nn.Module) -> None:
        """Give each adapter its A."""
        set_rows(layers_of_adapter(model, "default"), self.rows, "default")


def start_for(recipe: Recipe, base: Any, data: Data, folder: Path, loss: Loss) -> Start:
    """What a run with a budget or such a start begins with: from its folder, or else from a probing pass; raises a
    UserError where the pass cannot be made, the budget is too small, or the kept file is damaged."""
    record, options = data.record or {}, recipe.method.options
    made_of = {
        "files": sorted(record.get("files", {}).values()),
        "images": record.get("images"),
        "model_commit": commit_of(base),
    }
    if (kept := on_main(lambda: kept_start(folder, made_of))) is not None:
        return kept
    if recipe.training.gradient_checkpointing:
        checkpoint_activations(base)
    on_device(base)
    examples = options.get("probe_examples", PROBED["probe_examples"])  # an even sample of the training split
    share = min(1.0, examples / len(data.fixed("train")))
    batches = data.training_batches(share, recipe.training.batch_size)
    try:
        check_modules(base, options)
        if options["start"] == EVA:
            start, count = on_main(lambda: _by_eva(recipe, base, batches, loss))
        else:
            found = probe_for(recipe, base, own_part(batches), loss)
            start, count = decided(recipe.method, found, options["budget"]), found.batches
    except (AuroraError, ValueError) as error:
        raise UserError(f"method: {one_line(error)}") from error
    tensors = {"start": start.rows, "singular_values": start.spectra, "deviations": start.deviations}
    facts = {
        "options": {name: options[name] for name in PROBED},
        "seed": recipe.seed,
        "examples": data.rows_of_share(share),  # of the training split
        "batches": count,
        "made_of": made_of,
        "ranks": start.ranks,
        "mistakable": start.mistakable,
        "without_gradient": start.without_gradient,
    }
    on_main(lambda: write_probe(folder / PROBE, tensors, facts))
    return start


def write_probe(path: Path, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
    """Write what a run began with: tensors by what they are and by layer, and facts that are ready for JSON."""
    by_name = {f"{layer}/{what}": one.contiguous() for what, of in tensors.items() for layer, one in of.items()}
    with new_file(path) as partial:
        save_file(by_name, str(partial), metadata={"probe": json.dumps(facts, sort_keys=True)})


def read_probe(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `write_probe` has written; raises a UserError where that cannot be read."""
    try:
        with safe_open(str(path), "pt") as file:
            facts = json.loads((file.metadata() or {})["probe"])
        by_name = load_file(str(path))
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path} cannot be read as a probe: {error}. Remove it to probe again") from error
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, value in by_name.items():
        layer, _, what = name.rpartition("/")
        tensors.setdefault(what, {})[layer] = value
    return tensors, facts


def probe_for(recipe: Recipe, base: nn.Module, batches: list[dict[str, Tensor]], loss: Loss) -> Probe:
    """The probing pass of a recipe over these batches."""
    options = recipe.method.options
    budget = options.get("budget")
    paths = target_paths(base, options, lora_targets(base) if budget is None else ALL_LINEAR)
    ranks = (MOST,) if budget is not None else (options["r"], *(options.get("rank_pattern") or {}).values())
    exact = exactly(paths, [path for path, _ in base.named_modules()])
    return probe(base, batches, loss=loss, rank=max(ranks), target_modules=exact, seed=recipe.seed)


def decided(method: Method, found: Probe, budget: int | None) -> Start:
    """The ranks that a budget buys by what was probed, and the rows of an aligned start, of the layers that get one."""
    layers = found.layers
    ranks = None if budget is None else share_out(layers, budget)
    rows = {}
    if method.options["start"] == ALIGNED:
        chosen = {layer.layer: len(layer.singular_values) for layer in layers} if ranks is None else ranks
        rows = {one.layer: aligned_rows(one, chosen[one.layer]) for one in layers if one.layer in chosen}
    spectra = {layer.layer: layer.singular_values for layer in found.layers}
    deviations = {layer.layer: layer.deviations for layer in found.layers}
    modules = mistakable(ranks or (), found.modules)
    return Start(ranks, rows, spectra, deviations, modules, found.without_gradient)


def _by_eva(recipe: Recipe, base: Any, batches: list[dict[str, Tensor]], loss: Loss) -> tuple[Start, int]:
    """The start and the ranks that PEFT's EVA finds, and from how many batches."""
    r = recipe.method.options["r"]
    paths = target_paths(base, recipe.method.options, lora_targets(base))
    if odd := [path for path in paths if not is_linear(base.get_submodule(path))]:
        raise ValueError(f"target_modules: {odd[0]} is no linear layer, and start: eva is for these.")
    wanted = round(EvaConfig().rho * r)
    counted = functools.partial(_counted, by_token=recipe.task.kind.task_type == "CAUSAL_LM")
    # PEFT leaves out a batch with fewer tokens than it looks for, and goes round for ever where all have
    batches = [batch for batch in batches if (one := counted(batch)) is None or int(one.sum()) >= wanted]
    if not batches:
        raise ValueError(
            f"start: eva needs batches of at least {wanted} tokens that count: a larger training.batch_size, or a "
            "lower r."
        )
    modules = [path for path, _ in base.named_modules()]
    config = LoraConfig(r=r, target_modules=exactly(paths, modules), init_lora_weights="eva", eva_config=EvaConfig())
    with contextlib.redirect_stdout(sys.stderr):  # PEFT prints
        by_layer = get_eva_state_dict(
            base,
            batches,
            config,
            forward_fn=loss,
            prepare_model_inputs_fn=counted,
            prepare_layer_inputs_fn=_input_vectors,
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )
    rows = {path: A.float().cpu().contiguous() for path, A in by_layer.items() if len(A)}
    ranks = {path: len(A) for path, A in rows.items()}
    return Start(ranks, rows, {}, {}, mistakable(ranks, modules)), len(batches)


def _counted(batch: dict[str, Tensor], config: Any = None, *, by_token: bool) -> Tensor | None:
    """The tokens that count (batch, tokens): neither padding nor, in conversations, what is not learned."""
    found = batch["attention_mask"].bool() if "attention_mask" in batch else None
    if by_token and found is not None and "labels" in batch and batch["labels"].shape == found.shape:
        found = found & (batch["labels"] != IGNORED)
    return found


def _input_vectors(inputs: Any, counted: Tensor | None, layer: str) -> Tensor:
    """The vectors of a layer's inputs that count (tokens, d_in)."""
    x: Tensor = inputs[0] if isinstance(inputs, tuple | list) else inputs
    if counted is not None and x.shape[:-1] == counted.shape:
        return x[counted].float()
    return x.reshape(-1, x.shape[-1]).float().contiguous()


def kept_start(folder: Path, made_of: Mapping[str, Any] | None = None) -> Start | None:
    """What the run of this folder began with; None where nothing is kept, or where that is of a run that has made
    nothing yet, of other data or another base model than `made_of` says."""
    path = folder / PROBE
    if not path.exists():
        return None
    tensors, facts = read_probe(path)
    if made_of is not None and facts.get("made_of", made_of) != made_of and not is_begun(folder):
        return None
    rows, spectra, deviations = (tensors.get(what, {}) for what in ("start", "singular_values", "deviations"))
    modules, without = (tuple(facts[name]) for name in ("mistakable", "without_gradient"))
    return Start(facts["ranks"], rows, spectra, deviations, modules, without)
