"""The end of a run: the scores of every form, the result, the adapter and its plain LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..deploy import export_lora
from ..forms import form_named
from ..methods import count_parameters
from ..methods.aurora import AuroraMethod
from ..methods.base import edit_config
from . import card
from .base_commit import commit_of
from .data import Data
from .kinds import kind_of
from .model_inputs import padding_of
from .quantized_base import exact_modules
from .recipe import Recipe
from .results import Result, Scores, build_result, epochs_from_log
from .run_folder import finish, write_lora
from .trainer import RecipeTrainer


def score(recipe: Recipe, trainer: RecipeTrainer, data: Data, split: str, forms: Sequence[str]) -> Scores:
    """Metrics of each form on a split."""
    scores = {}
    trainer.scoring(split)
    for form in forms:
        with recipe.method.using(trainer.module, form):
            examples: Any = data.fixed(split)
            metrics = trainer.evaluate(examples, metric_key_prefix=split)
        scores[form] = {
            name.removeprefix(f"{split}_"): value
            for name, value in metrics.items()
            if name.removeprefix(f"{split}_") in kind_of(data.task).metric_names(data.task)
        }
    return scores


def scored_result(recipe: Recipe, trainer: RecipeTrainer, data: Data) -> Result:
    """The result of a trained run: every form scored on the validation split and the test sets, and what it took."""
    forms, steps = recipe.method.forms, trainer.state.max_steps
    kind, task = kind_of(data.task), data.task
    epochs = epochs_from_log(trainer.state.log_history, kind.metric_names(task))
    best = next(entry for entry in epochs if entry["step"] == trainer.state.best_global_step)
    scored = {"validation": score(recipe, trainer, data, "validation", forms)}
    for name in recipe.test_sets:
        if name not in scored:
            scored[name] = score(recipe, trainer, data, name, forms)
    return build_result(
        recipe,
        model_commit=commit_of(trainer.module),
        metric=kind.reported(recipe.task, task),
        split=task.reported_split,
        examples={name: len(data.fixed(name)) for name in data.splits},
        validation=scored["validation"],
        test={name: scored[name] for name in recipe.test_sets},
        chance={name: kind.guessed(data, name) for name in recipe.test_sets},
        most_frequent={name: kind.most_frequent(data, name) for name in recipe.test_sets},
        selected_by={
            "split": "validation",
            "form": recipe.method.deployed_form,
            "name": recipe.selected_by,
            "value": best["validation"][recipe.selected_by],
            "epoch": best["epoch"],
        },
        params=count_parameters(trainer.module),
        train_s=trainer.clock.seconds,
        trained_examples=round(len(data.fixed("train")) * trainer.state.epoch) if steps else 0,
        peak_mb=trainer.measure_memory(),
        processes=trainer.args.world_size,
        epochs=epochs,
        labels=() if task.labels else data.labels,
        data=data.record,
        before=kind.before(recipe, trainer, data),
        samples=kind.samples(recipe, trainer, data),
    )


def write_run(recipe: Recipe, folder: Path, trainer: RecipeTrainer, data: Data, result: Result) -> None:
    """The plain LoRA, the adapter and the result."""
    config: Any = trainer.module.config
    facts = card.Facts(recipe, data.task, result, padding_of(config), exact_modules(config))
    no_lora = _write_lora(folder, trainer, data, facts) if isinstance(recipe.method, AuroraMethod) else None

    def save(adapter: Path) -> None:
        recipe.method.save(trainer.module, adapter)
        data.processor.save_pretrained(str(adapter))
        tidy_config(adapter, facts.base)
        name_revision(adapter, recipe)
        card.write_adapter_card(adapter, facts, no_lora)

    finish(folder, result, save)


def tidy_config(adapter: Path, base: str) -> None:
    """Name the base model as other machines know it in the settings that PEFT has written, and each module once."""

    def change(settings: dict[str, Any]) -> None:
        named = list(dict.fromkeys(settings.get("modules_to_save") or ())) or None
        settings |= {"base_model_name_or_path": base, "modules_to_save": named}

    edit_config(adapter, change)


def name_revision(adapter: Path, recipe: Recipe) -> None:
    """Name the revision of the base model, where a recipe has one, in an adapter's settings: for `AutoPeftModel`."""
    if (revision := recipe.base.revision) is not None:
        edit_config(adapter, lambda settings: settings.update(revision=revision))


def _write_lora(folder: Path, trainer: RecipeTrainer, data: Data, facts: card.Facts) -> str | None:
    """The plain LoRA beside an AuroRA adapter: what people without this package can load.

    Returns:
        Why there is none; None if there is one.
    """
    form = facts.result["metric"]["selected_by"]["form"]
    if not form_named(form).mergeable:
        return "`eval()` computes the dynamic form, which is no linear map"

    def write(partial: Path) -> None:
        export_lora(trainer.module, partial, form, processor=data.processor, base_name=facts.base)
        name_revision(partial, facts.recipe)
        card.write_lora_card(partial, facts, form)

    return write_lora(folder, write)
