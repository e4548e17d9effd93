"""`AdapterState`: the weights, the calibration and the forms of the adapters of one module."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FormError
from ..forms import CALIBRATED, DYNAMIC, STATIC, FormName
from ..ops import ANL, IDENTITY, identity_weights, sigma
from ..ops.autocast import full_float32
from ..values import one_of
from .calibration import BUFFERS, Calibration, stale
from .config import AuroraConfig, InitWeights
from .offloaded import AdapterBuffers, AdapterParameters
from .original_weight import is_dequantized
from .peft_names import (
    BaseTunerLayer,
    QuantizationBackend,
    _get_in_out_features,
    quantization_extra_repr,
    resolve_quantization_backend,
)
from .tensors import gathered, is_float8

Update = tuple[Tensor, Tensor, Tensor | None, Tensor | None, float, ANL]
"""Matrix (r, d_in), B (d_out, r), H, W_s, s and sigma, as `ops.add_update` takes them."""


class AdapterState(nn.Module, BaseTunerLayer):
    """The adapters of one module: A (r, d_in), B (d_out, r), H (r, r), W_s (r, K), and A_cal (r, d_in) if calibrated.

    d_in is the length of the vectors that the module's weight acts on: the input width of a linear layer, a patch of a
    convolution, the vocabulary of an embedding. An adapter's `AuroraConfig` is the one place where its forms are kept:
    layers refer to it. What sigma is made of (`anl`) is settled
    when the adapter is made, as its weights are.
    """

    adapter_layer_names: tuple[str, ...] = ("aurora_A", "aurora_B", "aurora_H", "aurora_spline_weight")
    other_param_names: tuple[str, ...] = (
        *BUFFERS,
        "aurora_dropout",
        "aurora_config",
        "calibration",
        "anl",
        "r",
        "alpha",
        "scaling",
    )

    has_forms = True
    """Whether the forms differ; not where the input is one-hot, and sigma(A x) = sigma(A) x (Embedding)."""

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._found_backend = self._quantization_backend = resolve_quantization_backend(
            self.get_base_layer(), get_apply_tensor_subclass=kwargs.get("get_apply_tensor_subclass")
        )
        self.r: dict[str, int] = {}
        self.alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.aurora_config: dict[str, AuroraConfig] = {}
        self.anl: dict[str, ANL] = {}
        self.calibration: dict[str, Calibration] = {}  # of each adapter, where the forms differ
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
        self.register_load_state_dict_post_hook(_check_calibrations)
        self.register_state_dict_pre_hook(_tell_configs)
        # from_pretrained hands over models in eval mode: a layer that started in train mode would compute another form
        self.train(base_layer.training)

    @property
    def quantization_backend(self) -> QuantizationBackend | None:
        """PEFT's access to a quantised base weight; None also after `model.dequantize()`, which replaces the layer."""
        backend = self._quantization_backend
        is_found = backend is self._found_backend  # one that was set is given back as it is
        return None if is_found and is_dequantized(self.get_base_layer(), backend) else backend

    @quantization_backend.setter
    def quantization_backend(self, backend: QuantizationBackend | None) -> None:
        self._quantization_backend = backend

    def weight_columns(self) -> int:
        """d_in, the length of the vectors that the base weight acts on."""
        return self.in_features

    # ---------------------------------------------------------------- making an adapter

    def update_layer(self, adapter_name: str, r: int, alpha: float, config: AuroraConfig) -> None:
        """Add the adapter `adapter_name` with rank `r` to this layer, initialised as `config` says.

        One of that name that is there, as where `get_peft_model` is called twice, is replaced.
        """
        self.calibration.pop(adapter_name, None)
        for name in ("aurora_H", "aurora_spline_weight", *BUFFERS):  # that not every adapter has
            if adapter_name in (holder := getattr(self, name)):
                del holder[adapter_name]
        anl = self.anl[adapter_name] = config.anl
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
        if self.has_forms:
            self._make_calibration(adapter_name, config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
        """The device and dtype that PEFT moves an adapter to; no dtype over float8, where it stays in float32."""
        device, dtype = super()._get_base_layer_device_and_dtype(base_layer)
        return device, None if dtype is not None and is_float8(dtype) else dtype

    def reset_aurora_parameters(self, adapter_name: str, init_weights: InitWeights) -> None:
        """Initialise, see docs/deviations.md: A Kaiming-uniform and B = 0 as in LoRA; H and W_s by `init_weights`."""
        self.reset_A(self.aurora_A[adapter_name])
        if init_weights is False:
            nn.init.kaiming_uniform_(self.aurora_B[adapter_name], a=math.sqrt(5))
        else:
            nn.init.zeros_(self.aurora_B[adapter_name])
        random_anl = init_weights in (False, "paper")
        config = self.aurora_config[adapter_name]
        if adapter_name in self.aurora_H:
            H = self.aurora_H[adapter_name]
            if random_anl:
                nn.init.xavier_normal_(H)
            elif config.skip and config.fixed_activation != "relu":  # whose slope at 0 is 0: H = 0 would never learn
                nn.init.zeros_(H)
            else:
                nn.init.eye_(H)
        if adapter_name in self.aurora_spline_weight:
            spline_weight = self.aurora_spline_weight[adapter_name]
            anl = self.anl[adapter_name]
            # W_s = 0 with neither F nor skip would be sigma = 0, where no weight ever gets a gradient
            spline_alone = anl.fixed_activation is None and not anl.skip
            if random_anl or (spline_alone and anl.spline == "summed"):  # sums over channels are never the identity
                nn.init.uniform_(spline_weight, -0.1, 0.1)
            elif spline_alone:
                with torch.no_grad():
                    spline_weight.copy_(identity_weights(anl.spline_grid_size, anl.spline_order, anl.spline_range))
            else:
                nn.init.zeros_(spline_weight)

    @torch.no_grad()
    def copy_adapter(self, source: str, target: str) -> None:
        """Give an adapter the weights of another of the same settings, in their dtype; not its calibration."""
        for holder in (self.aurora_A, self.aurora_B, self.aurora_H, self.aurora_spline_weight):
            if source in holder:
                # PEFT casts adapters to float32 only after they are made: until then one has the base's precision
                holder[target] = nn.Parameter(holder[source].detach().clone(), holder[target].requires_grad)
        self.scaling[target] = self.scaling[source]

    @staticmethod
    def reset_A(A: Tensor) -> None:  # noqa: N802 - A is the paper's name
        """Kaiming-uniform, as in LoRA: for x of unit mean square, each z of z = A x has the variance 1/3."""
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))

    # ---------------------------------------------------------------- calibration

    def _make_calibration(self, adapter_name: str, config: AuroraConfig) -> None:
        weights = (self.aurora_A, self.aurora_H, self.aurora_spline_weight)
        buffers = (self.aurora_A_cal, self.aurora_A_cal_fingerprint)
        calibration = self.calibration[adapter_name] = Calibration(
            adapter_name, config, weights, self.aurora_B, buffers
        )
        if config.calibrated:
            calibration.make_room()
            A = self.aurora_A[adapter_name]
            if config.init_weights is False and not A.is_meta:
                calibration.store(nn.init.kaiming_uniform_(torch.empty_like(A), a=math.sqrt(5)))
            calibration.is_awaited = True

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Load the layer's own state as `nn.Module` does, with room for the calibrated matrices in it."""
        for calibration in self.calibration.values():
            calibration.before_load(state_dict, prefix, errors=rest[-1])
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdapterState:
        """Apply a function to all tensors, without the weak references that keep torch from swapping weights."""
        for calibration in self.calibration.values():
            calibration.forget()
        super()._apply(fn, recurse)
        return self

    def train(self, mode: bool = True) -> AdapterState:
        """Set the mode, as `nn.Module.train`; on the way to eval, the calibration is checked against the weights."""
        super().train(mode)
        for adapter_name, calibration in self.calibration.items() if not mode else ():
            if not calibration.is_undecided and calibration.exists and not calibration.check():
                warnings.warn(stale(adapter_name), stacklevel=2)
        return self

    # ---------------------------------------------------------------- forms

    def forms_coincide(self, adapter_name: str) -> bool:
        """Whether every form computes the same linear map: plain LoRA (sigma(z) = z), or one-hot inputs."""
        return not self.has_forms or self.anl[adapter_name].is_identity

    def form(self, adapter_name: str) -> FormName:
        """The form that the next forward computes for this adapter."""
        config = self.aurora_config[adapter_name]
        if self.forms_coincide(adapter_name):
            return STATIC  # eval must be what merge takes
        if self.training:
            return config.train_form
        if config.resolved_eval_form == CALIBRATED:
            calibration = self.calibration[adapter_name]
            if calibration.has_room and not torch.compiler.is_compiling():
                calibration.notice_changes()
            if not calibration.is_fresh:
                return DYNAMIC
        return config.resolved_eval_form

    def sigma(self, adapter_name: str, z: Tensor) -> Tensor:
        """sigma(z) of Eq. 5 with this adapter's weights, z (..., r)."""
        H, spline_weight = self._anl_weights(adapter_name)
        return sigma(z, H, spline_weight, self.anl[adapter_name])

    def static_matrix(self, adapter_name: str) -> Tensor:
        """sigma(A) of Eq. 9, (r, d_in)."""
        weights = (self.aurora_A[adapter_name], *self._anl_weights(adapter_name))
        A, H, spline_weight = (None if weight is None else gathered(weight) for weight in weights)
        assert A is not None
        return sigma(A.T, H, spline_weight, self.anl[adapter_name]).T

    def update_of(self, adapter_name: str) -> Update:
        """The update in the adapter's present form: with A and sigma, or with a matrix that needs none (Eq. 9)."""
        form, B, scaling = self.form(adapter_name), self.aurora_B[adapter_name], self.scaling[adapter_name]
        if form == DYNAMIC:
            weights = self._anl_weights(adapter_name)
            return self.aurora_A[adapter_name], B, *weights, scaling, self.anl[adapter_name]
        if form == STATIC:
            return self.static_matrix(adapter_name), B, None, None, scaling, IDENTITY
        # FSDP's mixed precision casts parameters, and no buffers
        return self.aurora_A_cal[adapter_name].to(B.dtype), B, None, None, scaling, IDENTITY

    def _anl_weights(self, adapter_name: str) -> tuple[Tensor | None, Tensor | None]:
        return self.aurora_H.get(adapter_name), self.aurora_spline_weight.get(adapter_name)

    def get_factors(self, adapter_name: str, form: FormName | None = None) -> tuple[Tensor, Tensor]:
        """The linear update of a form as exact LoRA factors: `dW = lora_B @ lora_A` (Eq. 9).

        Args:
            form: `"static"`, `"calibrated"`, or None for what the adapter's `eval_form` names.

        Returns:
            lora_A (r, d_in) = sigma(A) or A_cal, and lora_B (d_out, r) = s B, in at least float32. Where there is no
            A_cal and B is 0, as at the start, lora_A is A.

        Raises:
            FormError: the form is dynamic, which is no linear map.
            NotCalibratedError, StaleCalibrationError: the form is calibrated and there is no matrix though B is not 0,
                or an old one.
        """
        config = self.aurora_config[adapter_name]
        form = config.resolved_eval_form if form is None else form
        if form != DYNAMIC:
            one_of("form", form, (STATIC, CALIBRATED))
        A, B = (gathered(weight[adapter_name].detach()) for weight in (self.aurora_A, self.aurora_B))
        dtype = torch.promote_types(A.dtype, torch.float32)
        if form == STATIC or self.forms_coincide(adapter_name):
            with full_float32():
                matrix = self.static_matrix(adapter_name).detach()
        elif form == DYNAMIC:
            raise FormError(
                f"Adapter {adapter_name!r} has the form 'dynamic', B sigma(A x), which is no linear map and cannot be "
                f"merged or exported: {self.calibration[adapter_name].ways_out_of_dynamic()}."
            )
        else:
            matrix = self.calibration[adapter_name].fresh_matrix()
        return matrix.to(dtype), B.to(dtype) * self.scaling[adapter_name]

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
        """PEFT's conversion is for linear layers, whose every mergeable form is a LoRA."""
        return False

    def extra_repr(self) -> str:
        """Names the quantisation of the base layer, as PEFT's layers do."""
        return quantization_extra_repr(self)


def _tell_configs(module: AdapterState, prefix: str, keep_vars: bool) -> None:
    """Before weights are saved: the config, saved after them, may be shared with another model's adapter."""
    for calibration in module.calibration.values():
        calibration.tell_config()


def _check_calibrations(module: AdapterState, incompatible_keys: Any) -> None:
    for calibration in module.calibration.values():
        calibration.after_load(incompatible_keys.missing_keys)
