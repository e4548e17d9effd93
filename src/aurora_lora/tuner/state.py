"""`AdapterState`: the weights, the calibration and the forms of the adapters of one module."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FormError, NotCalibratedError, StaleCalibrationError
from ..forms import FORMS
from ..ops import fused, identity_weights
from ..ops.anl import ANL
from . import calibration_state
from .calibration_state import whole
from .config import AuroraConfig
from .offloaded import AdapterBuffers, AdapterParameters
from .ordinary import ordinary_tensors
from .peft_names import (
    BaseTunerLayer,
    _get_in_out_features,
    quantization_extra_repr,
    resolve_quantization_backend,
)

_WAYS_OUT = (
    "run aurora_lora.calibrate(model, batches), or choose the paper's lossy merge with "
    "aurora_lora.set_form(model, 'static')"
)


class AdapterState(nn.Module, BaseTunerLayer):
    """The adapters of one module: A (r, d_in), B (d_out, r), H (r, r), W_s (r, K), and A_cal (r, d_in) if calibrated.

    d_in is the length of the vectors that the module's weight acts on: the input width of a linear layer, a patch of a
    convolution, the vocabulary of an embedding. An adapter's `AuroraConfig` is the one place where its forms are kept:
    layers refer to it.
    """

    adapter_layer_names: tuple[str, ...] = ("aurora_A", "aurora_B", "aurora_H", "aurora_spline_weight")
    other_param_names: tuple[str, ...] = (
        "aurora_A_cal",
        "aurora_A_cal_fingerprint",
        "aurora_dropout",
        "aurora_config",
        "calibration_is_fresh",
        "r",
        "alpha",
        "scaling",
    )

    has_forms = True
    """Whether the forms differ; not where the input is one-hot, and sigma(A x) = sigma(A) x (Embedding)."""

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(
            self.get_base_layer(), get_apply_tensor_subclass=kwargs.get("get_apply_tensor_subclass")
        )
        self.r: dict[str, int] = {}
        self.alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.aurora_config: dict[str, AuroraConfig] = {}
        self.calibration_is_fresh: dict[str, bool] = {}
        self.awaits_calibration: set[str] = (
            set()
        )  # adapters whose config spoke of a matrix, which is still to be loaded
        self._without_calibration: dict[str, list[str]] = {}
        self.aurora_dropout = nn.ModuleDict()
        self.aurora_A = AdapterParameters()
        self.aurora_B = AdapterParameters()
        self.aurora_H = AdapterParameters()
        self.aurora_spline_weight = AdapterParameters()
        self.aurora_A_cal = AdapterBuffers(persistent=True)
        self.aurora_A_cal_fingerprint = AdapterBuffers(persistent=True)

        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.in_features: int
        self.out_features: int
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())  # type: ignore[assignment]
        self.d_in = self.weight_columns()
        self.register_load_state_dict_post_hook(_recheck_calibration)
        # from_pretrained hands over models in eval mode: a layer that started in train mode would compute another form
        self.train(base_layer.training)

    def weight_columns(self) -> int:
        """d_in, the length of the vectors that the base weight acts on."""
        return self.in_features

    # ---------------------------------------------------------------- making an adapter

    def update_layer(self, adapter_name: str, r: int, alpha: float, config: AuroraConfig) -> None:
        """Add the adapter `adapter_name` with rank `r` to this layer, initialised as `config` says."""
        anl = config.anl
        self.r[adapter_name] = r
        self.alpha[adapter_name] = alpha
        self.scaling[adapter_name] = config.scaling(r, alpha)
        self.aurora_config[adapter_name] = config
        self.aurora_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout > 0 else nn.Identity()
        self.aurora_dropout[adapter_name].train(self.training)
        self.aurora_A[adapter_name] = nn.Parameter(torch.empty(r, self.d_in))
        self.aurora_B[adapter_name] = nn.Parameter(torch.empty(self.out_features, r))
        if anl.fixed_activation is not None:
            self.aurora_H[adapter_name] = nn.Parameter(torch.empty(r, r))
        if anl.spline is not None:
            self.aurora_spline_weight[adapter_name] = nn.Parameter(torch.empty(r, anl.n_basis))
        self.reset_aurora_parameters(adapter_name, config.init_weights)
        self.calibration_is_fresh[adapter_name] = False
        self.awaits_calibration.discard(adapter_name)
        if config.calibrated and self.has_forms:
            # The buffers must be there before a checkpoint is loaded: PEFT drops keys that the model does not have.
            self.make_calibration_buffers(adapter_name)
            if config.init_weights is False and not self.aurora_A[adapter_name].is_meta:
                matrix = torch.empty_like(self.aurora_A[adapter_name])
                self.set_calibration(adapter_name, nn.init.kaiming_uniform_(matrix, a=math.sqrt(5)))
            self.awaits_calibration.add(adapter_name)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def reset_aurora_parameters(self, adapter_name: str, init_weights: str | bool) -> None:
        """Initialise, see docs/deviations.md: A Kaiming-uniform and B = 0 as in LoRA; H and W_s by `init_weights`."""
        self.reset_A(self.aurora_A[adapter_name])
        if init_weights is False:
            nn.init.kaiming_uniform_(self.aurora_B[adapter_name], a=math.sqrt(5))
        else:
            nn.init.zeros_(self.aurora_B[adapter_name])
        random_anl = init_weights in (False, "paper")
        if adapter_name in self.aurora_H:
            H = self.aurora_H[adapter_name]
            if random_anl:
                nn.init.xavier_normal_(H)
            elif self.aurora_config[adapter_name].skip:
                nn.init.zeros_(H)
            else:
                nn.init.eye_(H)
        if adapter_name in self.aurora_spline_weight:
            spline_weight = self.aurora_spline_weight[adapter_name]
            anl = self.aurora_config[adapter_name].anl
            # W_s = 0 with neither F nor skip would be sigma = 0, where no weight ever gets a gradient
            spline_alone = anl.fixed_activation is None and not anl.skip
            if random_anl or (spline_alone and anl.spline == "summed"):  # sums over channels are never the identity
                nn.init.uniform_(spline_weight, -0.1, 0.1)
            elif spline_alone:
                with torch.no_grad():
                    spline_weight.copy_(identity_weights(anl.grid_size, anl.order, anl.spline_range))
            else:
                nn.init.zeros_(spline_weight)

    @staticmethod
    def reset_A(A: Tensor) -> None:  # noqa: N802 - A is the paper's name
        """Kaiming-uniform, as in LoRA: for x of unit mean square, each z of z = A x has the variance 1/3."""
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))

    # ---------------------------------------------------------------- calibration

    @ordinary_tensors()
    def make_calibration_buffers(self, adapter_name: str) -> None:
        """Room for A_cal and its fingerprint, for a checkpoint to load into."""
        A = self.aurora_A[adapter_name]
        device = "cpu" if A.is_meta else A.device  # PEFT moves buffers also while the parameters are still on meta
        self.aurora_A_cal[adapter_name] = torch.zeros(A.shape, dtype=A.dtype, device=device)
        self.aurora_A_cal_fingerprint[adapter_name] = torch.zeros(3, dtype=torch.int64, device=device)

    def _sigma_weights(self, adapter_name: str) -> list[Tensor]:
        """What the calibrated matrix depends on: A, H and the spline weights (not B)."""
        holders = (self.aurora_A, self.aurora_H, self.aurora_spline_weight)
        return [holder[adapter_name] for holder in holders if adapter_name in holder]

    @ordinary_tensors()
    def set_calibration(self, adapter_name: str, matrix: Tensor) -> None:
        """Store A_cal (r, d_in) as belonging to the adapter's present weights."""
        A = self.aurora_A[adapter_name]
        if adapter_name not in self.aurora_A_cal:
            self.make_calibration_buffers(adapter_name)
        self.aurora_A_cal[adapter_name] = matrix.detach().to(device=A.device, dtype=A.dtype, copy=True)
        mark = calibration_state.fingerprint(self._sigma_weights(adapter_name))
        self.aurora_A_cal_fingerprint[adapter_name] = mark.to(A.device)
        self.calibration_is_fresh[adapter_name] = True
        self.awaits_calibration.discard(adapter_name)

    def take_calibration(self, adapter_name: str) -> tuple[Tensor, Tensor] | None:
        """Take the calibrated matrix and its fingerprint away from the adapter; None if it has none."""
        self.calibration_is_fresh[adapter_name] = False
        if adapter_name not in self.aurora_A_cal:
            return None
        return self.aurora_A_cal.pop(adapter_name), self.aurora_A_cal_fingerprint.pop(adapter_name)

    def give_calibration(self, adapter_name: str, calibration: tuple[Tensor, Tensor] | None) -> None:
        """Give back what `take_calibration` took."""
        self.take_calibration(adapter_name)
        if calibration is not None:
            self.aurora_A_cal[adapter_name], self.aurora_A_cal_fingerprint[adapter_name] = calibration
            self.check_calibration(adapter_name)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """As `nn.Module` does, with room for the calibrated matrices that the state has; see `_recheck_calibration`."""
        self._without_calibration = {}
        for adapter_name in self.aurora_A if self.has_forms else ():
            keys = [f"{prefix}{buffer}.{adapter_name}" for buffer in ("aurora_A_cal", "aurora_A_cal_fingerprint")]
            if (keys[0] in state_dict) != (keys[1] in state_dict):
                errors: list[str] = rest[-1]
                errors.append(f"{keys[0]} and {keys[1]} belong together: the state has only one of them.")
            elif keys[0] in state_dict:
                self.awaits_calibration.discard(adapter_name)
                if adapter_name not in self.aurora_A_cal:
                    self.make_calibration_buffers(adapter_name)
                self.aurora_config[adapter_name].calibrated = True
            elif f"{prefix}aurora_A.{adapter_name}" in state_dict and adapter_name in self.aurora_A_cal:
                self._without_calibration[adapter_name] = keys
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def check_calibration(self, adapter_name: str) -> bool:
        """Whether the calibrated matrix is there and belongs to the adapter's present weights; remembers the answer."""
        self.calibration_is_fresh[adapter_name] = adapter_name in self.aurora_A_cal and calibration_state.matches(
            self.aurora_A_cal_fingerprint[adapter_name], self._sigma_weights(adapter_name)
        )
        return self.calibration_is_fresh[adapter_name]

    def has_calibration(self, adapter_name: str) -> bool:
        """Whether a matrix was ever stored, fresh or stale (all-zero marks are the buffers of an empty adapter)."""
        marks = self.aurora_A_cal_fingerprint
        return adapter_name in marks and bool(marks[adapter_name].any())

    def train(self, mode: bool = True) -> AdapterState:
        """As `nn.Module.train`; on the way to eval, the calibration is checked against the weights."""
        super().train(mode)
        if not mode:
            for adapter_name in self.aurora_A_cal:
                if self.has_calibration(adapter_name) and not self.check_calibration(adapter_name):
                    warnings.warn(
                        f"Adapter {adapter_name!r} was trained after it was calibrated: eval() computes the dynamic "
                        "form until aurora_lora.calibrate runs again.",
                        stacklevel=2,
                    )
        return self

    # ---------------------------------------------------------------- forms

    def forms_coincide(self, adapter_name: str) -> bool:
        """Whether every form computes the same linear map: plain LoRA (sigma(z) = z), or one-hot inputs."""
        return not self.has_forms or self.aurora_config[adapter_name].anl.is_identity

    def form(self, adapter_name: str) -> str:
        """The form that the next forward computes for this adapter."""
        config = self.aurora_config[adapter_name]
        if self.forms_coincide(adapter_name):
            return "static"  # eval must be what merge takes
        if self.training:
            return config.train_form
        if config.resolved_eval_form == "calibrated" and not self.calibration_is_fresh[adapter_name]:
            return "dynamic"
        return config.resolved_eval_form

    def sigma(self, adapter_name: str, z: Tensor) -> Tensor:
        """sigma(z) of Eq. 5 with this adapter's weights, z (..., r)."""
        H, spline_weight = self._anl_weights(adapter_name)
        return fused.sigma(z, H, spline_weight, self.aurora_config[adapter_name].anl)

    def static_matrix(self, adapter_name: str) -> Tensor:
        """sigma(A) of Eq. 9, (r, d_in)."""
        weights = (self.aurora_A[adapter_name], *self._anl_weights(adapter_name))
        A, H, spline_weight = (None if weight is None else whole(weight) for weight in weights)
        assert A is not None
        return fused.sigma_of_columns(A, H, spline_weight, self.aurora_config[adapter_name].anl)

    def map_of_form(self, adapter_name: str) -> tuple[Tensor, Tensor | None, Tensor | None, ANL]:
        """The present form as (matrix, H, W_s, sigma): the matrix A with the ANL, or one that needs none (Eq. 9)."""
        form = self.form(adapter_name)
        if form == "dynamic":
            H, spline_weight = self._anl_weights(adapter_name)
            return self.aurora_A[adapter_name], H, spline_weight, self.aurora_config[adapter_name].anl
        matrix = self.static_matrix(adapter_name) if form == "static" else self.aurora_A_cal[adapter_name]
        return matrix, None, None, fused.IDENTITY

    def _anl_weights(self, adapter_name: str) -> tuple[Tensor | None, Tensor | None]:
        return self.aurora_H.get(adapter_name), self.aurora_spline_weight.get(adapter_name)

    def get_factors(self, adapter_name: str, form: str | None = None) -> tuple[Tensor, Tensor]:
        """The linear update of a form as exact LoRA factors: `dW = lora_B @ lora_A` (Eq. 9).

        Args:
            form: `"static"`, `"calibrated"`, or None for what the adapter's `eval_form` names.

        Returns:
            lora_A (r, d_in) = sigma(A) or A_cal, and lora_B (d_out, r) = s B, in at least float32.

        Raises:
            FormError: the form is dynamic, which is no linear map.
            NotCalibratedError, StaleCalibrationError: the form is calibrated and there is no matrix, or an old one.
        """
        config = self.aurora_config[adapter_name]
        form = config.resolved_eval_form if form is None else form
        if form not in FORMS:
            raise ValueError(f"form={form!r} is not allowed: it must be one of {', '.join(map(repr, FORMS))}.")
        A, B = (whole(weight[adapter_name].detach()) for weight in (self.aurora_A, self.aurora_B))
        dtype = torch.promote_types(A.dtype, torch.float32)
        if self.forms_coincide(adapter_name):
            matrix = self.static_matrix(adapter_name).detach()
        elif form == "dynamic":
            raise FormError(
                f"Adapter {adapter_name!r} has the form 'dynamic', B sigma(A x), which is no linear map and cannot be "
                f"merged or exported: {_WAYS_OUT}."
            )
        elif form == "static":
            matrix = self.static_matrix(adapter_name).detach()
        else:
            self._require_fresh_calibration(adapter_name)
            matrix = self.aurora_A_cal[adapter_name]
        return matrix.to(dtype), B.to(dtype) * self.scaling[adapter_name]

    def _require_fresh_calibration(self, adapter_name: str) -> None:
        if self.aurora_config[adapter_name].train_form == "static":
            raise FormError(f"Adapter {adapter_name!r} was trained in the static form, which is its only one.")
        if not self.has_calibration(adapter_name):
            raise NotCalibratedError(f"Adapter {adapter_name!r} is not calibrated: {_WAYS_OUT}.")
        if not self.check_calibration(adapter_name):
            raise StaleCalibrationError(
                f"Adapter {adapter_name!r} was trained after it was calibrated, the calibrated matrix is outdated: "
                f"{_WAYS_OUT}."
            )

    def set_scale(self, adapter_name: str, scale: float) -> None:
        """Set the scaling of an adapter to `scale` times its configured one."""
        if adapter_name in self.scaling:
            config = self.aurora_config[adapter_name]
            self.scaling[adapter_name] = scale * config.scaling(self.r[adapter_name], self.alpha[adapter_name])

    def scale_layer(self, scale: float) -> None:
        """Multiply the scaling of the active adapters; diffusers calls it."""
        for adapter_name in self.active_adapters:
            if adapter_name in self.scaling:
                self.scaling[adapter_name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the scaling of the active adapters, or set it back to the configured one."""
        for adapter_name in self.active_adapters:
            if scale is None:
                self.set_scale(adapter_name, 1.0)
            elif adapter_name in self.scaling:
                self.scaling[adapter_name] /= scale

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Every mergeable form is a LoRA; `get_delta_weight` refuses the one that is not."""
        return True

    def extra_repr(self) -> str:
        """Names the quantisation of the base layer, as PEFT's layers do."""
        return quantization_extra_repr(self)


def _recheck_calibration(module: AdapterState, incompatible_keys: Any) -> None:
    """After weights were loaded: does the matrix belong to them? One that the state lacks goes if it does not."""
    for adapter_name in list(module.aurora_A_cal):
        fresh = module.check_calibration(adapter_name)
        lacking = module._without_calibration.pop(adapter_name, [])
        if lacking and not fresh:
            module.take_calibration(adapter_name)
            module.aurora_config[adapter_name].calibrated = False
        for key in lacking:
            if key in incompatible_keys.missing_keys:
                incompatible_keys.missing_keys.remove(key)
