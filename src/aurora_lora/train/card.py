"""The model cards of a run: the `README.md` that tells what an adapter needs, how to load it and what it scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load
from jinja2 import StrictUndefined, Template
from yaml import YAMLError

from ..data import Task
from ..data.models import MODELS, PretrainedHere, hub_name
from ..deploy.export import beyond_lora
from ..forms import CALIBRATED, STATIC, form_named
from ..methods.aurora import AuroraMethod
from ..methods.base import PeftMethod
from ..tuner.registration import TAG
from . import recipe_files
from .finished_run import Result, examples_scored, score_table
from .kind_facts import facts_of
from .recipe import Recipe

CARD = "README.md"
PEFT = "https://github.com/huggingface/peft"
PAPER = "Breaking Low-Rank Bottleneck of LoRA with Nonlinear Mapping"
_NAMES = {"peft": "PEFT", "transformers": "Transformers", "torch": "PyTorch", "python": "Python"}
_TEMPLATE = Template(
    Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8"),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=StrictUndefined,
)


@dataclass(frozen=True)
class Facts:
    """What the cards of a run are written from.

    Args:
        recipe: the run's.
        task: the recipe's.
        result: what result.json will hold.
        pad_token_id: the model's; models without one of their own need the run's to judge several texts at once.
        exact: the modules that a quantised base has in full precision.
    """

    recipe: Recipe
    task: Task
    result: Result
    pad_token_id: int | None
    exact: Sequence[str] = ()

    @property
    def base(self) -> str:
        """What the hub, or another machine, knows the base model by."""
        return hub_name(self.recipe.model)


def write_adapter_card(folder: Path, facts: Facts, no_lora: str | None) -> None:
    """Write the card of the folder that a method has saved its adapter in.

    Args:
        folder: that folder.
        facts: of the run.
        no_lora: for AuroRA, why there is no plain LoRA beside the adapter; None if there is one.
    """
    method = facts.recipe.method
    if isinstance(method, AuroraMethod):
        _write(folder, facts, "aurora", ("aurora",), facts.result["metric"]["selected_by"]["form"], no_lora=no_lora)
    elif isinstance(method, PeftMethod) and method.peft_loads:
        _write(folder, facts, "peft", (method.name,))
    else:  # PEFT alone would load it on the base model as it is, and compute something else
        _write(folder, facts, "own", refusal=getattr(method, "refusal", None))


def write_lora_card(folder: Path, facts: Facts, form: str) -> None:
    """Write the card of the plain LoRA of an AuroRA adapter, exported in a form."""
    _write(folder, facts, "lora", ("lora",), form, beyond=beyond_lora(folder))


def write_merged_card(folder: Path, facts: Facts, form: str, rounded: str | None) -> None:
    """Write the card of a merged model, of the form that was merged; `rounded` is the format of its weights, if any."""
    _write(folder, facts, "merged", (), form, rounded=rounded)


def replaceable_card(folder: Path) -> tuple[str, ...]:
    """The name of the card in a folder, if there is one with this package's tag."""
    try:
        found = metadata_load(folder / CARD) if (folder / CARD).is_file() else None
    except (OSError, ValueError, YAMLError):
        return ()
    return (CARD,) if TAG in ((found or {}).get("tags") or ()) else ()


def _write(
    folder: Path,
    facts: Facts,
    kind: Literal["aurora", "lora", "peft", "own", "merged"],
    tags: Sequence[str] = (),
    form: str | None = None,
    **more: Any,
) -> None:
    """Write a card: of what PEFT loads with the code that loads it, and what one can do then."""
    recipe, result, of = facts.recipe, facts.result, facts_of(facts.task)
    chosen, by_form, split = result["metric"]["selected_by"], result["metric"]["by_form"], result["metric"]["split"]
    scores = [
        EvalResult(of.pipeline, recipe.task.name, recipe.task_title, name, value, dataset_split=split)
        for name, value in by_form[chosen["form"]].items()
        if value is not None
    ]
    if kind != "own":
        tags = (*tags, "transformers", f"base_model:{'finetune' if kind == 'merged' else 'adapter'}:{facts.base}")
    data = ModelCardData(
        base_model=facts.base,
        library_name={"own": "aurora-lora", "merged": "transformers"}.get(kind, "peft"),
        pipeline_tag=of.pipeline,
        tags=sorted({TAG, *tags}),
        model_name=recipe.name,
        eval_results=scores or None,
    )
    source, quantization = MODELS.get(recipe.model), recipe.base.quantization
    # AuroRA's card, which needs this package, loads a packaged model from its package; the others, from the hub
    packaged = source if kind == "aurora" or isinstance(source, PretrainedHere) else None
    merged = form and (form if form_named(form).mergeable else CALIBRATED if CALIBRATED in by_form else STATIC)
    text = _TEMPLATE.render(
        more,
        kind=kind,
        facts=facts,
        of=of,
        recipe=recipe,
        paper=PAPER,
        peft=PEFT,
        needs="PEFT" if quantization is None else "PEFT and bitsandbytes",
        form=form and form_named(form),
        merged=merged and form_named(merged),
        packaged=packaged,
        base=repr(facts.base) if packaged is None else f"resolve_model({packaged.name!r})",
        arguments=_arguments(facts),
        quantization=quantization,
        gguf_file=getattr(source, "gguf_file", None),
        labels=tuple(result.get("labels", facts.task.labels)),
        examples=examples_scored(result),
        scores=score_table(result["method"], by_form, chosen["form"]).markdown(),
        chosen=chosen,
        epochs=result["epochs"][-1]["epoch"],
        params=result["params"],
    )
    title = f"{recipe.name}: {recipe.method.name} on {recipe.model} for {recipe.task_title}"
    versions = {_NAMES.get(name, name): found for name, found in result["versions"].items()}
    save_card(folder / CARD, data, title, text + made_by(recipe.resolved(), versions))


def _arguments(facts: Facts) -> dict[str, str]:
    """What the base model is loaded with, in Python."""
    of, base, found = facts_of(facts.task), facts.recipe.base, dict[str, Any]()
    if of.problem_type is not None:
        labels = len(facts.result.get("labels", facts.task.labels)) or facts.task.num_labels
        found = {"num_labels": labels, "ignore_mismatched_sizes": True}
    if base.revision is not None:
        found["revision"] = base.revision
    if of.inputs == "text":
        found["pad_token_id"] = facts.pad_token_id
    shown = {name: repr(value) for name, value in found.items()}
    if base.quantization is not None:  # other weights would compute something else
        in_4_bits = f"load_in_4bit=True, bnb_4bit_quant_type={base.quantization!r}"
        exact = f", llm_int8_skip_modules={list(facts.exact)!r}" if facts.exact else ""
        settings = ("load_in_8bit=True" if base.quantization == "int8" else in_4_bits) + exact
        shown["quantization_config"] = f"BitsAndBytesConfig({settings})"
    return shown


def save_card(path: Path, data: ModelCardData, title: str, text: str) -> None:
    """Write a card: the front matter, the heading, and the text below it, which begins with an empty line."""
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {title}\n{text}").save(path)


def made_by(recipe: Mapping[str, Any], versions: Mapping[str, str | None]) -> str:
    """The sections on how to train the same again: command, recipe, and the versions that there were."""
    there = "\n".join(f"- {name} {found}" for name, found in versions.items() if found)
    return f"""
## Training

`aurora train recipe.yaml --output RUN`, where recipe.yaml is

{indent(recipe_files.dump(recipe).rstrip(), "    ")}

### Framework versions

{there}
"""
