"""The model cards of a run: the `README.md` that tells what an adapter needs, how to load it and what it scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load
from yaml import YAMLError

from ..data import Task
from ..data.models import MODELS, PretrainedHere, hub_name
from ..deploy.export import beyond_lora
from ..forms import CALIBRATED, FORMS, STATIC
from ..methods.aurora import AuroraMethod
from ..methods.base import NEAREST, PeftMethod
from ..methods.injection import InjectionMethod
from ..tuner.registration import TAG
from . import recipe_files
from .finished_run import Result, examples_scored, score_table
from .kind_facts import facts_of
from .recipe import Recipe

CARD = "README.md"
PEFT = "https://github.com/huggingface/peft"
PAPER = "Breaking Low-Rank Bottleneck of LoRA with Nonlinear Mapping"
_NAMES = {"peft": "PEFT", "transformers": "Transformers", "torch": "PyTorch", "python": "Python"}


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

    @property
    def needs(self) -> str:
        """What stock PEFT takes to load an adapter on the base."""
        return "PEFT" if self.recipe.base.quantization is None else "PEFT and bitsandbytes"


def write_adapter_card(folder: Path, facts: Facts, no_lora: str | None) -> None:
    """Write the card of the folder that a method has saved its adapter in.

    Args:
        folder: that folder.
        facts: of the run.
        no_lora: for AuroRA, why there is no plain LoRA beside the adapter; None if there is one.
    """
    method = facts.recipe.method
    if isinstance(method, AuroraMethod):
        return _write_aurora(folder, facts, no_lora)
    if isinstance(method, PeftMethod) and method.peft_loads:
        what = f"An adapter for [PEFT]({PEFT}), of the method {method.name}; it needs no package beside {facts.needs}."
        tags = (method.name, "transformers")
        return _write(folder, facts, what, tags, load=_load(facts, packaged=False), after=_merge(facts))
    what = f"The weights that {method.name} has trained, without the model's others, for the command of `aurora-lora`:"
    what += f"\n\n    pip install 'aurora-lora[train]'\n    aurora predict RUN {facts_of(facts.task).inputs.upper()}..."
    if isinstance(method, InjectionMethod) and method.refusal is not None:
        what += f"\n\nThey cannot be merged: {method.refusal}."
    else:
        what += "\n    aurora merge RUN --output OUT    # a plain Transformers model"
    if isinstance(method, PeftMethod):  # this package alone makes their base weight
        what += "\n\nPEFT alone would load it on the base model as it is, and compute something else."
    return _write(folder, facts, what)


def write_lora_card(folder: Path, facts: Facts, form: str) -> None:
    """Write the card of the plain LoRA of an AuroRA adapter, exported in a form."""
    readers, holds = f"[PEFT]({PEFT}) and all that reads PEFT's LoRA", ""
    if others := beyond_lora(folder):
        readers = f"[PEFT]({PEFT})"
        holds = (
            f" It holds more than LoRA's factors, such as {others[0]}: most other engines load the merged model only."
        )
    what = (
        f"A plain LoRA adapter for {readers}; it needs no package beside {facts.needs}.{holds}\n\n"
        f'It was trained as AuroRA ("{PAPER}") and exported: it computes exactly {FORMS[form].description}.'
    )
    load, after = _load(facts, packaged=False), _merge(facts, form)
    _write(folder, facts, what, ("lora", "transformers"), load=load, after=after)


def replaceable_card(folder: Path) -> tuple[str, ...]:
    """The name of the card in a folder, if there is one with this package's tag."""
    try:
        found = metadata_load(folder / CARD) if (folder / CARD).is_file() else None
    except (OSError, ValueError, YAMLError):
        return ()
    return (CARD,) if TAG in ((found or {}).get("tags") or ()) else ()


def _write_aurora(folder: Path, facts: Facts, no_lora: str | None) -> None:
    form = other = facts.result["metric"]["selected_by"]["form"]
    beside = f"There is no plain LoRA beside this folder: {no_lora}."
    if no_lora is None:
        beside = (
            f"The folder `lora` beside this one holds the same adapter as a plain LoRA: it needs {facts.needs} only."
        )
    deploy, what = [], "A merge and an export produce the same"
    if not FORMS[form].mergeable:
        other = CALIBRATED if CALIBRATED in facts.result["metric"]["by_form"] else STATIC
        deploy = [f'aurora_lora.set_form(model, "{other}")  # the dynamic form is no weight update']
        what = f"It can be neither merged nor exported; the {other} form can"
    readers = "PEFT" if facts_of(facts.task).problem_type is not None else "PEFT, vLLM and others"
    deploy.append(f'aurora_lora.export_lora(model, "lora")  # a plain LoRA: {readers}')
    if facts.recipe.base.quantization is not None:
        deploy.append("model.dequantize()  # the merge rounds to the format of the base otherwise")
    deploy.append("merged = model.merge_and_unload()  # a plain Transformers model")
    commands = [f"    aurora {name} RUN --form {other} --output OUT" for name in ("merge", "export")]
    _write(
        folder,
        facts,
        f'An AuroRA adapter ("{PAPER}") for [PEFT]({PEFT}): `h = W0 x + s B sigma(A x)`.\n\n'
        "PEFT alone cannot load it (`KeyError: 'AURORA'`). Install\n\n    pip install aurora-lora\n\n"
        f"and import `aurora_lora` before `PeftModel.from_pretrained`. {beside}",
        ("aurora", "transformers"),
        load="import aurora_lora  # registers AuroRA with PEFT\n" + _load(facts, packaged=True),
        after=f"`model.eval()` computes {FORMS[form].description}. {what}.\n\n## Merge, export\n\n"
        + "\n".join(["```python", *deploy, "```", "", "or, from the folder of the run,", "", *commands]),
    )


def _merge(facts: Facts, form: str | None = None) -> str:
    """How a plain LoRA, of this form of AuroRA, or an adapter of PEFT becomes a plain model."""
    command = f"`aurora merge RUN {'' if form is None else f'--form {form} '}--output OUT`, from the folder of the run,"
    text, source, method = "`model.merge_and_unload()` gives a plain Transformers model.", None, facts.recipe.method
    if (quantization := facts.recipe.base.quantization) is not None:
        can = form is not None or (isinstance(method, PeftMethod) and NEAREST in method.quantised_merges)
        text = (
            f"{command} merges into the dequantised base, and loses nothing; `model.merge_and_unload()` "
            f"{'rounds to' if can else 'cannot merge into'} {quantization}. Do not merge into the weights as they were "
            "before: the adapter was trained on the quantised ones."
        )
    source = MODELS.get(facts.recipe.model)
    if (file := getattr(source, "gguf_file", None)) is not None:
        text += (
            f"\n\nIt was trained on the weights of `{file}`, which rounds those of {facts.base}: on these, which are "
            f"loaded above, it computes something a little different. {command} merges it into its own base."
        )
    return text


def _load(facts: Facts, *, packaged: bool) -> str:
    """Python that loads the adapter on its base model; where `packaged`, a packaged one from its package, which needs
    aurora-lora, and else from the hub."""
    kind, base, lines, also = facts_of(facts.task), repr(facts.base), [], ""
    labels = tuple(facts.result.get("labels", facts.task.labels))
    arguments: dict[str, object] = {}
    if kind.problem_type is not None:
        arguments = {"num_labels": len(labels) or facts.task.num_labels, "ignore_mismatched_sizes": True}
    if facts.recipe.base.revision is not None:
        arguments["revision"] = facts.recipe.base.revision
    if kind.inputs == "text":
        arguments["pad_token_id"] = facts.pad_token_id
    source = MODELS.get(facts.recipe.model)
    if source is not None and (packaged or isinstance(source, PretrainedHere)):
        lines = ["from aurora_lora.data.models import resolve_model  # pip install 'aurora-lora[train]'"]
        base = f"resolve_model({source.name!r})"
    given = "".join(f", {name}={value!r}" for name, value in arguments.items())
    if (quantization := facts.recipe.base.quantization) is not None:  # other weights would compute something else
        also = ", BitsAndBytesConfig"
        in_4_bits = f"load_in_4bit=True, bnb_4bit_quant_type={quantization!r}"
        exact = f", llm_int8_skip_modules={list(facts.exact)!r}" if facts.exact else ""
        settings = ("load_in_8bit=True" if quantization == "int8" else in_4_bits) + exact
        given += f", quantization_config=BitsAndBytesConfig({settings})"
    lines += ["from peft import PeftModel", f"from transformers import {kind.auto}{also}", "", f"base = {base}"]
    lines += [f"model = {kind.auto}.from_pretrained(base{given})"]
    lines += ['model = PeftModel.from_pretrained(model, ".")  # this folder']
    return "\n".join([*lines, f"labels = {labels!r}"] if labels else lines)


def _write(
    folder: Path, facts: Facts, what: str, tags: Sequence[str] = (), *, load: str | None = None, after: str = ""
) -> None:
    """Write a card: of what PEFT loads with the code that loads it, and what one can do then."""
    recipe, result, pipeline = facts.recipe, facts.result, facts_of(facts.task).pipeline
    chosen, by_form, params = result["metric"]["selected_by"], result["metric"]["by_form"], result["params"]
    scores = [
        EvalResult(pipeline, recipe.task.name, recipe.task_title, name, value, dataset_split=result["metric"]["split"])
        for name, value in by_form[chosen["form"]].items()
        if value is not None
    ]
    data = ModelCardData(
        base_model=facts.base,
        library_name="aurora-lora" if load is None else "peft",
        pipeline_tag=pipeline,
        tags=sorted({TAG, *tags, *([] if load is None else [f"base_model:adapter:{facts.base}"])}),
        model_name=recipe.name,
        eval_results=scores or None,
    )
    loaded = "" if load is None else f"\n## Load it\n\n```python\n{load}\n```\n\n{after}\n"
    text = f"""
{what}
{loaded}
## Scores

{recipe.task_title}, {examples_scored(result)} ({facts.task.source}):

{score_table(result["method"], by_form, chosen["form"]).markdown()}

Epoch {chosen["epoch"]:g} of {recipe.training.epochs}, the best by {chosen["name"]} on the validation split.
Trained parameters: {params["adapter"]:,} in the adapter and {params["head"]:,} in the head, of {params["total"]:,}.
{made_by(recipe.resolved(), {_NAMES.get(name, name): found for name, found in result["versions"].items()})}"""
    save_card(
        folder / CARD, data, f"{recipe.name}: {recipe.method.name} on {recipe.model} for {recipe.task_title}", text
    )


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
