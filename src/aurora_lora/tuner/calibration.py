"""`Calibration`: the calibrated matrix of one adapter of one layer, and how it is known to belong to the weights."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdRef

from ..errors import FormError, NotCalibratedError, StaleCalibrationError
from ..forms import STATIC
from .config import AuroraConfig
from .offloaded import AdapterBuffers, AdapterParameters, is_offloaded
from .tensors import State, computing_device, gathered, ordinary_tensors, state_of

BUFFERS = ("aurora_A_cal", "aurora_A_cal_fingerprint")
"""The names by which a layer holds the two tensors of its calibrations, and files have them."""

_CALIBRATE = "run aurora_lora.calibrate(model, batches)"
_STATIC_WAY = "or choose the paper's lossy merge with aurora_lora.set_form(model, 'static')"
WAYS_OUT = f"{_CALIBRATE}, {_STATIC_WAY}"

# An adapter may be saved, loaded or cast in any of these: each has its own hash, so that a cast's rounding is not taken
# for training.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_BYTES = 8
"""Bytes of a hash: 0 to 255 are exact in each of these precisions, so that a cast of the state leaves them as they
are."""


def stale(adapter_name: str) -> str:
    """What is said where an outdated matrix would have been used."""
    return f"{_outdated(adapter_name)}: eval() computes the dynamic form until aurora_lora.calibrate runs again."


def _outdated(adapter_name: str) -> str:
    return (
        f"The calibrated matrix of adapter {adapter_name!r} does not belong to its present weights "
        "(trained, averaged, rounded or replaced since)"
    )


class Calibration:
    """A_cal (r, d_in) of one adapter of one layer: there or not, fresh or stale, and what loading does with it.

    The matrix and the fingerprint of the weights that it was made from, (3, 8) bytes, are buffers of the layer, so that
    PEFT saves, loads, moves and deletes them with the adapter. Empty buffers (all zero) are room for what a checkpoint
    brings. The config's `calibrated` says in the adapter's file that there is a matrix.

    Args:
        adapter_name: the adapter.
        config: its settings.
        weights: where the layer holds A, H and W_s, which the matrix depends on (not B).
        B: where it holds B.
        buffers: where it holds the matrices and the fingerprints.
    """

    def __init__(
        self,
        adapter_name: str,
        config: AuroraConfig,
        weights: Sequence[AdapterParameters],
        B: AdapterParameters,
        buffers: tuple[AdapterBuffers, AdapterBuffers],
    ) -> None:
        self.adapter_name = adapter_name
        self.config = config
        self._weights = weights
        self._B = B
        self._matrices, self._fingerprints = buffers
        self.is_fresh = False
        """Whether the matrix belonged to the weights when this was last checked."""
        self.is_awaited = False
        """Whether the config spoke of a matrix that is still to be loaded."""
        self._lacking: list[str] = []
        self._seen: list[State] = []
        self._has_warned = False

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy or a file: its weights are other tensors, compared with the matrix at first."""
        return {**self.__dict__, "_seen": []}

    def _sigma_weights(self) -> list[Tensor]:
        return [holder[self.adapter_name] for holder in self._weights if self.adapter_name in holder]

    @property
    def exists(self) -> bool:
        """Whether a matrix was ever stored, fresh or stale."""
        return self.has_room and bool(self._fingerprints[self.adapter_name].any())

    @property
    def is_undecided(self) -> bool:
        """Whether nothing tells if the matrix belongs to the weights, as one of them is on meta."""
        fingerprints = [self._fingerprints[self.adapter_name]] if self.has_room else []
        return any(tensor.is_meta for tensor in (*fingerprints, *self._sigma_weights()))

    def check(self) -> bool:
        """Whether there is a matrix that belongs to the adapter's present weights; `is_fresh` remembers the answer."""
        self.is_fresh = self.has_room and _matches(self._fingerprints[self.adapter_name], self._sigma_weights())
        self._seen = self._states()
        return self.is_fresh

    def forget(self) -> None:
        """Let go of the weights that were seen at the last check: the next look at them compares them anew."""
        self._seen = []

    def _states(self) -> list[State]:
        """Which tensor each weight is, and how often it was changed in place; B last."""
        return [state_of(weight) for weight in (*self._sigma_weights(), self._B[self.adapter_name])]

    def ways_out_of_dynamic(self) -> str:
        """What to do where a linear form is asked for and the adapter evaluates in the dynamic one."""
        first = "" if self.check() else f"{_CALIBRATE}, and "
        return f"{first}choose the calibrated form with aurora_lora.set_form(model, 'calibrated'), {_STATIC_WAY}"

    def notice_changes(self) -> None:
        """In eval mode: weights that are not what they were at the last check, as when an average is copied in.

        A matrix that does not belong to A, H and W_s any more is not used, with a warning, until they are back; and an
        optimizer that has been at work on B, which alone gets a gradient there, is warned of once.
        """
        now, seen = self._states(), self._seen
        if now == seen:
            return
        *sigma, B = now
        if sigma == seen[:-1]:
            self._warn_of_training(B, seen[-1])
        elif not seen or _names(sigma) == _names(seen[:-1]) or self._are_replaced():
            was_fresh = self.is_fresh
            if not self.is_undecided and not self.check() and was_fresh:
                warnings.warn(stale(self.adapter_name), stacklevel=5)

    def _are_replaced(self) -> bool:
        """Whether weights that are other tensors than before have been put there, as `torch.func.functional_call` does.

        Not those that are fetched for each pass (by Accelerate from a disk, by FSDP from its flat parameter), nor those
        that torch.func's transforms trace.
        """
        if torch._C._are_functorch_transforms_active() or any(map(is_offloaded, self._weights)):
            return False
        return all(type(w) in (Tensor, nn.Parameter) and not w._is_view() for w in self._sigma_weights())

    def _warn_of_training(self, now: State, seen: State) -> None:
        is_trained = now[0] == seen[0] and self._B[self.adapter_name].requires_grad and torch.is_grad_enabled()
        if self.is_fresh and is_trained and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"Adapter {self.adapter_name!r} is trained in eval mode, where its calibrated matrix stands for A and "
                "sigma: only B gets a gradient. Call model.train() before a training step.",
                stacklevel=6,
            )

    @property
    def is_idle(self) -> bool:
        """Whether the adapter adds nothing to any input: all of B is 0, as at the start. Costs a pass over B."""
        B = gathered(self._B[self.adapter_name].detach())
        # FSDP and DeepSpeed leave flat parts of a weight, of which nothing follows
        return B.ndim == 2 and not B.is_meta and not B.any()

    def simplest_matrix(self) -> Tensor:
        """A, (r, d_in): of the maps that stand in for sigma(A x) where the adapter is idle, as any does exactly."""
        return gathered(self._weights[0][self.adapter_name].detach())

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
            raise StaleCalibrationError(f"{_outdated(self.adapter_name)}: {WAYS_OUT}.")
        matrix: Tensor = self._matrices[self.adapter_name]
        return matrix

    # ---------------------------------------------------------------- storing

    def tell_config(self) -> None:
        """Let the config say whether there is a matrix, unless it speaks of one that is still to be loaded."""
        if not self.is_awaited and not (self.has_room and self._fingerprints[self.adapter_name].is_meta):
            self.config.calibrated = self.exists

    @property
    def has_room(self) -> bool:
        """Whether the buffers are there, filled or empty."""
        return self.adapter_name in self._matrices

    @ordinary_tensors()
    def make_room(self) -> None:
        """Empty buffers, unless they are there: PEFT drops the keys of a checkpoint that the model does not have."""
        if self.has_room:
            return
        A = self._weights[0][self.adapter_name]
        # PEFT moves buffers also while the parameters are still on meta
        device = "cpu" if A.is_meta else computing_device(A)
        self._matrices[self.adapter_name] = torch.zeros(A.shape, dtype=A.dtype, device=device)
        self._fingerprints[self.adapter_name] = torch.zeros(len(_DTYPES), _BYTES, dtype=torch.uint8, device=device)

    @ordinary_tensors()
    def store(self, matrix: Tensor) -> None:
        """Store A_cal (r, d_in) as belonging to the adapter's present weights."""
        A = self._weights[0][self.adapter_name]
        device = computing_device(A)
        self._matrices[self.adapter_name] = matrix.detach().to(device=device, dtype=A.dtype, copy=True)
        self._fingerprints[self.adapter_name] = _fingerprint(self._sigma_weights()).to(device)
        self.is_fresh, self.is_awaited = True, False
        self._seen = self._states()
        self.config.calibrated = True

    def take(self) -> tuple[bool, list[Tensor]]:
        """Take the buffers away. What is returned is for `give_back`; the config is left to the caller."""
        self.is_fresh = False
        both = (self._matrices, self._fingerprints) if self.has_room else ()
        return self.config.calibrated, [buffers.pop(self.adapter_name) for buffers in both]

    @ordinary_tensors()
    def give_back(self, taken: tuple[bool, list[Tensor]]) -> None:
        """Undo `take`, whatever was stored since."""
        self.take()
        self.config.calibrated, held = taken
        if held:
            self._matrices[self.adapter_name], self._fingerprints[self.adapter_name] = held
            self.check()

    # ---------------------------------------------------------------- loading a layer's state

    def before_load(self, state_dict: MutableMapping[str, Tensor], prefix: str, errors: list[str]) -> None:
        """Make room for a matrix that the state has; remember which keys it lacks beside the adapter's weights."""
        matrix, fingerprint = keys = [f"{prefix}{buffer}.{self.adapter_name}" for buffer in BUFFERS]
        self._lacking = []
        if (matrix in state_dict) != (fingerprint in state_dict):
            errors.append(f"{matrix} and {fingerprint} belong together: the state has only one of them.")
        elif matrix in state_dict:
            state_dict[fingerprint] = _in_bytes(state_dict[fingerprint])
            self.make_room()
            self.is_awaited = False
            self.config.calibrated = True
        elif f"{prefix}aurora_A.{self.adapter_name}" in state_dict and self.has_room:
            self._lacking = keys

    def after_load(self, missing_keys: list[str]) -> None:
        """Does the matrix belong to the weights that were loaded? One that the state lacks goes if it does not."""
        fresh = self.check()
        if self._lacking and not fresh:
            self.take()
            self.config.calibrated = False
        for key in self._lacking:
            if key in missing_keys:
                missing_keys.remove(key)
        self._lacking = []


def _names(states: Sequence[State]) -> list[WeakIdRef]:
    """Which tensors they are, changed or not."""
    return [which for which, _ in states]


def _fingerprint(weights: Sequence[Tensor]) -> Tensor:
    """(3, 8) bytes on the CPU: one hash of the values of `weights` for each of float32, bfloat16 and float16."""
    full = [gathered(w) for w in weights]
    return torch.tensor([list(_hash(full, dtype)) for dtype in _DTYPES], dtype=torch.uint8, device="cpu")


def _in_bytes(fingerprint: Tensor) -> Tensor:
    """(3, 8), also of one that was saved as (3,) int64, as adapters once had it."""
    return fingerprint.long().view(torch.uint8).view(-1, _BYTES) if fingerprint.ndim == 1 else fingerprint


def _matches(stored: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether `stored` is the fingerprint of `weights`, or of weights that were rounded to them by a cast.

    A hash of a lower precision counts only where every value is exact in that precision, as it is after a cast.
    """
    if any(w.is_meta for w in weights) or stored.is_meta:
        return False
    weights = [gathered(w) for w in weights]
    for dtype, value in zip(_DTYPES, stored.to(torch.uint8).tolist(), strict=True):
        exact = dtype is torch.float32 or all(torch.equal(w.to(dtype).to(w.dtype), w) for w in weights)
        if exact and bytes(value) == _hash(weights, dtype):
            return True
    return False


def _hash(weights: Sequence[Tensor], dtype: torch.dtype) -> bytes:
    digest = hashlib.blake2b(digest_size=_BYTES)
    for weight in weights:
        # a copy: numpy() would pin the storage of a parameter that FSDP resizes
        copied = weight.detach().to("cpu", dtype, copy=True).contiguous()
        digest.update(copied.view(torch.uint8).numpy().tobytes())
    return digest.digest()
