"""The model cards of a run: the `README.md` that tells what an adapter needs, how to load it and what it scores.

PEFT writes a card with every adapter, an empty form under the right front matter. Here the form is filled in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, metadata_load
from yaml import YAMLError

from ..data import Task
from ..data.models import MODELS, ModelSource, PretrainedHere, hub_name
from ..deploy.export import beyond_lora
from ..forms import CALIBRATED, FORMS, STATIC
from ..methods.aurora import AuroraMethod
from ..methods.base import NEAREST, PeftMethod
from ..methods.injection import InjectionMethod
from ..tuner.tags import TAG
from . import recipe_files
from .kind_facts import facts_of
from .recipe import Recipe
from .results import Result
from .score_tables import examples_scored, score_table

CARD = "README.md"
PEFT = "https://github.com/huggingface/peft"
PAPER = "Breaking Low-Rank Bottleneck of LoRA with Nonlinear Mapping"


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
    def labels(self) -> list[str]:
        """The class names."""
        return list(self.result.get("labels", self.task.labels))

    @property
    def tags(self) -> list[str]:
        """The tags of an adapter's card: PEFT's, and what made it."""
        return [f"base_model:adapter:{self.base}", TAG]


def write_adapter_card(folder: Path, facts: Facts, no_lora: str | None) -> None:
    """Write the card of the folder that a method has saved its adapter in.

    Args:
        folder: that folder, with the card that PEFT wrote, if PEFT did.
        facts: of the run.
        no_lora: for AuroRA, why there is no plain LoRA beside the adapter; None if there is one.
    """
    path = folder / CARD
    method = facts.recipe.method
    changed = isinstance(method, PeftMethod) and not method.peft_loads  # this package alone makes their base weight
    if changed or not path.exists():
        data = ModelCardData(base_model=facts.base, library_name="aurora-lora", tags=[TAG])
        alone = (
            "\nPEFT alone would load it on the base model as it is, and compute something else.\n" if changed else ""
        )
        _write(path, data, facts, _weights(facts) + alone)
        return
    data = ModelCard.load(path).data
    data.base_model = facts.base  # PEFT names the cache folder of a packaged model
    data.tags = sorted({*(tag for tag in data.tags or () if not tag.startswith("base_model:")), *facts.tags})
    _write(path, data, facts, _aurora(facts, no_lora) if isinstance(method, AuroraMethod) else _peft(facts))


def write_lora_card(folder: Path, facts: Facts, form: str) -> None:
    """Write the card of the plain LoRA beside an AuroRA adapter.

    Args:
        folder: of the LoRA.
        facts: of the run.
        form: the form that was exported.
    """
    data = ModelCardData(base_model=facts.base, library_name="peft", tags=sorted({"lora", "transformers", *facts.tags}))
    readers = f"[PEFT]({PEFT})"
    if others := beyond_lora(folder):
        holds = (
            f" It holds more than LoRA's factors, such as {others[0]}: most other engines load the merged model only."
        )
    else:
        readers, holds = f"{readers} and all that reads PEFT's LoRA", ""
    text = f"""
A plain LoRA adapter for {readers}; it needs no package beside {_needs(facts)}.{holds}

It was trained as AuroRA ("{PAPER}") and exported: it computes exactly {FORMS[form].description}.
{_other_base(facts, form)}
## Load it

{_python(_load(facts, packaged=False))}

{_merge(facts, form)}
"""
    _write(folder / CARD, data, facts, text)


def replaceable_card(folder: Path) -> tuple[str, ...]:
    """The name of the card in a folder, if there is one with this package's tag."""
    path = folder / CARD
    try:
        found = metadata_load(path) if path.is_file() else None
    except (OSError, ValueError, YAMLError):
        return ()
    return (CARD,) if TAG in ((found or {}).get("tags") or ()) else ()


# ---------------------------------------------------------------- what differs from method to method


def _aurora(facts: Facts, no_lora: str | None) -> str:
    form, forms = facts.result["metric"]["selected_by"]["form"], facts.result["metric"]["by_form"]
    beside = (
        f"The folder `lora` beside this one holds the same adapter as a plain LoRA: it needs {_needs(facts)} only."
        if no_lora is None
        else f"There is no plain LoRA beside this folder: {no_lora}."
    )
    if not FORMS[form].mergeable:
        other = CALIBRATED if CALIBRATED in forms else STATIC
        deploy = f'aurora_lora.set_form(model, "{other}")  # the dynamic form is no weight update\n'
        what = f"It can be neither merged nor exported; the {other} form can"
    else:
        other, deploy, what = form, "", "A merge and an export produce the same"
    load = "import aurora_lora  # registers AuroRA with PEFT\n" + _load(facts, packaged=True)
    readers = "PEFT" if facts_of(facts.task).problem_type is not None else "PEFT, vLLM and others"
    deploy += f'aurora_lora.export_lora(model, "lora")  # a plain LoRA: {readers}\n'
    if facts.recipe.base.quantization is not None:
        deploy += "model.dequantize()  # the merge rounds to the format of the base otherwise\n"
    deploy += "merged = model.merge_and_unload()  # a plain Transformers model"
    return f"""
An AuroRA adapter ("{PAPER}") for [PEFT]({PEFT}): `h = W0 x + s B sigma(A x)`.

PEFT alone cannot load it (`KeyError: 'AURORA'`). Install

    pip install aurora-lora

and import `aurora_lora` before `PeftModel.from_pretrained`. {beside}

## Load it

{_python(load)}

`model.eval()` computes {FORMS[form].description}. {what}.

## Merge, export

{_python(deploy)}

or, from the folder of the run,

    aurora merge RUN --form {other} --output OUT
    aurora export RUN --form {other} --output OUT
"""


def _peft(facts: Facts) -> str:
    return f"""
An adapter for [PEFT]({PEFT}), of the method {facts.recipe.method.name}; it needs no package beside {_needs(facts)}.
{_other_base(facts)}
## Load it

{_python(_load(facts, packaged=False))}

{_merge(facts)}
"""


def _merge(facts: Facts, form: str | None = None) -> str:
    """How a plain LoRA, of this form of AuroRA, or an adapter of PEFT becomes a plain model."""
    if (quantization := facts.recipe.base.quantization) is None:
        return "`model.merge_and_unload()` gives a plain Transformers model."
    method = facts.recipe.method
    can = form is not None or (isinstance(method, PeftMethod) and NEAREST in method.quantised_merges)
    of = "" if form is None else f" --form {form}"
    return (
        f"`aurora merge RUN{of} --output OUT`, from the folder of the run, gives a plain Transformers model: it merges "
        "into the dequantised base, and loses nothing. "
        f"`model.merge_and_unload()` {'rounds to' if can else 'cannot merge into'} {quantization}. "
        "Do not merge into the weights as they were before: the adapter was trained on the quantised ones."
    )


def _needs(facts: Facts) -> str:
    """What stock PEFT takes to load an adapter on its base."""
    return "PEFT" if facts.recipe.base.quantization is None else "PEFT and bitsandbytes"


def _other_base(facts: Facts, form: str | None = None) -> str:
    """What to know of a base model whose weights on the hub are not those of the training; see `_merge`."""
    source = MODELS.get(facts.recipe.model)
    if not isinstance(source, ModelSource) or source.gguf_file is None:
        return ""
    of = "" if form is None else f" --form {form}"
    return f"""
It was trained on the weights of `{source.gguf_file}`, which rounds those of {source.hub_id}: on these, which are loaded
below, it computes something a little different. `aurora merge RUN{of} --output OUT` merges it into its own base.
"""


def _weights(facts: Facts) -> str:
    method = facts.recipe.method
    refusal = method.refusal if isinstance(method, InjectionMethod) else None
    merge = "\n    aurora merge RUN --output OUT    # a plain Transformers model, from the folder of the run"
    cannot = f"\nThey cannot be merged: {refusal}.\n" if refusal else ""
    return f"""
The weights that {method.name} has trained, without the model's others, for the command of `aurora-lora`:

    pip install 'aurora-lora[train]'{"" if refusal else merge}
    aurora predict RUN {facts_of(facts.task).inputs.upper()}...
{cannot}"""


def _load(facts: Facts, *, packaged: bool) -> str:
    """Python that loads the adapter on its base model.

    Args:
        facts: of the run.
        packaged: take a packaged base model from its package, which needs aurora-lora; else from the hub.
    """
    imports, base, also = [], repr(facts.base), ""
    kind = facts_of(facts.task)
    auto = kind.auto
    outputs = len(facts.labels) or facts.task.num_labels
    arguments: dict[str, object] = {"num_labels": outputs} if kind.problem_type is not None else {}
    if facts.recipe.base.revision is not None:
        arguments["revision"] = facts.recipe.base.revision
    if kind.problem_type is not None:
        arguments["ignore_mismatched_sizes"] = True
    if kind.inputs == "text":
        arguments["pad_token_id"] = facts.pad_token_id
    source = MODELS.get(facts.recipe.model)
    if source is not None and (packaged or isinstance(source, PretrainedHere)):
        imports = ["from aurora_lora.data.models import resolve_model  # pip install 'aurora-lora[train]'"]
        base = f"resolve_model({source.name!r})"
    given = "".join(f", {name}={value!r}" for name, value in arguments.items())
    if (quantization := facts.recipe.base.quantization) is not None:  # other weights would compute something else
        also = ", BitsAndBytesConfig"
        in_4_bits = f"load_in_4bit=True, bnb_4bit_quant_type={quantization!r}"
        format_ = "load_in_8bit=True" if quantization == "int8" else in_4_bits
        exact = f", llm_int8_skip_modules={list(facts.exact)!r}" if facts.exact else ""
        given += f", quantization_config=BitsAndBytesConfig({format_}{exact})"
    lines = [
        *imports,
        "from peft import PeftModel",
        f"from transformers import {auto}{also}",
        "",
        f"base = {base}",
        f"model = {auto}.from_pretrained(base{given})",
        'model = PeftModel.from_pretrained(model, ".")  # this folder',
    ]
    if facts.labels:
        lines.append(f"labels = {tuple(facts.labels)!r}")
    return "\n".join(lines)


# ---------------------------------------------------------------- what all cards have


def _write(path: Path, data: ModelCardData, facts: Facts, text: str) -> None:
    data.pipeline_tag = facts_of(facts.task).pipeline
    recipe = facts.recipe
    title = f"{recipe.name}: {recipe.method.name} on {recipe.model} for {recipe.task_title}"
    save_card(path, data, title, text + _record(facts))


def save_card(path: Path, data: ModelCardData, title: str, text: str) -> None:
    """Write a card: the front matter, the heading, and the text below it, which begins with an empty line."""
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {title}\n{text}").save(path)


def _record(facts: Facts) -> str:
    """What came out, and of what."""
    recipe, result = facts.recipe, facts.result
    chosen, params = result["metric"]["selected_by"], result["params"]
    table = score_table(result["method"], result["metric"]["by_form"], chosen["form"])
    versions = {_NAMES.get(name, name): found for name, found in result["versions"].items()}
    return f"""
## Scores

{recipe.task_title}, {examples_scored(result)} ({facts.task.source}):

{table.markdown()}

Epoch {chosen["epoch"]:g} of {recipe.training.epochs}, the best by {chosen["name"]} on the validation split.
Trained parameters: {params["adapter"]:,} in the adapter and {params["head"]:,} in the head, of {params["total"]:,}.
{made_by(recipe.resolved(), versions)}"""


def made_by(recipe: Mapping[str, Any], versions: Mapping[str, str | None]) -> str:
    """The sections on how to train the same again: command, recipe, and the versions that there were."""
    there = "\n".join(f"- {name} {found}" for name, found in versions.items() if found)
    return f"""
## Training

`aurora train recipe.yaml --output RUN`, where recipe.yaml is

{recipe_block(recipe)}

### Framework versions

{there}
"""


def recipe_block(recipe: Mapping[str, Any]) -> str:
    """A recipe as a card shows it."""
    return indent(recipe_files.dump(recipe).rstrip(), "    ")


_NAMES = {"peft": "PEFT", "transformers": "Transformers", "torch": "PyTorch", "python": "Python"}


def _python(code: str) -> str:
    return f"```python\n{code}\n```"
