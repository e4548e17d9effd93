"""`Calibration`: the calibrated matrix of one adapter of one layer, and how it is known to belong to the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FormError, NotCalibratedError, StaleCalibrationError
from ..forms import STATIC
from .config import AuroraConfig

MATRIX = "aurora_A_cal"
"""The name by which a layer holds the matrices of its adapters, each with its fingerprint, and files have them."""

_CALIBRATE = "run aurora_lora.calibrate(model, batches)"
_STATIC_WAY = "or choose the paper's lossy merge with aurora_lora.set_form(model, 'static')"
WAYS_OUT = f"{_CALIBRATE}, {_STATIC_WAY}"

_BYTES = 8
"""Bytes of a fingerprint."""


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Tensors made meanwhile are ordinary ones, without gradients: training and `load_state_dict` take them later."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def gathered(weight: Tensor) -> Tensor:
    """The weight, gathered from all processes if it is sharded (a DTensor, as FSDP2 makes): call it on each of them."""
    if not hasattr(weight, "full_tensor"):
        return weight
    shard: Any = weight.to(computing_device(weight))
    full: Tensor = shard.full_tensor()
    return full


def computing_device(weight: Tensor) -> torch.device:
    """The device a weight is computed on; of a shard, which FSDP2 may keep in main memory, that of its mesh."""
    mesh = getattr(weight, "device_mesh", None)
    return weight.device if mesh is None else torch.empty(0, device=mesh.device_type).device


class Weight(nn.Module):
    """One parameter of an adapter. Its name ends in `.<adapter>.weight`, as those of LoRA do.

    Calling it gives the parameter, from wherever hooks (of Accelerate, of diffusers) keep it.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*shape))

    def forward(self) -> Tensor:
        """The parameter; one that diffusers offloads as a tensor that keeps its data when they are taken away."""
        return self.weight.detach() if "_diffusers_hook" in self.__dict__ else self.weight


class CalibratedMatrix(nn.Module):
    """A_cal (r, d_in) and the fingerprint (8,) of the weights that it was made from; all 0 is room for those of a file.

    They are buffers: PEFT saves, loads, moves and deletes them with the adapter.
    """

    weight: Tensor
    fingerprint: Tensor

    def __init__(self, weight: Tensor, fingerprint: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        empty = torch.zeros(_BYTES, dtype=torch.uint8, device=weight.device)
        self.register_buffer("fingerprint", empty if fingerprint is None else fingerprint.to(weight.device))

    def forward(self) -> tuple[Tensor, Tensor]:
        """The matrix and the fingerprint, from wherever hooks keep them."""
        return self.weight.detach(), self.fingerprint.detach()  # diffusers takes the data of buffers away again

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CalibratedMatrix:
        """Apply a function to both, but let none go to meta: Accelerate expects buffers in memory."""
        before = self.weight, self.fingerprint
        super()._apply(fn, recurse)
        if self.weight.is_meta:
            self.weight, self.fingerprint = before
        return self


class Calibration:
    """A_cal of one adapter of one layer: there or not, fresh or stale.

    It is compared with the weights where it is used: by `model.eval()`, `set_form`, merge, export, and after loading.

    Args:
        adapter_name: the adapter.
        config: its settings.
        weights: where the layer holds A, H and W_s, which the matrix depends on (not B).
        B: where it holds B.
        matrices: where it holds the matrices.
    """

    def __init__(
        self,
        adapter_name: str,
        config: AuroraConfig,
        weights: Sequence[nn.ModuleDict],
        B: nn.ModuleDict,
        matrices: nn.ModuleDict,
    ) -> None:
        self.adapter_name = adapter_name
        self.config = config
        self._weights = weights
        self._B = B
        self._matrices = matrices
        self.is_fresh = False
        """Whether the matrix belonged to the weights when this was last checked: `eval()` computes with it then."""

    @property
    def has_room(self) -> bool:
        """Whether the buffers are there, filled or empty."""
        return self.adapter_name in self._matrices

    @property
    def matrix(self) -> Tensor:
        """A_cal (r, d_in), fresh or stale; all 0 where there is room alone."""
        matrix: Tensor = self._matrices[self.adapter_name]()[0]
        return matrix

    def _fingerprint(self) -> list[int]:
        """The hash that the matrix was stored with; empty without one, and where nothing tells."""
        stored = self._matrices[self.adapter_name]()[1] if self.has_room else None
        return stored.tolist() if stored is not None and not stored.is_meta and stored.any() else []

    @property
    def exists(self) -> bool:
        """Whether a matrix was ever stored, fresh or stale."""
        return bool(self._fingerprint())

    def _sigma_weights(self) -> list[Tensor]:
        return [holder[self.adapter_name]() for holder in self._weights if self.adapter_name in holder]

    def check(self) -> bool:
        """Whether there is a matrix that belongs to the adapter's present weights; `is_fresh` remembers the answer."""
        stored = self._fingerprint()
        self.is_fresh = bool(stored) and stored == fingerprint(self._sigma_weights()).tolist()
        return self.is_fresh

    def outdated(self) -> str:
        """What is said where the matrix does not belong to the weights."""
        return (
            f"The calibrated matrix of adapter {self.adapter_name!r} does not belong to its present weights "
            "(trained, averaged, rounded or replaced since)"
        )

    def ways_out_of_dynamic(self) -> str:
        """What to do where a linear form is asked for and the adapter evaluates in the dynamic one."""
        first = "" if self.check() else f"{_CALIBRATE}, and "
        return f"{first}choose the calibrated form with aurora_lora.set_form(model, 'calibrated'), {_STATIC_WAY}"

    @property
    def is_idle(self) -> bool:
        """Whether the adapter adds nothing to any input: all of B is 0, as at the start. Costs a pass over B."""
        B = gathered(self._B[self.adapter_name]().detach())
        # FSDP and DeepSpeed leave flat parts of a weight, of which nothing follows
        return B.ndim == 2 and not B.is_meta and not B.any()

    def simplest_matrix(self) -> Tensor:
        """A, (r, d_in): of the maps that stand in for sigma(A x) where the adapter is idle, as any does exactly."""
        return gathered(self._weights[0][self.adapter_name]().detach())

    def fresh_matrix(self) -> Tensor:
        """A_cal, (r, d_in); of an idle adapter that has none, A.

        Raises:
            FormError: the adapter was trained in the static form, and needs none.
            NotCalibratedError, StaleCalibrationError: there is none, or an outdated one.
        """
        name = f"Adapter {self.adapter_name!r}"
        if self.config.train_form == STATIC:
            raise FormError(f"{name} was trained in the static form, which is its only one.")
        if not self.exists:
            if self.is_idle:
                return self.simplest_matrix()
            raise NotCalibratedError(f"{name} is not calibrated: {WAYS_OUT}.")
        if not self.check():
            raise StaleCalibrationError(f"{self.outdated()}: {WAYS_OUT}.")
        return self.matrix

    @ordinary_tensors()
    def make_room(self) -> None:
        """Empty buffers, unless they are there: PEFT drops the keys of a checkpoint that the model does not have."""
        if not self.has_room:
            A = self._weights[0][self.adapter_name]()
            # PEFT moves buffers also while the parameters are still on meta, and casts parameters alone to float32
            device = "cpu" if A.is_meta else computing_device(A)
            dtype = torch.promote_types(A.dtype, torch.float32)
            self._matrices[self.adapter_name] = CalibratedMatrix(torch.zeros(A.shape, dtype=dtype, device=device))

    @ordinary_tensors()
    def store(self, matrix: Tensor) -> None:
        """Store A_cal (r, d_in) as belonging to the adapter's present weights."""
        weights = self._sigma_weights()
        held = matrix.detach().to(device=computing_device(weights[0]), dtype=weights[0].dtype, copy=True)
        self._matrices[self.adapter_name] = CalibratedMatrix(held, fingerprint(weights)).train(self._matrices.training)
        self.is_fresh = self.config.calibrated = True

    def take_away(self) -> None:
        """Remove the matrix, if there is one."""
        self.is_fresh = False
        if self.has_room:
            del self._matrices[self.adapter_name]


def fingerprint(weights: Sequence[Tensor]) -> Tensor:
    """(8,) bytes on the CPU: a hash of the values of `weights` in float32; zeros where one is on meta."""
    if any(weight.is_meta for weight in weights):
        return torch.zeros(_BYTES, dtype=torch.uint8)
    digest = hashlib.blake2b(digest_size=_BYTES)
    for weight in map(gathered, weights):
        # a copy: numpy() would pin the storage of a parameter that FSDP resizes
        copied = weight.detach().to("cpu", torch.float32, copy=True).contiguous()
        digest.update(copied.view(torch.uint8).numpy().tobytes())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8, device="cpu")
