"""`AuroraLinear`: AuroRA on a linear layer."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from .config import AuroraConfig
from .layer import AuroraLayer


class AuroraLinear(AuroraLayer):
    """AuroRA on `nn.Linear` or transformers' `Conv1D`: `h = W0 x + s B sigma(A x)` (Eq. 4)."""

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: AuroraConfig, r: int, alpha: float, **kwargs: Any
    ) -> None:
        super().__init__(base_layer, **kwargs)
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, alpha, config)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (..., d_in) -> (..., d_out)."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for adapter_name in self.active_adapters:
            if adapter_name in self.aurora_A:
                result = result + self.adapter_output(adapter_name, x).to(result.dtype)
        return result

    def adapter_output(self, adapter_name: str, x: Tensor) -> Tensor:
        """s B sigma(A x), s B sigma(A) x or s B A_cal x, by the adapter's present form: (..., d_in) -> (..., d_out)."""
        A, B = self.aurora_A[adapter_name], self.aurora_B[adapter_name]
        x = self.aurora_dropout[adapter_name](self._cast_input_dtype(x, A.dtype))
        form = self.form(adapter_name)
        if form == "dynamic":
            z = self.sigma(adapter_name, functional.linear(x, A))  # (..., r)
        elif form == "static":
            z = functional.linear(x, self.static_matrix(adapter_name))
        else:
            z = functional.linear(x, self.aurora_A_cal[adapter_name])
        return functional.linear(z * self.scaling[adapter_name], B)

    # ---------------------------------------------------------------- merging

    def get_delta_weight(self, adapter_name: str, form: str | None = None) -> Tensor:
        """dW of Eq. 9 in the layout of the base weight, in at least float32. Errors as `get_factors`."""
        lora_A, lora_B = self.get_factors(adapter_name, form)
        delta = lora_B @ lora_A
        return delta.T if self.fan_in_fan_out else delta

    def _base_parameter(self) -> nn.Parameter:
        weight: nn.Parameter = self.get_base_layer().weight  # type: ignore[assignment]
        return weight

    def check_mergeable(self, adapter_names: list[str]) -> None:
        """Raise what keeps these adapters from being merged; see `get_factors`."""
        if self.quantization_backend is not None:
            raise NotImplementedError(
                f"Merging into a quantised base layer ({self.quantization_backend.backend_name}) is not supported yet: "
                "load the base model unquantised to merge."
            )
        for adapter_name in adapter_names:
            self.get_factors(adapter_name)

    def merged_weight(self, adapter_names: list[str], safe_merge: bool = False) -> Tensor:
        """W0 + dW for these adapters: summed in at least float32, rounded once. Changes nothing.

        Raises:
            ValueError: `safe_merge` is set and the result is not finite.
        """
        self.check_mergeable(adapter_names)
        weight = self._base_parameter()
        original = weight.detach() if self._original_weight is None else self._original_weight.to(weight.device)
        total = original.to(torch.promote_types(original.dtype, torch.float32))
        for adapter_name in adapter_names:
            total = total + self.get_delta_weight(adapter_name).to(total)
        merged = total.to(weight.dtype)
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(
                f"NaNs detected in the merged weights. The adapter {', '.join(adapter_names)} seems to be broken"
            )
        return merged

    def adapters_to_merge(self, adapter_names: list[str] | None) -> list[str]:
        """The adapters of this layer that are to be merged and are not yet."""
        names: list[str] = check_adapters_to_merge(self, adapter_names)
        return [name for name in names if name in self.aurora_A]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge adapters into the base weight, in the form that `eval_form` names.

        The original weight is kept in main memory at the first merge, so that `unmerge` gives it back bit for bit.

        Raises:
            FormError, NotCalibratedError, StaleCalibrationError: as `get_factors`; nothing is changed then.
            ValueError: `safe_merge` is set and the result is not finite; nothing is changed then.
        """
        names = self.adapters_to_merge(adapter_names)
        if not names:
            return
        # from the original weight and all merged adapters at once, so that two merges do not round twice
        merged = self.merged_weight([*self.merged_adapters, *names], safe_merge)
        weight = self._base_parameter()
        if self.keeps_original and self._original_weight is None:
            self._original_weight = weight.detach().to("cpu", copy=True)
        weight.data = merged
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Give the base layer its original weight back, bit for bit."""
        if not self.merged or self._original_weight is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight = self._base_parameter()
        weight.data = self._original_weight.to(device=weight.device, dtype=weight.dtype)
        self._original_weight = None
        self.merged_adapters.clear()

    def __repr__(self) -> str:
        return "aurora." + super().__repr__()
