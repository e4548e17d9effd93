"""`AuroraModel`: PEFT's tuner, which puts AuroRA layers into a model, merges them, and fits checkpoints."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError, MergeError, abridged
from .adapters import aurora_layers, without_wrappers
from .calibration import MATRIX, fingerprint
from .config import AuroraConfig
from .layer import AuroraLayer, AuroraLinear
from .linear import is_transposed
from .merging import in_memory
from .peft_names import (
    PEFT_PREFIX,
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    BaseTuner,
    BaseTunerLayer,
    get_pattern_key,
    get_quantization_kwargs,
)
from .registration import PREFIX
from .targets import layer_class


class AuroraModel(BaseTuner):
    """The AuroRA tuner that `get_peft_model` makes from an `AuroraConfig`.

    Args:
        model (torch.nn.Module): the model to adapt.
        config (AuroraConfig): the adapter's settings.
        adapter_name (str): the adapter's name, "default" unless told otherwise.
    """

    prefix: str = PREFIX
    tuner_layer_cls = AuroraLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # type: ignore[assignment]

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put an adapter into a model, as PEFT does. A config that another adapter of the model has is copied, as it
        holds the adapter's form: TRL makes its reference policy by `add_adapter("ref", model.peft_config["default"])`.
        """
        config: Any = self.peft_config[adapter_name]
        if any(one is config for name, one in self.peft_config.items() if name != adapter_name):
            self.peft_config[adapter_name] = config = copy.deepcopy(config)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        # PyTorch's fused encoder, in eval mode, calls no layer, and makes nested tensors that single layers cannot read
        for encoder in model.modules():
            kinds = (nn.TransformerEncoder, nn.TransformerEncoderLayer)
            if isinstance(encoder, kinds) and any(isinstance(module, AuroraLayer) for module in encoder.modules()):
                encoder.use_nested_tensor = False
                encoder.activation_relu_or_gelu = 0

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: AuroraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        rank_key = get_pattern_key(list(peft_config.rank_pattern), current_key)
        alpha_key = get_pattern_key(list(peft_config.alpha_pattern), current_key)
        r = peft_config.rank_pattern.get(rank_key, peft_config.r)
        alpha = peft_config.alpha_pattern.get(alpha_key, peft_config.alpha)
        if isinstance(target, AuroraLayer):
            target.update_layer(adapter_name, r, alpha, peft_config)
            return
        base_layer = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        quantization = get_quantization_kwargs(self)
        layer_cls = layer_class(self.model, base_layer, current_key, quantization)
        if layer_cls is AuroraLinear:
            peft_config.fan_in_fan_out = is_transposed(base_layer)
        new_module = layer_cls(target, adapter_name, peft_config, r, alpha, **quantization)
        if adapter_name not in self.active_adapters:
            new_module.requires_grad_(False)  # an additional adapter is not trainable before it is activated
        self._replace_module(parent, target_name, new_module, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put a layer in a module's place; what comes back at an unload has its weight and state already."""
        if hasattr(new_module, "base_layer"):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            setattr(parent, child_name, new_module)

    # ---------------------------------------------------------------- merging, all layers or none

    def _check_merge_allowed(self) -> None:
        """A weight that several modules share (tied embeddings) can be merged into: the layer gets its own then."""

    def _check_before_merge(self, adapter_names: list[str] | None, safe_merge: bool) -> list[AuroraLayer]:
        """Raise what `merge` would raise in any layer, before the first layer is changed. Gives those to change."""
        layers = [(path, module) for path, module in self.model.named_modules() if isinstance(module, AuroraLayer)]
        return check_before_merge(self.model, layers, adapter_names, safe_merge)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters into the base weights; `unmerge_adapter` gives these back bit for bit.

        Args:
            adapter_names: which; the active ones if None.
            safe_merge: refuse a result that is not finite, and leave the model as it was.

        Raises:
            FormError, NotCalibratedError, StaleCalibrationError: an adapter has no linear form, or its calibrated
                matrix is missing or outdated; no layer is changed then.
            MergeError, NotImplementedError: a base weight cannot be merged into; no layer is changed then.
        """
        layers = self._check_before_merge(adapter_names, safe_merge)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
        warn_of_rounding(layers)

    def _unload_and_optionally_merge(  # type: ignore[override]
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        layers = []
        if merge:
            layers = self._check_before_merge(adapter_names, safe_merge)
            for layer in layers:
                layer.keeps_original = False  # the layer goes away: no second copy of any weight
        try:
            model: nn.Module = super()._unload_and_optionally_merge(  # type: ignore[assignment]
                merge=merge, progressbar=progressbar, safe_merge=safe_merge, adapter_names=adapter_names
            )
        finally:
            for layer in layers:
                layer.keeps_original = True
        warn_of_rounding(layers)
        return model

    # ---------------------------------------------------------------- saving and loading

    @classmethod
    def _get_adapter_state_dict(  # type: ignore[override]
        cls,
        model: nn.Module,
        config: AuroraConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        *rest: Any,
        **more: Any,
    ) -> dict[str, Tensor]:
        """What is saved of an adapter: a calibrated matrix for all of its layers, or for none, as the config then says.

        A config that was read from a calibrated adapter's folder makes room for matrices, which nobody may ever load;
        and the state may be the caller's, of the trained weights alone.
        """
        layers = [layer for _, layer in aurora_layers(model)]
        held = [layer.calibration[adapter_name] for layer in layers if adapter_name in layer.calibration]
        matrices = {key for key in state_dict if f".{MATRIX}.{adapter_name}." in key}
        config.calibrated = bool(held and (matrices or not state_dict)) and all(one.exists for one in held)
        if not config.calibrated:
            state_dict = {key: value for key, value in state_dict.items() if key not in matrices}
        return super()._get_adapter_state_dict(model, config, adapter_name, state_dict, *rest, **more)

    @classmethod
    def _remap_adapter_state_dict_for_load(  # type: ignore[override]
        cls, model: nn.Module, config: AuroraConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """See `fit_checkpoint`."""
        state_dict = fit_checkpoint(model, config, adapter_name, state_dict)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)


def check_before_merge(
    model: nn.Module,
    layers: Iterable[tuple[str, AuroraLayer]],
    adapter_names: list[str] | None = None,
    safe_merge: bool = False,
) -> list[AuroraLayer]:
    """Raise what `merge` would raise in any of these layers; an error about one layer names its path.

    Args:
        model: that they are in: of tied weights, which others have too, a layer gets one of its own in a merge.
        layers: with their paths.
        adapter_names: which adapters; the active ones if None.
        safe_merge: see `AuroraModel.merge_adapter`.

    Returns:
        The layers that it would change.
    """
    layers, found = list(layers), []
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    uses.update(id(layer.original.parameter) for _, layer in layers if layer.original is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # merge itself will warn
        for path, layer in layers:
            layer.weight_is_shared = uses[id(getattr(layer.get_base_layer(), "weight", None))] > 1
            if names := layer.adapters_to_merge(adapter_names):
                try:
                    if safe_merge:
                        with in_memory(layer):
                            layer.merged_weight(names, safe_merge=True)
                    else:
                        layer.check_mergeable(names)
                except (MergeError, NotImplementedError) as error:  # of this layer; others are of the adapter
                    raise type(error)(f"{path}: {error}") from error
                found.append(layer)
    return found


def warn_of_rounding(merged: Iterable[AuroraLayer]) -> None:
    """Say that a merge has rounded, if one of these layers is quantised."""
    if any(layer.quantization_backend is not None for layer in merged):
        warnings.warn(
            "Merging into quantised weights quantises them again, which can cost a large part of the update: "
            "aurora_lora.merge_gap(model, batches) tells how much, and aurora_lora.merge_quantized loses less of it.",
            stacklevel=3,
        )


# ---------------------------------------------------------------- checkpoints


def fit_checkpoint(
    model: nn.Module, config: AuroraConfig, adapter_name: str, state_dict: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The state, with room in the layers for just the calibrated matrices that it has.

    Where the model holds an adapter in a lower precision than the file, the matrix belongs to the rounded weights.

    Raises:
        CheckpointError: the checkpoint lacks weights of the adapter, has some that the model has no place for, or has
            none of the calibrated matrices that the config of an adapter for inference speaks of; PEFT would silently
            drop them.
    """
    layers = {
        without_wrappers(path).removeprefix(PEFT_PREFIX): layer
        for path, layer in aurora_layers(model)
        if adapter_name in layer.aurora_A
    }
    present = {key.removeprefix(PEFT_PREFIX): key for key in state_dict if _is_of_layer(key)}
    calibrations = {
        path: layer.calibration[adapter_name] for path, layer in layers.items() if adapter_name in layer.calibration
    }
    is_calibrated = any(f"{path}.{MATRIX}.weight" in present for path in calibrations)
    weights = {
        path: {
            f"{path}.{name}.weight": getattr(layer, name)[adapter_name].weight
            for name in layer.adapter_layer_names
            if adapter_name in getattr(layer, name)
        }
        for path, layer in layers.items()
    }
    expected = {name for of_layer in weights.values() for name in of_layer}
    if is_calibrated:  # in all of them, or it is damaged
        expected |= {f"{path}.{MATRIX}.{name}" for path in calibrations for name in ("weight", "fingerprint")}
    stored = {name: state_dict[present[name]] for name in expected & present.keys() if name.endswith("weight")}
    for problem, keys in (
        ("lacks", expected - present.keys()),
        ("has unknown", present.keys() - expected),
        ("has integers for", {name for name, tensor in stored.items() if not tensor.is_floating_point()}),
    ):
        if keys:
            raise CheckpointError(
                f"The checkpoint does not fit adapter {adapter_name!r}: it {problem} {abridged(sorted(keys), 3)}. "
                "Was it saved with other settings (target_modules, fixed_activation, spline)?"
            )
    if calibrations and not is_calibrated and config.calibrated and config.inference_mode:
        raise CheckpointError(
            f"The config of adapter {adapter_name!r} says calibrated=True, but the checkpoint has no calibrated matrix "
            f"({MATRIX}): save the calibrated adapter again, or set it to false and call calibrate."
        )
    fitted = dict(state_dict)
    for path, calibration in calibrations.items():
        if not is_calibrated:
            calibration.take_away()
            continue
        calibration.make_room()
        A, _, *rest = weights[path].items()
        given = [state_dict[present[name]] for name, _ in (A, *rest)]
        # on meta, a model takes the file's tensors as they are
        rounded = [
            value if held.is_meta else value.to(held.dtype) for value, (_, held) in zip(given, (A, *rest), strict=True)
        ]
        key = present[f"{path}.{MATRIX}.fingerprint"]
        if state_dict[key].tolist() == fingerprint(given).tolist():
            fitted[key] = fingerprint(rounded)
    config.calibrated = is_calibrated
    return fitted


def _is_of_layer(key: str) -> bool:
    """Whether a key is an AuroRA layer's, and not that of a module that is trained whole."""
    parts = key.split(".")
    return parts[-2:-1] != [] and parts[-2].startswith(PREFIX) and "modules_to_save" not in parts
