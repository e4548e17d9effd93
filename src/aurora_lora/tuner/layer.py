"""`AuroraLayer`: the adapters of a module, its forward pass, and their merge; `AuroraLinear`: on a linear layer."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import FormError
from ..forms import CALIBRATED, DYNAMIC, STATIC, FormName
from ..ops import ANL, IDENTITY, add_update, identity_weights, linear_with_update, sigma
from ..ops.update import can_fuse, full_float32, without_autocast
from ..values import is_finite, one_of
from .calibration import MATRIX, Calibration, Weight, gathered, ordinary_tensors
from .config import AuroraConfig, InitWeights
from .linear import is_transposed
from .merging import OriginalWeight, check_takes_merge, dequantized, in_memory, is_float8, parameter_like
from .peft_names import (
    BaseTunerLayer,
    QuantizationBackend,
    _get_in_out_features,
    check_adapters_to_merge,
    quantization_extra_repr,
    resolve_quantization_backend,
)

Update = tuple[Tensor, Tensor, Tensor | None, Tensor | None, float, ANL]
"""Matrix (r, d_in), B (d_out, r), H, W_s, s and sigma, as `ops.add_update` takes them."""


def of_base(name: str) -> property:
    """An attribute that models read of a layer, and that its base layer has."""
    return property(lambda self: getattr(self.get_base_layer(), name))


class AuroraLayer(nn.Module, BaseTunerLayer):
    """A module with AuroRA adapters: `h = W0 x + s B sigma(A x)` (Eq. 4), for what A x means there.

    Each adapter has A (r, d_in), B (d_out, r), H (r, r), W_s (r, K), and A_cal (r, d_in) if it is calibrated. d_in is
    the length of the vectors that the module's weight acts on: the input width of a linear layer, a patch of a
    convolution, the vocabulary of an embedding.

    An adapter's `AuroraConfig` is the one place where its forms are kept: layers refer to it. What sigma is made of
    (`anl`) is settled when the adapter is made, as its weights are. A subclass says how a matrix acts on the module's
    input (`project`), how B leads back (`lift`), and what layout the weight has (`as_weight`).
    """

    adapter_layer_names: tuple[str, ...] = ("aurora_A", "aurora_B", "aurora_H", "aurora_spline_weight")
    other_param_names: tuple[str, ...] = (
        *(MATRIX, "aurora_dropout", "aurora_config", "calibration", "anl"),
        *("r", "alpha", "scaling"),
    )

    has_forms = True
    """Whether the forms differ; not where the input is one-hot, and sigma(A x) = sigma(A) x (Embedding)."""
    fan_in_fan_out = False
    """Whether the weight is stored as (d_in, d_out)."""
    keeps_original = True
    """Whether `merge` keeps the base weight for `unmerge`; off while a model is merged and unloaded."""
    weight_is_shared = False
    """Whether another module has the base weight too (tied embeddings): merging then gives the layer its own."""
    cast_input_dtype_enabled = True
    """PEFT's helper and diffusers' layerwise casting set it; it changes nothing: see `_cast_input_dtype`."""

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: AuroraConfig, r: int, alpha: float, **kwargs: Any
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._of_torchao = kwargs.get("get_apply_tensor_subclass")
        self._given_backend: QuantizationBackend | None = None
        _ = self.quantization_backend  # raises where PEFT would lack something for a merge
        self.r: dict[str, int] = {}
        self.alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.aurora_config: dict[str, AuroraConfig] = {}
        self.anl: dict[str, ANL] = {}
        self.calibration: dict[str, Calibration] = {}  # of each adapter, where the forms differ
        self.aurora_dropout: Any = nn.ModuleDict()
        self.aurora_A: Any = nn.ModuleDict()
        self.aurora_B: Any = nn.ModuleDict()
        self.aurora_H: Any = nn.ModuleDict()
        self.aurora_spline_weight: Any = nn.ModuleDict()
        self.aurora_A_cal: Any = nn.ModuleDict()

        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.merged_adapters: list[str] = []
        self.original: OriginalWeight | None = None
        """What `unmerge` gives back."""
        self.in_features: int
        self.out_features: int
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())  # type: ignore[assignment]
        self.d_in = self.weight_columns()
        self.register_load_state_dict_post_hook(_check_calibrations)
        # from_pretrained hands over models in eval mode: a layer that started in train mode would compute another form
        self.train(base_layer.training)
        self.update_layer(adapter_name, r, alpha, config)

    @property
    def quantization_backend(self) -> QuantizationBackend | None:
        """PEFT's access to a quantised base weight; None of another, also after `model.dequantize()`. May be set."""
        found = resolve_quantization_backend(self.get_base_layer(), get_apply_tensor_subclass=self._of_torchao)
        return self._given_backend or found

    @quantization_backend.setter
    def quantization_backend(self, backend: QuantizationBackend | None) -> None:
        self._given_backend = backend

    def weight_columns(self) -> int:
        """d_in, the length of the vectors that the base weight acts on."""
        return self.in_features

    # ---------------------------------------------------------------- making an adapter

    def update_layer(self, adapter_name: str, r: int, alpha: float, config: AuroraConfig) -> None:
        """Add the adapter `adapter_name` with rank `r` to this layer, initialised as `config` says.

        One of that name that is there, as where `get_peft_model` is called twice, is replaced.
        """
        for holder in (self.aurora_H, self.aurora_spline_weight, self.aurora_A_cal, self.calibration):
            if adapter_name in holder:  # that not every adapter has
                del holder[adapter_name]
        anl = self.anl[adapter_name] = config.anl
        self.r[adapter_name] = r
        self.alpha[adapter_name] = alpha
        self.scaling[adapter_name] = config.scaling(r, alpha)
        self.aurora_config[adapter_name] = config
        self.aurora_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout > 0 else nn.Identity()
        self.aurora_dropout[adapter_name].train(self.training)
        self.aurora_A[adapter_name] = Weight(r, self.d_in)
        self.aurora_B[adapter_name] = Weight(self.out_features, r)
        if anl.fixed_activation is not None:
            self.aurora_H[adapter_name] = Weight(r, r)
        if anl.spline is not None:
            self.aurora_spline_weight[adapter_name] = Weight(r, anl.n_basis)
        self.reset_aurora_parameters(adapter_name, config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        if self.has_forms:
            weights = (self.aurora_A, self.aurora_H, self.aurora_spline_weight)
            calibration = Calibration(adapter_name, config, weights, self.aurora_B, self.aurora_A_cal)
            self.calibration[adapter_name] = calibration
            if config.calibrated:
                calibration.make_room()
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
        """The device and dtype that PEFT moves an adapter to; no dtype over float8, where it stays in float32."""
        device, dtype = super()._get_base_layer_device_and_dtype(base_layer)
        return device, None if dtype is not None and is_float8(dtype) else dtype

    def reset_aurora_parameters(self, adapter_name: str, init_weights: InitWeights) -> None:
        """Initialise, see docs/deviations.md: A Kaiming-uniform and B = 0 as in LoRA; H and W_s by `init_weights`."""
        self.reset_A(self.aurora_A[adapter_name].weight)
        if init_weights is False:
            nn.init.kaiming_uniform_(self.aurora_B[adapter_name].weight, a=math.sqrt(5))
        else:
            nn.init.zeros_(self.aurora_B[adapter_name].weight)
        random_anl = init_weights in (False, "paper")
        anl = self.anl[adapter_name]
        if adapter_name in self.aurora_H:
            H = self.aurora_H[adapter_name].weight
            if random_anl:
                nn.init.xavier_normal_(H)
            elif anl.skip and anl.fixed_activation != "relu":  # whose slope at 0 is 0: H = 0 would never learn
                nn.init.zeros_(H)
            else:
                nn.init.eye_(H)
        if adapter_name in self.aurora_spline_weight:
            spline_weight = self.aurora_spline_weight[adapter_name].weight
            # W_s = 0 with neither F nor skip would be sigma = 0, where no weight ever gets a gradient
            spline_alone = anl.fixed_activation is None and not anl.skip
            if random_anl or (spline_alone and anl.spline == "summed"):  # sums over channels are never the identity
                nn.init.uniform_(spline_weight, -0.1, 0.1)
            elif spline_alone:
                with torch.no_grad():
                    spline_weight.copy_(identity_weights(anl.spline_grid_size, anl.spline_order, anl.spline_range))
            else:
                nn.init.zeros_(spline_weight)

    @staticmethod
    def reset_A(A: Tensor) -> None:  # noqa: N802
        """Kaiming-uniform, as in LoRA: for x of unit mean square, each z of z = A x has the variance 1/3."""
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))

    # ---------------------------------------------------------------- when the calibration is compared with the weights

    def train(self, mode: bool = True) -> AuroraLayer:
        """Set the mode, as `nn.Module.train`; on the way to eval, the calibration is checked against the weights."""
        super().train(mode)
        for calibration in self.calibration.values() if not mode else ():
            if calibration.exists and not calibration.check():
                warnings.warn(
                    f"{calibration.outdated()}: eval() computes the dynamic form until aurora_lora.calibrate runs "
                    "again.",
                    stacklevel=2,
                )
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Load the layer's own state as `nn.Module` does, with room for the calibrated matrices in it."""
        for name, calibration in self.calibration.items():
            if f"{prefix}{MATRIX}.{name}.weight" in state_dict:
                calibration.make_room()
                calibration.config.calibrated = True
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @contextmanager
    def _same_weights(self) -> Iterator[None]:
        """Whatever the block does to the weights (a cast rounds them), a matrix that was theirs is theirs after it."""
        fresh = [calibration for calibration in self.calibration.values() if calibration.check()]
        yield
        for calibration in fresh:
            calibration.store(calibration.matrix)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AuroraLayer:
        """Apply a function to all tensors, as where a model is moved or cast."""
        with self._same_weights():
            super()._apply(fn, recurse)
        return self

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter to where the base layer is, in its precision: PEFT does so after loading, too."""
        with self._same_weights():
            super()._move_adapter_to_device_of_base_layer(adapter_name, device)

    # ---------------------------------------------------------------- forms

    def forms_coincide(self, adapter_name: str) -> bool:
        """Whether every form computes the same linear map: plain LoRA (sigma(z) = z), or one-hot inputs."""
        return not self.has_forms or self.anl[adapter_name].is_identity

    def form(self, adapter_name: str) -> FormName:
        """The form that the next forward computes for this adapter."""
        config = self.aurora_config[adapter_name]
        if self.forms_coincide(adapter_name) or config.train_form == STATIC:
            return STATIC  # eval must be what merge takes
        if self.training:
            return DYNAMIC
        form = config.eval_form or CALIBRATED
        return DYNAMIC if form == CALIBRATED and not self.calibration[adapter_name].is_fresh else form

    def _anl_weights(self, adapter_name: str) -> tuple[Tensor | None, Tensor | None]:
        H, spline_weight = self.aurora_H, self.aurora_spline_weight
        return (
            H[adapter_name]() if adapter_name in H else None,
            spline_weight[adapter_name]() if adapter_name in spline_weight else None,
        )

    def sigma(self, adapter_name: str, z: Tensor) -> Tensor:
        """sigma(z) of Eq. 5 with this adapter's weights, z (..., r)."""
        return sigma(z, *self._anl_weights(adapter_name), self.anl[adapter_name])

    def hidden_values(self, adapter_name: str, vectors: Tensor) -> Tensor:
        """z = A x, (n, r), of input vectors (n, d_in): what reaches sigma in the dynamic form."""
        A = self.aurora_A[adapter_name]()
        return functional.linear(self._cast_input_dtype(vectors, A.dtype), A)

    def static_matrix(self, adapter_name: str) -> Tensor:
        """sigma(A) of Eq. 9, (r, d_in)."""
        weights = (self.aurora_A[adapter_name](), *self._anl_weights(adapter_name))
        A, H, spline_weight = (None if weight is None else gathered(weight) for weight in weights)
        assert A is not None
        return sigma(A.T, H, spline_weight, self.anl[adapter_name]).T

    def update_of(self, adapter_name: str) -> Update:
        """The update in the adapter's present form: with A and sigma, or with a matrix that needs none (Eq. 9)."""
        form, B, scaling = self.form(adapter_name), self.aurora_B[adapter_name](), self.scaling[adapter_name]
        if form == DYNAMIC:
            weights = self._anl_weights(adapter_name)
            return self.aurora_A[adapter_name](), B, *weights, scaling, self.anl[adapter_name]
        if form == STATIC:
            return self.static_matrix(adapter_name), B, None, None, scaling, IDENTITY
        # FSDP's mixed precision casts parameters, and no buffers
        return self.calibration[adapter_name].matrix.to(B.dtype), B, None, None, scaling, IDENTITY

    def get_factors(self, adapter_name: str, form: FormName | None = None) -> tuple[Tensor, Tensor]:
        """The linear update of a form as exact LoRA factors: `dW = lora_B @ lora_A` (Eq. 9).

        Args:
            adapter_name: the adapter.
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
        if form is None:
            form = STATIC if config.train_form == STATIC else config.eval_form or CALIBRATED
        elif form not in (STATIC, CALIBRATED, DYNAMIC):
            one_of("form", form, (STATIC, CALIBRATED))
        A, B = (gathered(weight[adapter_name]().detach()) for weight in (self.aurora_A, self.aurora_B))
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

    # ---------------------------------------------------------------- forward

    @abstractmethod
    def project(self, x: Tensor, matrix: Tensor) -> Tensor:
        """`matrix` (r, d_in) times each vector of the input x: (..., r)."""

    def lift(self, z: Tensor, B: Tensor, x: Tensor) -> Tensor:
        """B (d_out, r) times each z (..., r), laid out as the module's output for the input x: here (..., d_out)."""
        return functional.linear(z, B)

    @abstractmethod
    def as_weight(self, matrix: Tensor) -> Tensor:
        """A (d_out, d_in) matrix in the layout of the base weight."""

    def as_lora(self, lora_A: Tensor, lora_B: Tensor) -> dict[str, Tensor]:
        """Factors (r, d_in) and (d_out, r) under the names and in the shapes that PEFT's LoRA has for such a module."""
        return {"lora_A.weight": lora_A, "lora_B.weight": lora_B}

    @property
    def input_geometry(self) -> tuple[Any, ...]:
        """What decides, beside x, which vectors the base weight acts on; empty where each position is one."""
        return ()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output plus the update of each active adapter."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self.base_layer(x, *args, **kwargs)  # type: ignore[no-any-return]
        names = [name for name in self.active_adapters if name in self.aurora_A]
        result = self.base_and_adapter_output(names[0], x) if names and not args and not kwargs else None
        if result is None:
            result = self.base_layer(x, *args, **kwargs)
        else:
            del names[0]
        for adapter_name in names:
            result = self.add_adapter_output(adapter_name, x, result)
        return result

    def base_and_adapter_output(self, adapter_name: str, x: Tensor) -> Tensor | None:
        """The base layer's output plus that of one adapter, where the two can be computed in one."""
        return None

    def add_adapter_output(self, adapter_name: str, x: Tensor, result: Tensor) -> Tensor:
        """The output `result` so far, plus that of an adapter."""
        return result + self.adapter_output(adapter_name, x).to(result.dtype)

    def adapter_output(self, adapter_name: str, x: Tensor) -> Tensor:
        """s B sigma(A x), s B sigma(A) x or s B A_cal x, by the adapter's present form, shaped as the output."""
        matrix, B, H, spline_weight, scaling, anl = self.update_of(adapter_name)
        x = self.aurora_dropout[adapter_name](self._cast_input_dtype(x, matrix.dtype))
        z = sigma(self.project(x, matrix), H, spline_weight, anl)
        return self.lift(z * scaling, B, x)

    def _cast_input_dtype(self, x: Any, dtype: torch.dtype) -> Any:
        """Cast to the adapter's dtype, always: nothing else could, for weights that are not called with an input."""
        return x if x is None else x.to(dtype)

    # ---------------------------------------------------------------- merging

    def get_delta_weight(self, adapter_name: str, form: FormName | None = None) -> Tensor:
        """dW of Eq. 9 in the layout of the base weight, in at least float32. Errors as `get_factors`."""
        lora_A, lora_B = self.get_factors(adapter_name, form)
        with full_float32(), without_autocast(lora_B):
            return self.as_weight(lora_B @ lora_A)

    def get_base_weight(self) -> Tensor:
        """The base weight, dequantised if it is quantised."""
        base: Any = self.get_base_layer()
        backend = self.quantization_backend
        weight: Tensor = base.weight.data if backend is None else dequantized(base, backend)
        return weight

    def check_mergeable(self, adapter_names: list[str]) -> None:
        """Raise what keeps these adapters from being merged: see `get_factors` and `check_takes_merge`."""
        check_takes_merge(self.get_base_layer(), self.quantization_backend)
        for adapter_name in adapter_names:
            self.get_factors(adapter_name)

    def adapters_to_merge(self, adapter_names: list[str] | None) -> list[str]:
        """The adapters of this layer that are to be merged and are not yet."""
        names: list[str] = check_adapters_to_merge(self, adapter_names)
        return [name for name in dict.fromkeys(names) if name in self.aurora_A]

    def merged_weight(self, adapter_names: list[str], safe_merge: bool = False) -> Tensor:
        """W0 + dW for these adapters and those that are merged, dequantised, in the base weight's dtype, rounded once.

        Changes nothing.

        Raises:
            FormError, NotCalibratedError, StaleCalibrationError, MergeError, NotImplementedError: see
                `check_mergeable`.
            ValueError: `safe_merge` is set and the result is not finite.
        """
        self.check_mergeable(adapter_names)
        current = self.get_base_weight()
        # of the weight without merged adapters: two merges do not round twice
        original = current if self.original is None else self.original.weight().to(current.device)
        total = original.to(torch.promote_types(original.dtype, torch.float32))
        for adapter_name in [*self.merged_adapters, *adapter_names]:
            total = total + self.get_delta_weight(adapter_name).to(total)
        merged = total.to(current.dtype)
        if safe_merge and not is_finite(merged):
            names = ", ".join(adapter_names)
            raise ValueError(f"NaNs detected in the merged weights. The adapter {names} seems to be broken")
        return merged

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge adapters into the base weight, in the form that `eval_form` names.

        The original weight, with its quantisation state, is kept in main memory at the first merge, so that `unmerge`
        gives it back bit for bit. A quantised weight is dequantised, updated and quantised again.

        Raises:
            FormError, NotCalibratedError, StaleCalibrationError, MergeError, NotImplementedError, ValueError: as
                `merged_weight`; this layer is left as it was.
        """
        names = self.adapters_to_merge(adapter_names)
        if not names:
            return
        with ordinary_tensors(), in_memory(self):
            merged = self.merged_weight(names, safe_merge)
            base: Any = self.get_base_layer()
            backend = self.quantization_backend
            if self.keeps_original and self.original is None:
                self.original = OriginalWeight(base, backend, self.weight_is_shared)
            if self.weight_is_shared and backend is None:
                base.weight = parameter_like(base.weight, merged)
            else:
                self.set_base_weight(merged)
            self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Give the base layer its original weight back, bit for bit."""
        if not self.merged or self.original is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        with ordinary_tensors(), in_memory(self):
            self.original.restore(self)
        self.original = None
        self.merged_adapters.clear()

    # ---------------------------------------------------------------- what PEFT and diffusers ask of a layer

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

    def extra_repr(self) -> str:
        """Names the quantisation of the base layer, as PEFT's layers do."""
        return quantization_extra_repr(self)


def _check_calibrations(module: AuroraLayer, incompatible_keys: Any) -> None:
    for calibration in module.calibration.values():
        calibration.check()


class AuroraLinear(AuroraLayer):
    """AuroRA on `nn.Linear`, transformers' `Conv1D` or a quantised linear layer (Eq. 4): x (..., d_in), A (r, d_in),
    B (d_out, r), output (..., d_out).
    """

    def __init__(self, base_layer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(base_layer, *args, **kwargs)
        self.fan_in_fan_out = is_transposed(self.get_base_layer())

    def base_and_adapter_output(self, adapter_name: str, x: Tensor) -> Tensor | None:
        """Both outputs in one, where the base is a plain frozen nn.Linear without hooks, and there is no dropout."""
        base: Any = self.base_layer
        dropout = self.aurora_dropout[adapter_name]  # which may be trained alone, as for Monte Carlo dropout
        if torch.compiler.is_compiling() or (dropout.training and getattr(dropout, "p", 0.0) > 0):
            return None
        if type(base) is not nn.Linear or _is_hooked(base):
            return None
        if not can_fuse(x, base.weight, base.bias, self.aurora_B[adapter_name].weight):
            return None  # before sigma(A) is computed in vain
        return linear_with_update(x, base.weight, base.bias, *self.update_of(adapter_name))

    def add_adapter_output(self, adapter_name: str, x: Tensor, result: Tensor) -> Tensor:
        """result + s B sigma(A x), in one call."""
        update = self.update_of(adapter_name)
        x = self.aurora_dropout[adapter_name](self._cast_input_dtype(x, update[0].dtype))
        return add_update(result, x, *update)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Every mergeable form is a LoRA; `get_delta_weight` refuses the one that is not."""
        return True

    def project(self, x: Tensor, matrix: Tensor) -> Tensor:
        """x (..., d_in) -> (..., r)."""
        return functional.linear(x, matrix)

    def as_weight(self, matrix: Tensor) -> Tensor:
        """(d_out, d_in), or its transpose for Conv1D."""
        return matrix.T if self.fan_in_fan_out else matrix  # also while another base layer stands in


def _is_hooked(module: nn.Module) -> bool:
    """Whether something wants to see that this module is called."""
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    every = torch.nn.modules.module  # the hooks on all modules
    hooked = any(getattr(module, f"_{kind}") or getattr(every, f"_global_{kind}") for kind in kinds)
    return hooked or "forward" in vars(module)
