"""What calibration, the gap report and merging have in common: a model that only looks, and batches."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from operator import length_hint
from typing import Any

import numpy as np
import torch
from torch import nn

from ..temporary_attributes import temporary_attributes
from ..tuner.tensors import computing_device, ordinary_tensors
from .batch import Batch, bytes_of, copied
from .loaders import iterations_of_now
from .processes import several_processes


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, no inference mode; modes, random states and Accelerate's as before at the end, also
    after an error.

    A weight of bitsandbytes stays as it is stored: see `_unpacked_weights`.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_gpus_of(model)))
        stack.callback(random_state_of_now())
        stack.callback(iterations_of_now())
        stack.enter_context(ordinary_tensors())  # inference mode keeps no count of changes in place
        stack.enter_context(_unpacked_weights(model))
        stack.enter_context(_without_fast_path())
        if any(map(_is_compiled, model.modules())):
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # a compiled graph does not see new hooks
        stack.enter_context(temporary_attributes(model.modules(), training=False))
        yield


def _unpacked_weights(model: nn.Module) -> AbstractContextManager[None]:
    """Keep bitsandbytes from packing 4-bit weights for the CPU at their first call in eval mode.

    That rounds their scales, and `state_dict()`, which unpacks the weights, leaves the scales in another order.
    """
    packing = [module for module in model.modules() if getattr(module, "support_avx512bf16_for_cpu", False)]
    return temporary_attributes(packing, support_avx512bf16_for_cpu=False)


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Keep `nn.TransformerEncoderLayer` from reading the weights of its layers in place of calling them, as it does in
    eval mode: no adapter takes part then."""
    earlier = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(earlier)


def _gpus_of(model: nn.Module) -> list[int]:
    devices = {computing_device(p) for p in model.parameters()}
    return sorted(device.index for device in devices if device.type == "cuda")


def seed_torch(model: nn.Module, seed: int) -> None:
    """Seed what `evaluated` puts back: PyTorch's random numbers on the CPU and on the GPUs that hold the model."""
    torch.default_generator.manual_seed(seed)
    for gpu in _gpus_of(model):
        torch.cuda.default_generators[gpu].manual_seed(seed)


def random_state_of_now() -> Callable[[], None]:
    """What sets Python's, NumPy's and PyTorch's random state on the CPU to what they are now."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def put_back() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)

    return put_back


def _is_compiled(module: nn.Module) -> bool:
    """By `torch.compile(module)`, `module.compile()` or `torch.compile(module.forward)`."""
    return module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable")


HELD_BYTES = 256 * 2**20
"""The most that `Passes` holds in memory, of batches that can be read again."""


class Passes:
    """Batches that can be run through several times, the same each time.

    Those that are not held are read anew, from the random state of the first time: only within `evaluated`, which puts
    back what it was.
    """

    def __init__(self, batches: Iterable[Batch], progress: str = "") -> None:
        self.batches = batches
        self.passes = 0
        self.progress = progress  # what a bar on stderr says; without one, there is none
        self._begin = random_state_of_now()
        self._held: list[Batch] | None = None
        self._room: float = math.inf if isinstance(batches, Iterator) else HELD_BYTES
        self._coming: Iterator[Batch] | None = None  # what is still to be held

    def hold(self) -> None:
        """Before the first of several passes: keep a copy of each batch as it comes, up to `HELD_BYTES`.

        Of an iterator, which can be read only once, all are kept; those of a list are there anyway. With several
        processes no others are: a loader may speak with those of its peers when it begins anew, and all must do so.
        """
        fits = self._room == math.inf if several_processes() else self._room >= 0
        if self._held is None and fits and not isinstance(self.batches, (list, tuple)):
            self._held = []

    def one_pass(self) -> Iterator[Batch]:
        """One pass over all batches."""
        self.passes += 1
        if not self.progress:
            return self.from_first()
        from tqdm.auto import tqdm

        bar: dict[str, Any] = {"desc": f"{self.progress}, pass {self.passes}", "unit": " batches", "leave": False}
        return iter(tqdm(self.from_first(), total=length_hint(self.batches) or None, **bar))

    def from_first(self) -> Iterator[Batch]:
        """The batches from the first one on, as many as are asked for; no pass is counted."""
        if self._held is None:
            self._begin()
            yield from self.batches
            return
        yield from self._held
        if self._coming is None:
            self._begin()
            self._coming = iter(self.batches)
        for batch in self._coming:
            self._hold(batch)
            yield batch
        if self._held is not None:
            self._coming = iter(())  # some iterators begin anew after their end

    def _hold(self, batch: Batch) -> None:
        """Keep a copy of one more, or none of them where there is no room for it."""
        self._room -= bytes_of(batch)
        if self._room < 0:
            self._held = self._coming = None
        elif self._held is not None:
            self._held.append(copied(batch))
