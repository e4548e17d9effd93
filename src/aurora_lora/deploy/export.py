"""Export: an AuroRA adapter as plain LoRA factors, exact and without an SVD (Eq. 9 is a product of two factors)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import NotFiniteError
from ..files import new_folder, settle
from ..forms import FormName
from ..tuner import AuroraConfig, AuroraLayer, active_adapters, aurora_layers
from ..tuner.adapters import adapter_names, check_not_merged, no_adapter, plain_layers, plain_path, without_wrappers
from ..tuner.calibration import MATRIX
from ..tuner.peft_names import CONFIG_NAME, PEFT_PREFIX, SAFETENSORS_WEIGHTS_NAME
from ..tuner.targets import exactly
from ..values import check_finite
from .inputs import plain_model, unwrapped

PEFT, DIFFUSERS = FORMATS = ("peft", "diffusers")
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WRITTEN = "aurora_lora.export_lora"
"""The field of the weights' metadata by which an export is known again: its files, and of a diffusers pipeline the
components. Only an export is replaced."""

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""LoRA's A (r, d_in) and B (d_out, r) of each layer, by its path."""


def export_lora(
    model: nn.Module,
    folder: str | Path,
    form: FormName | None = None,
    *,
    adapter_name: str | None = None,
    dtype: torch.dtype | str = torch.float32,
    format: str = "peft",
    prefix: str | None = None,
    processor: Any = None,
    base_name: str | None = None,
) -> Path:
    """Write an adapter as a plain LoRA that needs nothing of this package: for PEFT, vLLM, diffusers and others.

    `lora_A = sigma(A)` or `A_cal` and `lora_B = s B` (Eq. 9): the LoRA computes exactly what the form computes. Its
    scale is 1 and its rank the same everywhere (layers of a lower rank are padded with zeros), for engines that read no
    rank or alpha patterns. `modules_to_save`, trained tokens and biases travel with it; few but PEFT load them.

    Args:
        model: a model with the adapter, not merged.
        folder: where to write `adapter_config.json` and `adapter_model.safetensors`, or, for diffusers,
            `pytorch_lora_weights.safetensors`. An earlier export there is replaced, as PEFT's `save_pretrained` does;
            what it holds of other components of a pipeline stays: delete the folder first where it should not.
        form: `"calibrated"` or `"static"`; the adapter's `eval_form` if None.
        adapter_name: which adapter; the active one if None.
        dtype: of the written factors: float32, bfloat16 or float16.
        format: `"peft"` or `"diffusers"`.
        prefix: for diffusers, the pipeline component that the model is; "unet" or "transformer" by its class if None.
            Keys get it and a dot in front of them; nothing if it is "".
        processor: for PEFT, a tokenizer or image processor to write beside the adapter, with its chat template if it
            has one.
        base_name: for PEFT, what the export calls the base model; as the adapter does if None.

    Returns:
        The folder.

    Raises:
        FormError: the form is dynamic, which is no linear map.
        AlreadyMergedError: the adapter is merged.
        NotCalibratedError, StaleCalibrationError: the form is calibrated and there is no matrix, or an outdated one.
        NotFiniteError: NaN or infinity among the weights, or one that is too large for the dtype.
        ValueError: an argument that is not allowed; a folder that holds anything but an earlier export; several active
            adapters and none named; a convolution with groups, dilation or a padding mode, which PEFT's LoRA does not
            take over; or, for diffusers, `modules_to_save` or trained biases, which its LoRA files cannot hold, or a
            class that does not tell which component of a pipeline the model is, and no `prefix`.
    """
    model = unwrapped(model)
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not allowed: it must be one of {', '.join(FORMATS)}.")
    name = _one_adapter(model, adapter_name)
    factors = of_one_rank(lora_factors(model, form, adapter_name=name))
    weights = in_dtype(_state_dict(model, factors), dtype)
    others = _other_weights(model, name)
    check_finite(others.items(), "the adapter cannot be exported")
    path = Path(folder)
    settle(path)
    check_replaceable(path)
    if format == DIFFUSERS:
        if others:
            raise ValueError(
                f"A diffusers LoRA file holds adapter weights only, and this adapter trains {sorted(others)[0]} too "
                "(modules_to_save or bias): export it with format='peft'."
            )
        component = _component_of(model) if prefix is None else prefix
        write_component(path, component, {key.removeprefix(PEFT_PREFIX): value for key, value in weights.items()})
        return path
    config = _lora_config(model, name, factors, base_name)
    mapping = None
    if config.task_type is None:  # of no kind of task, `AutoPeftModel` loads the adapter by the class of the base
        base = type(plain_model(model))
        mapping = {"base_model_class": base.__name__, "parent_library": base.__module__}
    with new_folder(path) as partial:
        if processor is not None:
            processor.save_pretrained(str(partial))
        files = [CONFIG_NAME, *(each.name for each in partial.iterdir())]
        _write(partial / SAFETENSORS_WEIGHTS_NAME, {**weights, **others}, files)
        config.save_pretrained(str(partial), auto_mapping_dict=mapping)
    return path


def lora_factors(
    model: nn.Module, form: FormName | None = None, *, adapter_name: str | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """The exact LoRA factors of each layer: path in the plain model -> lora_A (r, d_in), lora_B (d_out, r); with scale.

    Of a convolution d_in is the size of one patch, in_channels / groups times the kernel's, and d_out its output
    channels.

    Args:
        model: a PEFT model with an AuroRA adapter.
        form: `"calibrated"` or `"static"`; None is the adapter's own.
        adapter_name: which adapter, if several are active.

    Raises:
        FormError, AlreadyMergedError, NotCalibratedError, StaleCalibrationError, ValueError: as `export_lora`.
    """
    model = unwrapped(model)
    name = _one_adapter(model, adapter_name)
    factors = {}
    for path, layer in plain_layers(model):
        if name in layer.aurora_A:
            check_not_merged(path, layer, "the export")
            factors[path] = layer.get_factors(name, form)
    return factors


def _one_adapter(model: nn.Module, adapter_name: str | None) -> str:
    names = active_adapters(model)
    if adapter_name is None:
        if len(names) != 1:
            raise ValueError(f"{len(names)} adapters are active ({', '.join(names)}): name one with adapter_name.")
        return names[0]
    if adapter_name not in (known := adapter_names(model)):
        raise no_adapter(adapter_name, known)
    return adapter_name


def of_one_rank(factors: Factors) -> dict[str, tuple[Tensor, Tensor]]:
    """LoRA's factors A (r, ...) and B (d_out, r, ...) of each layer, padded with zeros to the highest r among them."""
    rank = max((len(A) for A, _ in factors.values()), default=0)

    def padded(factor: Tensor, dim: int) -> Tensor:
        return nn.functional.pad(factor, (*(0, 0) * (factor.dim() - 1 - dim), 0, rank - factor.shape[dim]))

    return {path: (padded(A, 0), padded(B, 1)) for path, (A, B) in factors.items()}


def _lora_config(model: nn.Module, name: str, factors: Factors, base_name: str | None) -> LoraConfig:
    """The config of a LoRA with the factors of an adapter, which are of one rank and have its scale in them."""
    layers = [layer for _, layer in aurora_layers(model) if name in layer.aurora_config]
    config: AuroraConfig = layers[0].aurora_config[name]
    rank = len(next(iter(factors.values()))[0])
    # plain names of the adapted modules if they mean no other, else paths
    ends = {path.rsplit(".", 1)[-1] for path in factors}
    every = [plain_path(model, path) for path, _ in model.named_modules()]
    named = {path for path in every if path.rsplit(".", 1)[-1] in ends}
    lora_config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(ends) if named == set(factors) else exactly(list(factors), every),
        task_type=config.task_type,
        base_model_name_or_path=base_name or config.base_model_name_or_path,
        revision=config.revision,
        # PEFT adds the heads of a classifier each time that it makes or loads one
        modules_to_save=config.modules_to_save and list(dict.fromkeys(config.modules_to_save)),
        trainable_token_indices=config.trainable_token_indices,
        bias=config.bias.replace("aurora_only", "lora_only"),  # type: ignore[arg-type]
        fan_in_fan_out=any(layer.fan_in_fan_out for layer in layers),
        inference_mode=True,
    )
    if isinstance(lora_config.target_modules, set):  # so that two processes write the same
        lora_config.target_modules = sorted(lora_config.target_modules)
    return lora_config


# -------------------------------------------------------------------- weights


def _state_dict(model: nn.Module, factors: Factors) -> dict[str, Tensor]:
    """PEFT's LoRA keys."""
    layers = dict(plain_layers(model))
    weights: dict[str, Tensor] = {}
    for path, (lora_A, lora_B) in factors.items():
        try:
            held = layers[path].as_lora(lora_A, lora_B)
        except ValueError as error:
            raise ValueError(f"{path} cannot be exported: {error}") from error
        weights |= {f"{PEFT_PREFIX}{path}.{key}": value for key, value in held.items()}
    return weights


def _other_weights(model: nn.Module, name: str) -> dict[str, Tensor]:
    """What the adapter trains beside its own layers: modules_to_save, biases, resized embeddings.

    Of an adapter that was injected into a model or a part of it, PEFT gives them without its prefix.
    """
    config = next(layer.aurora_config[name] for _, layer in aurora_layers(model) if name in layer.aurora_config)
    trains_more = config.modules_to_save or config.trainable_token_indices or config.bias != "none"
    if not trains_more and not hasattr(plain_model(model), "get_input_embeddings"):  # which may have been resized
        return {}
    path, part = next((path, module) for path, module in model.named_modules() if hasattr(module, "peft_config"))
    lead = PEFT_PREFIX + (f"{path}." if path else "")
    return {
        lead + without_wrappers(key).removeprefix(PEFT_PREFIX): v.detach().to("cpu", copy=True).contiguous()
        for key, v in get_peft_model_state_dict(part, adapter_name=name).items()
        # with bias="all" PEFT lists the biases of modules_to_save a second time, under this name
        if not any(f".{own}" in key for own in (*AuroraLayer.adapter_layer_names, MATRIX, "modules_to_save."))
    }


def in_dtype(weights: Mapping[str, Tensor], dtype: torch.dtype | str) -> dict[str, Tensor]:
    """LoRA factors as they are written, in main memory.

    Raises:
        ValueError: the dtype is not allowed.
        NotFiniteError: NaN or infinity among them, or a number that is too large for the dtype.
    """
    kind = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if kind is None or kind not in DTYPES.values():
        raise ValueError(f"dtype={dtype!r} is not allowed: it must be one of {', '.join(DTYPES)}.")
    check_finite(weights.items(), "the adapter cannot be exported")
    return {key: rounded(key, value, kind).contiguous().cpu() for key, value in weights.items()}


def rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of finite numbers in one of `DTYPES`.

    Raises:
        NotFiniteError: a number is too large for the dtype; the error has the tensor's name.
    """
    cast = tensor.to(dtype)
    if not cast.isfinite().all():
        largest, limit = float(tensor.abs().max()), torch.finfo(dtype).max
        called = next(one for one, kind in DTYPES.items() if kind == dtype)
        raise NotFiniteError(
            f"dtype={called!r} cannot hold {name}, whose largest number is {largest:.3g} (the limit is {limit:.3g}): "
            "choose 'float32'."
        )
    return cast


# -------------------------------------------------------------------- files


def _write(path: Path, weights: dict[str, Tensor], files: Sequence[str] = (), components: Sequence[str] = ()) -> None:
    """Write the weights of an export, which name the other files of it and the components of a pipeline."""
    note = json.dumps({"files": sorted({path.name, *files}), "components": components})
    save_file(weights, path, {"format": "pt", _WRITTEN: note})


def _read_note(path: Path) -> dict[str, list[str]]:
    """What `_write` has noted in a file of weights; nothing of other files, and where there is none."""
    try:
        with safe_open(path, "pt") as file:
            note: dict[str, list[str]] = json.loads((file.metadata() or {}).get(_WRITTEN, "{}"))
    except (OSError, SafetensorError):
        return {}
    return note


def check_replaceable(folder: Path, beside: Collection[str] = ()) -> None:
    """Raise a ValueError unless the folder is new, empty, or an earlier export: a LoRA from elsewhere is none.

    Args:
        folder: to be replaced.
        beside: names of other files that may be replaced with an export.
    """
    if not folder.exists():
        return
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [folder.name]
    notes = (_read_note(folder / name) for name in (SAFETENSORS_WEIGHTS_NAME, DIFFUSERS_WEIGHTS))
    written = next((note["files"] for note in notes if note), [])
    if held and (added := [name for name in held if not written or name not in {*written, *beside}]):
        first = next((name for name in added if name.endswith(".safetensors")), added[0])
        raise ValueError(f"{folder} holds {first}, which no LoRA export wrote: move it away, or choose another folder.")


def write_component(folder: Path, component: str, weights: dict[str, Tensor]) -> None:
    """Write the LoRA of one component of a diffusers pipeline; those of others that an earlier export there holds stay.

    Args:
        folder: new, empty, or of an earlier export.
        component: such as "unet"; "" is a model alone, whose file holds nothing else.
        weights: by their names in the component.
    """
    path, lead = folder / DIFFUSERS_WEIGHTS, f"{component}." if component else ""
    others = (
        [name for name in _read_note(path).get("components", []) if name not in ("", component)] if component else []
    )
    kept = {key: value for key, value in load_file(path).items() if key.partition(".")[0] in others} if others else {}
    with new_folder(folder) as partial:
        merged = {**kept, **{lead + key: value for key, value in weights.items()}}
        _write(partial / DIFFUSERS_WEIGHTS, merged, components=sorted([*others, component]))


def _component_of(model: nn.Module) -> str:
    """How a pipeline of diffusers calls the model, by its class; raises a ValueError where that does not tell."""
    plain = plain_model(model)
    name = type(plain).__name__
    if not isinstance(plain, PreTrainedModel):  # Transformers' are text encoders and the like
        for words, component in (("UNet", "unet"), ("Transformer", "transformer")):
            if words in name:
                return component
    raise ValueError(
        f"{name} does not tell which component of a diffusers pipeline it is: name that with prefix=, such as "
        "prefix='text_encoder'."
    )


def beyond_lora(folder: Path) -> list[str]:
    """What an export for PEFT holds beside LoRA's factors and the embeddings under them: few engines load that."""
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, "pt") as file:
        keys: list[str] = list(file.keys())
    factors = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B", ".base_layer.weight")
    return sorted(key.removeprefix(PEFT_PREFIX) for key in keys if not key.endswith(factors))
