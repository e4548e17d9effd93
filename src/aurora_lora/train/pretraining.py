"""`aurora pretrain`: a small model that no package has, trained once from random weights, into the cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig, ViTForImageClassification

from .. import files
from ..data.models import MODELS, PretrainedHere, is_missing
from ..errors import UserError, unknown
from ..extras import extra
from ..files import held
from .finished_run import load_run
from .models import RESULT_OF_PRETRAINING
from .publish import RECIPE, RESULT
from .recipe import validate
from .run import MakeCallbacks, load_trained_model, train


def pretrain(name: str, *, make_callbacks: MakeCallbacks = tuple) -> Path:
    """Train a model of `MODELS` that is pretrained here, or go on with it; one that is there is left as it is.

    Several processes may ask at once: one trains, the others wait.

    Args:
        name: of the model.
        make_callbacks: makes further Trainer callbacks, such as a progress bar.

    Returns:
        Its folder, which plain Transformers can load. It holds the recipe and the result of the training as well.

    Raises:
        UserError: there is no such model, or its data cannot be had.
    """
    made = MODELS.get(name)
    if not isinstance(made, PretrainedHere):
        here = [other.name for other in MODELS.values() if isinstance(other, PretrainedHere)]
        raise UserError(f"'{name}' is an {unknown('model to pretrain', here, name)}")
    if made.is_there:
        return made.folder
    work = made.folder.with_name(f"{made.folder.name}.work")
    files.check_writable(work)
    with held(work / ".pretrain.lock"):
        if not made.is_there:  # another process may have trained it while this one waited
            _make(made, work, make_callbacks)
    shutil.rmtree(work, ignore_errors=True)
    return made.folder


def ensure(models: Sequence[str], callbacks_for: Callable[[str], MakeCallbacks] = lambda name: tuple) -> None:
    """`pretrain` those of the models that are pretrained here and have not been yet."""
    for name in dict.fromkeys(models):
        if is_missing(name):
            pretrain(name, make_callbacks=callbacks_for(name))


def _make(made: PretrainedHere, work: Path, make_callbacks: MakeCallbacks) -> None:
    start, run = work / "start", work / "run"
    if not (start / "config.json").is_file():
        _write_start(made, start)
    values: dict[str, Any] = {"name": made.name, "model": str(start), "method": "full"}
    values |= {"task": dict(made.task), "training": dict(made.training)}
    train(validate(values, f"the pretraining of {made.name}"), run, make_callbacks=make_callbacks)
    model, processor = load_trained_model(load_run(run))
    body: Any = model.base_model  # without its head: the classes of Fashion-MNIST are nobody's start
    with files.new_folder(made.folder) as partial:
        body.save_pretrained(partial)
        processor.save_pretrained(str(partial))
        shutil.copy(run / RECIPE, partial / f"pretraining-{RECIPE}")
        shutil.copy(run / RESULT, partial / RESULT_OF_PRETRAINING)


def _write_start(made: PretrainedHere, folder: Path) -> None:
    """The model with random weights, always the same ones, and its image processor."""
    with extra("vision"):
        from transformers import ViTImageProcessor
    size = {"height": made.vit["image_size"], "width": made.vit["image_size"]}
    processor = ViTImageProcessor(size=size, image_mean=list(made.mean), image_std=list(made.std))
    with torch.random.fork_rng(devices=[]), files.new_folder(folder) as partial:
        torch.default_generator.manual_seed(0)
        ViTForImageClassification(ViTConfig(**made.vit)).save_pretrained(partial)
        processor.save_pretrained(partial)
