"""Export: an AuroRA adapter as plain LoRA factors, exact and without an SVD (Eq. 9 is a product of two factors)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from torch import Tensor, nn

from ..finite import check_finite
from ..folders import new_folder, settle
from ..forms import FormName
from ..tuner import AuroraConfig, AuroraLayer, active_adapters, aurora_layers
from ..tuner.adapters import adapter_names, check_not_merged, no_adapter, plain_layers
from ..tuner.calibration import BUFFERS
from ..tuner.fused_experts import fused_experts
from ..tuner.naming import exactly
from ..tuner.offloaded import present
from ..tuner.peft_names import CONFIG_NAME, PEFT_PREFIX, SAFETENSORS_WEIGHTS_NAME
from ..tuner.stacked import plain_path, without_wrappers
from ..values import one_of, require
from .all_layers import zero_factors
from .export_diffusers import component_of, write_component
from .export_file import check_replaceable, in_dtype, write_export
from .wrappers import plain_model, unwrapped

PEFT, DIFFUSERS = FORMATS = ("peft", "diffusers")
OF_ONE_FORMAT = {"prefix": DIFFUSERS, "processor": PEFT, "base_name": PEFT, "all_layers": PEFT}
"""The arguments of `export_lora` that go with one format only."""
RANKS_OF_ENGINES = 16
"""TGI pads other ranks to a multiple of it, and scales all kinds of layers but the first by alpha over that one."""


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
    all_layers: bool = False,
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
        all_layers: for PEFT, write zeros for each linear layer that the adapter leaves out of a kind that it adapts
            (`q_proj` of some layers), and of q, k and v, and of gate and up, for each one beside it, and pad the rank
            to a multiple of 16: for engines that need them all.

    Returns:
        The folder.

    Raises:
        FormError: the form is dynamic, which is no linear map.
        AlreadyMergedError: the adapter is merged.
        NotCalibratedError, StaleCalibrationError: the form is calibrated and there is no matrix, or an outdated one.
        NotFiniteError: NaN or infinity among the weights, or one that is too large for the dtype.
        ValueError: an argument that is not allowed, or that goes with the other format; a folder that holds anything
            but an earlier export; several active adapters and none named; an adapter around a part of the model, as a
            `PeftModel` in it; a convolution with groups, dilation or a padding mode, which PEFT's LoRA does not take
            over; or, for diffusers, `modules_to_save` or trained biases, which its LoRA files cannot hold, or a class
            that does not tell which component of a pipeline the model is, and no `prefix`.
    """
    require(str(folder) != "", "folder", folder, "the path of a folder; '.' is the current one")
    model = unwrapped(model)
    one_of("format", format, FORMATS)
    _check_goes_with(format, prefix=prefix, processor=processor, base_name=base_name, all_layers=all_layers or None)
    name = _one_adapter(model, adapter_name)
    factors = of_one_rank(lora_factors(model, form, adapter_name=name), RANKS_OF_ENGINES if all_layers else 1)
    if all_layers:
        factors |= zero_factors(factors, _modules(model))
    weights = in_dtype(_state_dict(model, factors), dtype)
    others = _other_weights(model, name)
    check_finite(others.items(), "the adapter cannot be exported")
    path = Path(folder)
    settle(path)
    check_replaceable(path)
    if format == DIFFUSERS:
        _write_diffusers(path, model, weights, others, prefix)
    else:
        _write_peft(path, model, _lora_config(model, name, factors, base_name), {**weights, **others}, processor)
    return path


def _check_goes_with(format: str, **given: Any) -> None:
    """Raise a ValueError for an argument of the other format, which would be left unused."""
    for name, value in given.items():
        if value is not None and OF_ONE_FORMAT[name] != format:
            raise ValueError(f"{name} goes with format={OF_ONE_FORMAT[name]!r}, not with format={format!r}.")


def _write_diffusers(
    path: Path, model: nn.Module, weights: dict[str, Tensor], others: dict[str, Tensor], prefix: str | None
) -> None:
    if others:
        raise ValueError(
            f"A diffusers LoRA file holds adapter weights only, and this adapter trains {sorted(others)[0]} too "
            "(modules_to_save or bias): export it with format='peft'."
        )
    component = component_of(model) if prefix is None else prefix
    write_component(path, component, {key.removeprefix(PEFT_PREFIX): value for key, value in weights.items()})


def _write_peft(path: Path, model: nn.Module, config: LoraConfig, weights: dict[str, Tensor], processor: Any) -> None:
    with new_folder(path, last=[CONFIG_NAME]) as partial:
        if processor is not None:
            processor.save_pretrained(str(partial))
        beside = sorted(each.name for each in partial.iterdir())
        write_export(partial / SAFETENSORS_WEIGHTS_NAME, weights, beside)
        config.save_pretrained(str(partial), auto_mapping_dict=_auto_mapping(config, model))


def _lora_config(
    model: nn.Module, name: str, factors: dict[str, tuple[Tensor, Tensor]], base_name: str | None
) -> LoraConfig:
    """The config of a LoRA with the factors of an adapter, which are of one rank and have its scale in them."""
    config = _adapter_config(model, name)
    rank = len(next(iter(factors.values()))[0])
    lora_config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=_target_modules(model, list(factors)),
        task_type=config.task_type,
        base_model_name_or_path=base_name or config.base_model_name_or_path,
        revision=config.revision,
        # PEFT adds the heads of a classifier each time that it makes or loads one
        modules_to_save=config.modules_to_save and list(dict.fromkeys(config.modules_to_save)),
        trainable_token_indices=config.trainable_token_indices,
        bias=config.bias.replace("aurora_only", "lora_only"),  # type: ignore[arg-type]
        fan_in_fan_out=any(layer.fan_in_fan_out for _, layer in aurora_layers(model)),
        inference_mode=True,
    )
    _check_read_as_written(lora_config, model)
    if isinstance(lora_config.target_modules, set):  # so that two processes write the same bytes
        lora_config.target_modules = sorted(lora_config.target_modules)
    return lora_config


def _auto_mapping(config: LoraConfig, model: nn.Module) -> dict[str, str] | None:
    """The class of the base model, by which `AutoPeftModel` loads an adapter that is of no kind of task."""
    if config.task_type is not None:
        return None
    base = type(plain_model(model))
    return {"base_model_class": base.__name__, "parent_library": base.__module__}


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


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by their paths in the plain model; an AuroRA layer stands for the one that it adapts."""
    modules = {plain_path(model, path): module for path, module in model.named_modules()}
    return modules | dict(plain_layers(model))


def _one_adapter(model: nn.Module, adapter_name: str | None) -> str:
    names = active_adapters(model)
    if adapter_name is None:
        if len(names) != 1:
            raise ValueError(
                f"{len(names)} adapters are active ({', '.join(names)}): name one with adapter_name, or combine them "
                "with add_weighted_adapter."
            )
        return names[0]
    if adapter_name not in (known := adapter_names(model)):
        raise no_adapter(adapter_name, known)
    return adapter_name


def _adapter_config(model: nn.Module, name: str) -> AuroraConfig:
    return next(layer.aurora_config[name] for _, layer in aurora_layers(model) if name in layer.aurora_config)


def of_one_rank(factors: dict[str, tuple[Tensor, Tensor]], multiple: int = 1) -> dict[str, tuple[Tensor, Tensor]]:
    """LoRA's factors A (r, ...) and B (d_out, r, ...) of each layer, padded with zeros to the highest r among them, or
    the next multiple of a number."""
    rank = max((len(A) for A, _ in factors.values()), default=0)
    rank += -rank % multiple

    def padded(factor: Tensor, dim: int) -> Tensor:
        return nn.functional.pad(factor, (*(0, 0) * (factor.dim() - 1 - dim), 0, rank - factor.shape[dim]))

    return {path: (padded(A, 0), padded(B, 1)) for path, (A, B) in factors.items()}


def _state_dict(model: nn.Module, factors: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """PEFT's LoRA keys."""
    layers = dict(plain_layers(model))
    weights: dict[str, Tensor] = {}
    for path, (lora_A, lora_B) in factors.items():
        layer = layers.get(path)  # None of a linear layer that all_layers adds
        try:
            held = layer.as_lora(lora_A, lora_B) if layer else {"lora_A.weight": lora_A, "lora_B.weight": lora_B}
        except ValueError as error:
            raise ValueError(f"{path} cannot be exported: {error}") from error
        weights |= {f"{PEFT_PREFIX}{path}.{key}": value.contiguous().cpu() for key, value in held.items()}
    return weights


def _other_weights(model: nn.Module, name: str) -> dict[str, Tensor]:
    """What the adapter trains beside its own layers: modules_to_save, biases, resized embeddings.

    Of an adapter that was injected into a model, without a `PeftModel` around it, PEFT gives them without its prefix.
    """
    state = _trained_state(model, name)
    own = {*AuroraLayer.adapter_layer_names, *BUFFERS}
    return {
        PEFT_PREFIX + without_wrappers(key).removeprefix(PEFT_PREFIX): v.detach().to("cpu", copy=True).contiguous()
        for key, v in state.items()
        # with bias="all" PEFT lists the biases of modules_to_save a second time, under this name
        if key.rsplit(".", 1)[-1] not in own and ".modules_to_save." not in key
    }


def _trained_state(model: nn.Module, name: str) -> dict[str, Tensor]:
    """PEFT's state of the adapter, of a part of the model if it was injected there, with what Accelerate has offloaded.

    Raises:
        ValueError: a part of the model is a `PeftModel`, whose export has the paths of that part.
    """
    if not hasattr(model, "peft_config"):
        return {
            f"{path}.{key}": value
            for path, part in _adapted_parts(model).items()
            for key, value in _trained_state(part, name).items()
        }
    if not any(parameter.is_meta for parameter in model.parameters()):
        state: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=name)
        return state
    every = model.state_dict()
    paths = {id(value): path for path, value in every.items()}
    state = get_peft_model_state_dict(model, state_dict=every, adapter_name=name)
    for key, value in state.items():
        if value.is_meta and id(value) in paths:
            owner, _, leaf = paths[id(value)].rpartition(".")
            state[key] = present(model.get_submodule(owner), leaf, value)
    return state


def _adapted_parts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that PEFT has injected adapters into, by path, without those inside of others."""
    parts: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if hasattr(module, "peft_config") and not any(path.startswith(f"{outer}.") for outer in parts):
            if isinstance(module, PeftModel):
                raise ValueError(f"The adapter is that of {path!r}, a PeftModel within the model: export that one.")
            parts[path] = module
    return parts


def _target_modules(model: nn.Module, adapted: list[str]) -> list[str] | str:
    """What names the adapted modules and no other: plain names if they suffice, else paths."""
    ends = {path.rsplit(".", 1)[-1] for path in adapted}
    every = [plain_path(model, path) for path, _ in model.named_modules()]
    named = {path for path in every if path.rsplit(".", 1)[-1] in ends}
    return sorted(ends) if named == set(adapted) else exactly(adapted, every)


def _check_read_as_written(config: LoraConfig, model: nn.Module) -> None:
    """Raise a ValueError where PEFT would load the LoRA into other places than those that it was made of."""
    try:
        experts = fused_experts(config.target_modules, plain_model(model))
    except ValueError as error:
        raise ValueError(f"PEFT would not load this export: {error} Merge instead.") from error
    if experts:
        raise ValueError(
            f"PEFT would load this export into the fused weights of the experts ({', '.join(experts)}), which have the "
            "names of the adapted modules: merge instead, or leave these modules out of target_modules."
        )
