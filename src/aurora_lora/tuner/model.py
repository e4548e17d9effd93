"""`AuroraModel`: puts AuroRA layers into a model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .adapters import (
    aurora_layers,
    check_adapter_name,
    check_before_merge,
    check_names,
    note_shared_weights,
    warn_of_names_in_paths,
)
from .checkpoint import fit_checkpoint, without_empty_matrices
from .combine import check_combination, check_options, concatenate, copy_saved_modules, copy_tokens, saved_modules
from .config import AS_GIVEN, AuroraConfig
from .fused_encoder import call_layers_of, keep_padding, may_drop_padding, may_fuse_layers_of
from .fused_experts import warn_of_fused_experts
from .layer import AuroraLayer
from .linear import AuroraLinear, is_transposed
from .mixed_batch import name_adapters
from .naming import exactly
from .original_weight import warn_of_rounding
from .peft_names import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    BaseTuner,
    BaseTunerLayer,
    get_pattern_key,
    get_quantization_kwargs,
    onload_layer,
)
from .refused_adapter import taken_back_if_refused
from .registration import PREFIX
from .stacked import alone
from .tags import add_tags, take_tags
from .targets import check_called, layer_class, leave_out_uncalled
from .tensors import ordinary_tensors
from .ties import untie_all

REFERENCE = "ref"
"""TRL's name for the adapter of the policy that a trained one is compared with."""


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
        holds the adapter's form. Its fields are checked once more: they may have been set since it was made.

        TRL makes its reference policy by `add_adapter("ref", model.peft_config["default"])` and then copies what is
        named as LoRA's weights are: with that name and another adapter's own config, the weights are copied here. The
        reference computes the trained form in any mode: what a policy is compared with does not change with the mode,
        nor when the policy's own calibration goes stale.
        """
        with taken_back_if_refused(model, adapter_name, self.peft_config):
            check_adapter_name(adapter_name)
            config: Any = self.peft_config[adapter_name]
            others = ((name, one) for name, one in self.peft_config.items() if name != adapter_name)
            source = next((name for name, one in others if one is config), None)
            if source is not None:
                config = self.peft_config[adapter_name] = copy.deepcopy(config)
                if adapter_name == REFERENCE:
                    config.calibrated, config.eval_form = False, config.train_form
            else:  # calibrating another model's adapter may have changed it
                config.calibrated = vars(config).setdefault(AS_GIVEN, config.calibrated)
            config.check()
            warn_of_fused_experts(config.target_modules, model)
            leave_out_uncalled(config, model)
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        warn_of_names_in_paths(model, self.peft_config)
        keep_padding(model, AuroraLayer)
        add_tags(self.model)
        if source is None:
            return
        for _, layer in aurora_layers(self.model):
            if adapter_name in layer.calibration:  # the matrix that the config tells of is the source's
                layer.calibration[adapter_name].is_awaited = False
            if adapter_name == REFERENCE and source in layer.aurora_A:
                layer.copy_adapter(source, adapter_name)
        if adapter_name == REFERENCE:
            copy_saved_modules(self.model, saved_modules(self.model, [source]), adapter_name)
            copy_tokens(self.model, source, adapter_name)

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
        new_module = self._create_new_module(peft_config, target, adapter_name, current_key, r, alpha)
        if isinstance(parent, nn.TransformerEncoderLayer):
            call_layers_of(parent)
        if adapter_name not in self.active_adapters:
            new_module.requires_grad_(False)  # an additional adapter is not trainable before it is activated
        self._replace_module(parent, target_name, new_module, target)

    def _create_new_module(
        self, config: AuroraConfig, target: nn.Module, adapter_name: str, key: str, r: int, alpha: float
    ) -> AuroraLayer:
        check_called(self.model, key)
        base_layer = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        quantization = get_quantization_kwargs(self)
        layer_cls = layer_class(base_layer, key, quantization)
        transposed = is_transposed(base_layer)
        if layer_cls is AuroraLinear and transposed != config.fan_in_fan_out:
            warnings.warn(
                f"fan_in_fan_out is set to {config.fan_in_fan_out} but the target module is a "
                f"`{type(base_layer).__name__}`. Setting fan_in_fan_out to {transposed}.",
                stacklevel=2,
            )
            config.fan_in_fan_out = transposed
        return layer_cls(target, adapter_name, config, r, alpha, **quantization)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put a layer in a module's place; what comes back at an unload has its weight and state already."""
        if hasattr(new_module, "base_layer"):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            setattr(parent, child_name, new_module)
            if isinstance(parent, nn.TransformerEncoderLayer):
                may_fuse_layers_of(parent)

    # ---------------------------------------------------------------- forward

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT enters it around forward and generate: `adapter_names` names the adapter of each example.

        Raises:
            ValueError: an adapter that does not exist, or training mode.
        """
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is None:
            yield
            return
        with name_adapters(self, self.model, adapter_names, num_beams=kwargs.get("num_beams")):
            yield

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; with the last one, the tags of the base model go."""
        super().delete_adapter(adapter_name)
        if not self.peft_config:
            take_tags(self.model)

    # ---------------------------------------------------------------- merging, all layers or none

    def _check_merge_allowed(self) -> None:
        """A weight that several modules share (tied embeddings) can be merged into: the layer gets its own then."""
        note_shared_weights(self.model)

    def _check_before_merge(self, adapter_names: list[str] | None, safe_merge: bool) -> list[AuroraLayer]:
        """Raise what `merge` would raise in any layer, before the first layer is changed. Gives those to change."""
        check_names(self.model, adapter_names)
        note_shared_weights(self.model)
        return check_before_merge(aurora_layers(self.model), adapter_names, safe_merge)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters into the base weights; `unmerge_adapter` gives these back bit for bit.

        Args:
            adapter_names: which; the active ones if None.
            safe_merge: refuse a result that is not finite, and leave the model as it was.

        Raises:
            FormError, NotCalibratedError, StaleCalibrationError: an adapter has no linear form, or its calibrated
                matrix is missing or outdated; no layer is changed then.
        """
        layers = self._check_before_merge(adapter_names, safe_merge)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
        warn_of_rounding(layer.merge_rounding for layer in layers)

    def _unload_and_optionally_merge(  # type: ignore[override]
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        layers: list[AuroraLayer] = []
        if merge:
            layers = self._check_before_merge(adapter_names, safe_merge)
            for _, layer in aurora_layers(self.model):
                layer.keeps_original = False  # the layer goes away: no second copy of any weight
        try:
            model: nn.Module = super()._unload_and_optionally_merge(  # type: ignore[assignment]
                merge=merge, progressbar=progressbar, safe_merge=safe_merge, adapter_names=adapter_names
            )
            warn_of_rounding(layer.merge_rounding for layer in layers)
            may_drop_padding(model)
            untie_all(model)
            take_tags(model)
            return model
        except BaseException:
            for _, layer in aurora_layers(self.model):
                layer.keeps_original = True
            raise

    def unmerge_adapter(self) -> None:
        """Unmerge all layers; the innermost first, where one method's adapter is put over another's."""
        for module in reversed(list(self.model.modules())):
            if isinstance(module, BaseTunerLayer):
                with onload_layer(module):
                    module.unmerge()

    # ---------------------------------------------------------------- combining

    @ordinary_tensors()
    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "cat",
        **options: Any,
    ) -> None:
        """Add an adapter that computes `sum_i weights[i] * update_i`, from the mergeable forms of the given adapters.

        A sum of nonlinear adapters is no AuroRA adapter, but the sum of their linear forms is a LoRA: the result is a
        **plain LoRA** (`fixed_activation=None, spline=None, skip=True`), exact by concatenation, of the summed rank. It
        does not follow its parts when these are trained further.

        Modules that one of the adapters trains whole (`modules_to_save`) become the new adapter's too, as they are.

        Args:
            adapters: names of adapters of this model.
            weights: one for each; may be negative.
            adapter_name: the new adapter's name.
            combination_type: only `"cat"`: it is exact, and PEFT's other ways are approximations of it.
            options: those of LoRA's other types, which are refused.

        Raises:
            ValueError: as `check_combination` and `check_options`, or two of the adapters train the same module whole.
            FormError, NotCalibratedError, StaleCalibrationError: an adapter has no linear form at present.
        """
        check_combination(self.peft_config, adapters, weights, adapter_name, combination_type)
        check_options(options)
        owners = saved_modules(self.model, adapters)
        parts = {
            path: [
                (weight, *layer.get_factors(name))
                for name, weight in zip(adapters, weights, strict=True)
                if name in layer.aurora_A
            ]
            for path, layer in aurora_layers(self.model)
        }
        parts = {path: found for path, found in parts.items() if found}
        r = max(sum(len(lora_A) for _, lora_A, _ in found) for found in parts.values())
        self.peft_config[adapter_name] = AuroraConfig(
            r=r,
            alpha=r,
            fixed_activation=None,
            spline=None,
            skip=True,
            target_modules=exactly(parts, (path for path, _ in self.model.named_modules())),
            modules_to_save=list(owners) or None,
            task_type=self.peft_config[adapters[0]].task_type,
            base_model_name_or_path=self.peft_config[adapters[0]].base_model_name_or_path,
            revision=self.peft_config[adapters[0]].revision,
            inference_mode=True,
        )
        self.inject_adapter(self.model, adapter_name)
        self._cast_adapter_dtype(adapter_name)  # in float32 also on a bfloat16 model, as its parts are
        for path, layer in aurora_layers(self.model):
            if path in parts:
                concatenate(layer, adapter_name, parts[path])
        copy_saved_modules(self.model, owners, adapter_name)

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
        """See `without_empty_matrices`; under the names that they have alone."""
        state_dict = without_empty_matrices(model, config, adapter_name, state_dict)
        return alone(model, super()._get_adapter_state_dict(model, config, adapter_name, state_dict, *rest, **more))

    @classmethod
    def _remap_adapter_state_dict_for_load(  # type: ignore[override]
        cls, model: nn.Module, config: AuroraConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """See `fit_checkpoint`."""
        state_dict = fit_checkpoint(model, config, adapter_name, state_dict)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
