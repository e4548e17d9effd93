"""`fitted_head`: a head that starts at random, trained alone for as long as the model is probed (docs/ranks.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from ..finite import is_finite
from ..meanwhile import meanwhile
from ..tuner.naming import trained_whole
from ..tuner.peft_names import ModulesToSaveWrapper
from ..tuner.tensors import outside_inference_mode
from ..values import is_int, is_number, require
from .batch import bytes_of
from .batches import as_batches, no_batches
from .gradients import frozen
from .inputs import Runner
from .loss import Loss, chosen_loss, scalar
from .passes import HELD_BYTES, Passes, evaluated
from .processes import processes, several_processes, sum_over_processes
from .ranks import HEAD_NAMES
from .wrappers import plain_model

PASSES = 2
"""Over the batches: few, as a head that has learned them by heart leaves no gradient."""


@contextmanager
def fitted_head(
    model: nn.Module,
    batches: Any,
    *,
    learning_rate: float,
    loss: Loss | None = None,
    modules: Sequence[str] | None = None,
    passes: int = PASSES,
) -> Iterator[None]:
    """Within the block the model's head is as linear probing leaves it; afterwards it is as it was before.

    Behind a head that starts at random the gradients of a loss lead along its random weights. `probe` within the block
    finds what is left to be learned when the head has done what it can alone:

        with fitted_head(model, batches, learning_rate=1e-2):
            found = probe(model, batches, examples=48)

    The head is trained with AdamW (no weight decay) at a rate that falls linearly to 0, in the order of the batches, on
    the frozen body in eval mode. Where the head lies behind the body, and the body's outputs fit into 256 MiB, the body
    runs each batch once. With `torch.distributed` initialised, each process fits to its own batches, and the heads are
    averaged: call it on every one of them.

    Args:
        model: a plain model, or one with adapters of PEFT.
        batches: training examples with labels, shuffled, as for `probe`: several hundred.
        learning_rate: of AdamW; that at which the head is going to be trained is a good one.
        loss: `loss(model, batch)`, a scalar; `model(**batch).loss` if None.
        modules: paths of the head's modules in the plain model. None is what PEFT trains whole: the model's
            `modules_to_save`, of a plain model `classifier`, `score` or `qa_outputs`.
        passes: over the batches.

    Raises:
        CalibrationError: no batches, no loss, a loss that does not depend on the head, or a rate that is too high.
        TypeError: batches of no such kind, or a `loss` that is no function.
        ValueError: an argument that is not allowed, or a model without such modules.
    """
    require(is_number(learning_rate) and learning_rate > 0, "learning_rate", learning_rate, "a finite number above 0")
    require(is_int(passes, 1), "passes", passes, "a whole number of at least 1")
    head = _head(model, modules)
    before = [parameter.detach().clone() for parameter in head]
    judge = chosen_loss(loss, model)
    try:
        _fit(model, head, Passes(as_batches(batches)), judge, float(learning_rate), int(passes))
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(head, before, strict=True):
                parameter.copy_(values)


def _head(model: nn.Module, modules: Sequence[str] | None) -> list[nn.Parameter]:
    """The parameters of the head; of a module that PEFT trains whole those of the active adapter's copy.

    Raises:
        ValueError: the model has no such modules.
    """
    plain = plain_model(model)
    if modules is not None:
        known = dict(plain.named_modules())
        if missing := [path for path in modules if path not in known]:
            raise ValueError(f"modules={modules!r} is not allowed: the model has no module {missing[0]!r}.")
        chosen = [known[path] for path in modules]
    else:
        chosen = [module for module in plain.modules() if isinstance(module, ModulesToSaveWrapper)]
        chosen = chosen or [child for name, child in plain.named_children() if trained_whole(name, HEAD_NAMES)]
    found = dict.fromkeys(
        parameter for module in chosen for parameter in _in_use(module).parameters() if parameter.is_floating_point()
    )
    if not found:
        raise ValueError(
            f"modules={modules!r} is not allowed: the model has no head with weights there. Name the paths of its "
            f"modules, of {', '.join(name for name, _ in plain.named_children())}."
        )
    return list(found)


def _in_use(module: nn.Module) -> nn.Module:
    if not isinstance(module, ModulesToSaveWrapper):
        return module
    copies = [module.modules_to_save[name] for name in module.active_adapters if name in module.modules_to_save]
    return copies[0] if copies else module.original_module


@outside_inference_mode()
def _fit(
    model: nn.Module, head: list[nn.Parameter], data: Passes, loss: Loss, learning_rate: float, passes: int
) -> None:
    data.hold()
    # in float32, whatever the head is in: small steps would be lost
    exact = [parameter.detach().float().clone() for parameter in head]
    optimizer = torch.optim.AdamW(exact, lr=learning_rate, weight_decay=0.0)
    with ExitStack() as stack:
        stack.enter_context(evaluated(model))
        stack.enter_context(frozen(model))
        stack.enter_context(meanwhile(head, requires_grad=True))
        stack.enter_context(torch.enable_grad())
        runner = stack.enter_context(Runner(model, "fitted_head"))
        body = stack.enter_context(_Body(model, head))
        size = len(data.batches) if isinstance(data.batches, Sized) else sum(1 for _ in data.from_first())
        for step, batch in enumerate(chain.from_iterable(data.one_pass() for _ in range(passes))):
            body.coming(step % size)
            value = scalar(loss(runner.model, runner.read(batch)))
            gradients = torch.autograd.grad(value, head, allow_unused=True) if value.requires_grad else [None]
            if all(gradient is None for gradient in gradients):
                raise CalibrationError("The loss does not depend on the head: is it computed from the model's output?")
            for weights, gradient in zip(exact, gradients, strict=True):
                weights.grad = None if gradient is None else gradient.float()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1 - step / (passes * size))
            optimizer.step()
            _set(head, exact)
        if not data.passes or not size:
            raise no_batches("fitted_head")
        if several_processes():
            sum_over_processes(*exact)
            for weights in exact:
                weights /= processes()
            _set(head, exact)
    if not all(map(is_finite, exact)):
        raise CalibrationError(
            "fitted_head: the fitted weights are not finite: the loss is not, or "
            f"learning_rate={learning_rate:g} is too high."
        )


@torch.no_grad()
def _set(head: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(head, values, strict=True):
        parameter.copy_(value)


class _Body:
    """The pretrained body before the head: what it gave of a batch is kept, and given again in the next passes.

    Args:
        model: plain or of PEFT.
        head: its parameters. Where one of them is in the body, or the outputs take too much memory, the body is run.
    """

    def __init__(self, model: nn.Module, head: Sequence[nn.Parameter]) -> None:
        plain: Any = plain_model(model)
        body = getattr(plain, getattr(plain, "base_model_prefix", "") or "", None)
        own = {id(one) for one in head}
        usable = isinstance(body, nn.Module) and not any(id(one) in own for one in body.parameters())
        self.body: Any = body if usable else None
        self.room = HELD_BYTES
        self.kept: dict[int, Any] = {}
        self._number = 0

    def __enter__(self) -> _Body:
        self._stack = ExitStack()
        if self.body is not None:
            self._run = self.body.forward
            own = "forward" in self.body.__dict__  # as Accelerate's hooks leave it
            self._stack.callback(self._put_back, own)
            self.body.forward = self._forward
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _put_back(self, own: bool) -> None:
        if own:
            self.body.forward = self._run
        else:
            del self.body.forward

    def coming(self, number: int) -> None:
        """The next forward pass is of the batch with this number."""
        self._number = number

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._number in self.kept:
            return self.kept[self._number]
        with torch.no_grad():
            output = self._run(*args, **kwargs)
        self.room -= bytes_of(output)
        if self.room >= 0:
            self.kept[self._number] = output
        return output
