"""`AuroraLayer`: the forward pass of a module with AuroRA adapters, and their merge."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import MergeError
from ..finite import is_finite
from ..forms import FormName
from ..ops import sigma
from ..ops.autocast import full_float32, without_autocast
from .base_weight import check_takes_merge
from .changed_weight import changed_by_others, keep_change, take_out
from .config import AuroraConfig
from .offloaded import in_memory, present
from .original_weight import OriginalWeight, dequantized, is_dequantized, parameter_like, rounding
from .peft_names import check_adapters_to_merge
from .refused_merge import tells_what_is_left
from .state import AdapterState
from .tensors import ordinary_tensors

BASE = "__base__"
"""PEFT's name in a mixed batch for the model without adapter."""


def of_base(name: str) -> property:
    """An attribute that models read of a layer, and that its base layer has."""
    return property(lambda self: getattr(self.get_base_layer(), name))


class AuroraLayer(AdapterState):
    """A module with AuroRA adapters: `h = W0 x + s B sigma(A x)` (Eq. 4), for what A x means there.

    A subclass says how a matrix acts on the module's input (`project`), how B leads back (`lift`), and what layout the
    weight has (`as_weight`).
    """

    fan_in_fan_out = False
    """Whether the weight is stored as (d_in, d_out)."""

    keeps_original = True
    """Whether `merge` keeps the base weight for `unmerge`; off while a model is merged and unloaded."""

    cast_input_dtype_enabled = True
    """PEFT's helper and diffusers' layerwise casting set it; it changes nothing: see `_cast_input_dtype`."""
    weight_is_shared = False
    """Whether another module has the base weight too (tied embeddings): merging then gives the layer its own."""
    base_is_elsewhere = False
    """Whether the base layer itself has another place in the model, where no adapter is: it cannot be merged into."""

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: AuroraConfig, r: int, alpha: float, **kwargs: Any
    ) -> None:
        super().__init__(base_layer, **kwargs)
        self._original_weight: OriginalWeight | None = None
        self.merge_rounding: float | None = None
        self._merged_factors: dict[str, tuple[Tensor, Tensor]] = {}
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, alpha, config)

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

    @abstractmethod
    def input_vectors(self, x: Tensor) -> Tensor:
        """(n, d_in): the vectors of the input x that the base weight acts on."""

    @property
    def input_geometry(self) -> tuple[Any, ...]:
        """What decides, beside x, which vectors `input_vectors` gives; empty where each position is one."""
        return ()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output plus the update of each active adapter.

        Raises:
            ValueError: `adapter_names` is not as long as the batch, or was given while adapters are merged.
        """
        adapter_names: Sequence[str] | None = kwargs.pop("adapter_names", None)
        if adapter_names is not None and not self.disable_adapters:
            return self._mixed_batch(x, adapter_names, *args, **kwargs)
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

    def _mixed_batch(self, x: Tensor, adapter_names: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        """Each example with the adapter that is named for it."""
        if len(x) != len(adapter_names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        result: Tensor = self.base_layer(x, *args, **kwargs)
        examples: dict[str, list[int]] = {}
        for example, adapter_name in enumerate(adapter_names):
            if adapter_name != BASE and adapter_name in self.aurora_A:
                examples.setdefault(adapter_name, []).append(example)
        if not examples:
            return result
        grouped = torch.tensor(list(chain.from_iterable(examples.values())), device=x.device)
        parts = grouped.split([len(chosen) for chosen in examples.values()])
        is_own = False  # what the base layer returned is not: it is copied once, however many adapters there are
        for adapter_name, rows in zip(examples, parts, strict=True):
            update = self.adapter_output(adapter_name, x[rows]).to(result.dtype)
            result = result.index_add_(0, rows, update) if is_own else result.index_add(0, rows, update)
            is_own = not torch._C._are_functorch_transforms_active()  # vmap adds no batch of updates to one result
        return result

    def adapter_output(self, adapter_name: str, x: Tensor) -> Tensor:
        """s B sigma(A x), s B sigma(A) x or s B A_cal x, by the adapter's present form, shaped as the output."""
        matrix, B, H, spline_weight, scaling, anl = self.update_of(adapter_name)
        x = self.aurora_dropout[adapter_name](self._cast_input_dtype(x, matrix.dtype))
        z = sigma(self.project(x, matrix), H, spline_weight, anl)
        return self.lift(z * scaling, B, x)

    def hidden_values(self, adapter_name: str, vectors: Tensor) -> Tensor:
        """z = A x, (n, r), of input vectors (n, d_in): what reaches sigma in the dynamic form."""
        A = self.aurora_A[adapter_name]
        return functional.linear(self._cast_input_dtype(vectors, A.dtype), A)

    # ---------------------------------------------------------------- merging

    def get_delta_weight(self, adapter_name: str, form: FormName | None = None) -> Tensor:
        """dW of Eq. 9 in the layout of the base weight, in at least float32. Errors as `get_factors`."""
        return self._product(*self.get_factors(adapter_name, form))

    def _product(self, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        """dW in the layout of the base weight and the precision of the factors, also within autocast."""
        with full_float32(), without_autocast(lora_B):
            return self.as_weight(lora_B @ lora_A)

    def _factors_to_merge(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """`get_factors`; of an adapter that is merged, those that it was merged with, whatever its scale is now."""
        if adapter_name in self.merged_adapters and adapter_name in self._merged_factors:
            return self._merged_factors[adapter_name]
        return self.get_factors(adapter_name)

    def _cast_input_dtype(self, x: Any, dtype: torch.dtype) -> Any:
        """Cast to the adapter's dtype, always: nothing else could, for parameters that are no modules of their own."""
        return x if x is None else x.to(dtype)

    def check_mergeable(self, adapter_names: list[str]) -> None:
        """Raise what keeps these adapters from being merged: see `get_factors`, `check_takes_merge`, and that the base
        layer has another place.
        """
        check_takes_merge(self.get_base_layer(), self.quantization_backend)
        if self.base_is_elsewhere:
            raise MergeError(
                "The adapted layer has another place in the model, where there is no adapter, and a merge would change "
                "it there, too: give each place a module of its own before the adapter is put on, or serve the adapter "
                "beside the base with aurora_lora.export_lora(model, folder)."
            )
        for adapter_name in adapter_names:
            self._factors_to_merge(adapter_name)

    def merged_weight(self, adapter_names: list[str], safe_merge: bool = False) -> Tensor:
        """W0 + dW for these adapters, (dequantised) in the base weight's dtype, rounded once. Changes nothing.

        Raises:
            ValueError: `safe_merge` is set and the result is not finite.
        """
        self.check_mergeable(adapter_names)
        original = self._original()
        # the model may have been cast since an earlier merge kept the original
        base: Any = self.get_base_layer()
        dtype = original.dtype if self.quantization_backend is not None else base.weight.dtype
        total = self._sum(original, adapter_names).to(dtype)
        if safe_merge and not is_finite(total):
            new = [name for name in adapter_names if name not in self.merged_adapters] or adapter_names
            raise ValueError(f"NaNs detected in the merged weights. The adapter {', '.join(new)} seems to be broken")
        return total

    def get_base_weight(self) -> Tensor:
        """The base weight, dequantised if it is quantised."""
        base: Any = self.get_base_layer()
        if self.quantization_backend is not None:
            return dequantized(base, self.quantization_backend)
        return present(base, "weight", base.weight.data)

    def _original(self) -> Tensor:
        if self._original_weight is None:
            return self.get_base_weight()
        base: Any = self.get_base_layer()
        device = next((p.device for p in base.parameters() if not p.is_meta), None)
        original = self._original_weight.weight().to(device)
        return original.to(base.weight.dtype) if self.holds_rounded_merge else original

    def _sum(self, original: Tensor, adapter_names: list[str]) -> Tensor:
        """The weight with these adapters' updates, in at least float32."""
        total = original.to(torch.promote_types(original.dtype, torch.float32))
        for adapter_name in adapter_names:
            total = total + self._product(*self._factors_to_merge(adapter_name)).to(total)
        return total

    def adapters_to_merge(self, adapter_names: list[str] | None) -> list[str]:
        """The adapters of this layer that are to be merged and are not yet."""
        # such layers are merged once more, and of what is merged already `merge_and_unload` has the unloading left
        silent = self.holds_rounded_merge or not self.keeps_original
        with _no_word_of_merged() if silent else nullcontext():
            names: list[str] = check_adapters_to_merge(self, adapter_names)
        return [name for name in dict.fromkeys(names) if name in self.aurora_A]

    @property
    def holds_rounded_merge(self) -> bool:
        """Whether the base layer was dequantised while merged: its weight is still what the merge had rounded."""
        original = self._original_weight
        return original is not None and is_dequantized(self.get_base_layer(), original.backend)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge adapters into the base weight, in the form that `eval_form` names.

        The original weight, with its quantisation state, is kept in main memory at the first merge, so that `unmerge`
        gives it back bit for bit. A quantised weight is dequantised, updated and quantised again: `merge_rounding` is
        then the share of the update that this rounding has cost. Into a base layer that was dequantised while merged,
        the adapters that are merged already are merged once more, and nothing is lost.

        Raises:
            FormError, NotCalibratedError, StaleCalibrationError: as `get_factors`; this layer is left as it was.
            MergeError, NotImplementedError: as `check_mergeable`; this layer is left as it was.
            ValueError: `safe_merge` is set and the result is not finite; this layer is left as it was.
        """
        names = self.adapters_to_merge(adapter_names)
        if names or self.holds_rounded_merge:
            with ordinary_tensors(), in_memory(self), tells_what_is_left(self, names):
                self._merge(names, safe_merge)

    def _merge(self, names: list[str], safe_merge: bool) -> None:
        if changed_by_others(self):
            keep_change(self)
        # from the original weight and all merged adapters at once, so that two merges do not round twice
        together = [*self.merged_adapters, *names]
        merged = self.merged_weight(together, safe_merge)
        base: Any = self.get_base_layer()
        if self._original_weight is not None and self.holds_rounded_merge:
            self._original_weight.restore(self)
            self._original_weight, self.merge_rounding = OriginalWeight(base, None, self.weight_is_shared), None
        original = self._original() if self.quantization_backend is not None else None
        if self.keeps_original and self._original_weight is None:
            self._original_weight = OriginalWeight(base, self.quantization_backend, self.weight_is_shared)
        if self.keeps_original:
            for name in names:
                lora_A, lora_B = self.get_factors(name)
                self._merged_factors[name] = lora_A.clone(), lora_B.clone()
        if self.weight_is_shared and self.quantization_backend is None:
            base.weight = parameter_like(base.weight, merged)
        else:
            self.set_base_weight(merged)
        if self._original_weight is not None:
            self._original_weight.note_merged()
        if original is not None:
            self.merge_rounding = rounding(self._sum(original, together), original, self.get_base_weight())
        self.merged_adapters.extend(names)

    def keep(self, original: OriginalWeight, lost: float) -> None:
        """The base weight has been replaced by one that was merged elsewhere: `unmerge` gives the original back.

        Args:
            original: what the base layer held.
            lost: the share of the update that was lost, for `merge_rounding`.
        """
        self._original_weight, self.merge_rounding = original, lost

    def unmerge(self) -> None:
        """Give the base layer its original weight back, bit for bit.

        Where another method's adapter was merged into the weight since, or taken out of it, the update is subtracted,
        as PEFT does.
        """
        if not self.merged or self._original_weight is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        with ordinary_tensors(), in_memory(self):
            take_out(self, changed_by_others(self))
        self._original_weight = None
        self.merge_rounding = None
        self._merged_factors.clear()
        self.merged_adapters.clear()

    def __repr__(self) -> str:
        return "aurora." + super().__repr__()


@contextmanager
def _no_word_of_merged() -> Iterator[None]:
    """Without PEFT's warning that there is nothing to merge."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All adapters are already merged")
        yield
