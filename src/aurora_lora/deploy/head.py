"""`fitted_head`: a head that starts at random, trained alone for as long as the model is probed (docs/ranks.md)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from ..finite import is_finite
from ..temporary_attributes import called_as, temporary_attributes
from ..tuner.fields import is_list_of, is_name
from ..tuner.peft_names import ModulesToSaveWrapper
from ..tuner.tensors import outside_inference_mode
from ..values import is_int, require
from .at_rest import check_not_of_inference, without_cache
from .batch import Batch, bytes_of, copied
from .batches import as_batches, no_batches
from .gradients import frozen
from .inputs import Runner
from .loss import Loss, chosen_loss, scalar
from .passes import evaluated, seed_torch
from .processes import several_processes, sum_over_processes
from .ranks import is_head_name
from .wrappers import plain_model

ITERATIONS = 10
"""Of L-BFGS: few, as a head that has learned its examples by heart leaves no gradient."""
ROOM = 2**30
"""Bytes of batches and of the body's outputs that are kept."""


@contextmanager
def fitted_head(
    model: nn.Module,
    batches: Any,
    *,
    loss: Loss | None = None,
    modules: Sequence[str] | None = None,
    iterations: int = ITERATIONS,
) -> Iterator[None]:
    """Within the block the model's head is fitted to the batches, the body frozen; afterwards it is as it was before.

    Behind a head that starts at random the gradients of a loss lead along its random weights. `probe` within the block
    finds what is left to be learned when the head has done what it can alone:

        with fitted_head(model, batches):
            found = probe(model, batches, examples=48)

    L-BFGS lowers the mean loss over the batches, in eval mode: there is no learning rate, and the order of the batches
    does not matter. The body runs each batch once, and its outputs are kept, up to 1 GiB with the batches; what comes
    after is not read. Where the head lies within the body, the body runs again for each evaluation of the loss, a dozen
    times. With `torch.distributed` initialised, each process fits to its own batches, and the heads are averaged: call
    it on every one of them.

    Args:
        model: a plain model, or one with adapters of PEFT.
        batches: several hundred training examples with labels, as for `probe`.
        loss: `loss(model, batch)`, a scalar; `model(**batch).loss` if None.
        modules: paths of the head's modules in the plain model. None is what PEFT trains whole: the model's
            `modules_to_save`, of a plain model `classifier`, `score` or `qa_outputs`.
        iterations: of L-BFGS.

    Raises:
        CalibrationError: no batches, no loss, a loss that does not depend on the head or is not finite, or a head that
            is offloaded, sharded or made in `torch.inference_mode()`.
        TypeError: batches of no such kind, or a `loss` that is no function.
        ValueError: an argument that is not allowed, or a model without such modules.
    """
    require(is_int(iterations, 1), "iterations", iterations, "a whole number of at least 1")
    require(modules is None or is_list_of(is_name, modules), "modules", modules, "a list of paths of modules")
    source, judge = as_batches(batches), chosen_loss(loss, model)
    check_not_of_inference(model, "fitted_head")
    head = _head(model, modules)
    if any(parameter.is_meta or hasattr(parameter, "full_tensor") for parameter in head):
        raise CalibrationError("fitted_head needs the whole head in memory, and it is offloaded or sharded.")
    before = [parameter.detach().clone() for parameter in head]
    try:
        _fit(model, head, source, judge, int(iterations))
        yield
    finally:
        _set(head, before)


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
        chosen = chosen or [child for name, child in plain.named_children() if is_head_name(name)]
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


@torch.no_grad()
def _set(head: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(head, values, strict=True):
        parameter.copy_(value)
    torch.clear_autocast_cache()  # it keeps what it cast of the earlier values


@outside_inference_mode()
def _fit(model: nn.Module, head: list[nn.Parameter], batches: Iterable[Batch], loss: Loss, iterations: int) -> None:
    # in float32, whatever the head is in: small steps would be lost
    device = head[0].device
    exact = [parameter.detach().to(device, torch.float32, copy=True) for parameter in head]
    failure: CalibrationError | None = None
    with ExitStack() as stack:
        stack.enter_context(evaluated(model))
        stack.enter_context(frozen(model))
        stack.enter_context(temporary_attributes(head, requires_grad=True))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(without_cache(model))
        runner = stack.enter_context(Runner(model, "fitted_head"))
        body = stack.enter_context(_Body(model, head))
        try:
            kept = body.read(batches, runner, loss)
            _descend(exact, head, lambda: _gradients(head, body.again(kept, runner), runner.model, loss), iterations)
        except CalibrationError as error:  # raised when the other processes have what they wait for
            failure = error
    if several_processes():
        share = torch.tensor(float(failure is None), device=device)
        for weights in exact:
            weights.nan_to_num_().mul_(share)
        sum_over_processes(share, *exact)
        for weights in exact:
            weights /= share.clamp(min=1)
    if failure is not None:
        raise failure
    _set(head, exact)


def _descend(
    exact: list[Tensor], head: Sequence[nn.Parameter], gradients: Callable[[], tuple[float, list[Tensor]]], steps: int
) -> None:
    """L-BFGS on `exact`, the head following."""
    optimizer = torch.optim.LBFGS(exact, max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> float:
        _set(head, exact)
        value, found = gradients()
        for weights, gradient in zip(exact, found, strict=True):
            weights.grad = gradient.to(weights)
        return value

    value: Any = optimizer.step(closure)  # type: ignore[no-untyped-call]
    if not (math.isfinite(value) and all(map(is_finite, exact))):
        raise CalibrationError("fitted_head: the loss over the batches is not finite.")


def _gradients(
    head: Sequence[nn.Parameter], batches: Iterable[Any], model: nn.Module, loss: Loss
) -> tuple[float, list[Tensor]]:
    """The mean loss over batches, and its gradient with respect to each parameter of the head."""
    total, count, depends = 0.0, 0, False
    sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in head]
    for inputs in batches:
        value = scalar(loss(model, inputs))
        found = torch.autograd.grad(value, head, allow_unused=True) if value.requires_grad else [None] * len(head)
        for one, gradient in zip(sums, found, strict=True):
            if gradient is not None:
                one += gradient
                depends = True
        total += float(value)
        count += 1
    if not depends:
        raise CalibrationError("The loss does not depend on the head: is it computed from the model's output?")
    return total / count, [one / count for one in sums]


class _Body:
    """The pretrained body before the head: what it gave of each batch is kept, and given again.

    Args:
        model: plain or of PEFT.
        head: its parameters. Where one of them is in the body, it runs each time.
    """

    def __init__(self, model: nn.Module, head: Sequence[nn.Parameter]) -> None:
        plain: Any = plain_model(model)
        body = getattr(plain, getattr(plain, "base_model_prefix", "") or "", None)
        own = {id(one) for one in head}
        usable = isinstance(body, nn.Module) and not any(id(one) in own for one in body.parameters())
        self._body: Any = body if usable else None
        self._outputs: list[list[Any]] = []
        self._replayed: Iterator[Any] | None = None

    def __enter__(self) -> _Body:
        self._stack = ExitStack()
        if self._body is not None:
            self._run = self._body.forward
            self._stack.enter_context(called_as([(self._body, self._forward)]))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def read(self, batches: Iterable[Batch], runner: Runner, loss: Loss) -> list[Any]:
        """The batches, as many as there is `ROOM` for, and at least one; the body runs each.

        Raises:
            CalibrationError: there is none.
        """
        kept: list[Any] = []
        room = ROOM
        for number, batch in enumerate(batches):
            inputs = copied(batch)
            self._outputs.append([])
            if self._body is not None:
                seed_torch(runner.model, number)
                with torch.no_grad():
                    loss(runner.model, runner.read(batch))
            needed, size = bytes_of(self._outputs[-1]), bytes_of(inputs)
            if needed >= sys.maxsize:  # of a kind that cannot be kept
                self._stack.close()
                self._body, needed = None, 0
            room -= needed + (size if size < sys.maxsize else 0)  # what cannot be counted is small
            if room < 0 and kept:
                break
            kept.append(inputs)
        if not kept:
            raise no_batches("fitted_head")
        return kept

    def again(self, kept: Sequence[Any], runner: Runner) -> Iterator[Any]:
        """The batches for another evaluation of the loss, behind what the body gave of them."""
        for number, (batch, outputs) in enumerate(zip(kept, self._outputs, strict=False)):
            self._replayed = iter(outputs)
            inputs = runner.read(batch)
            seed_torch(runner.model, number)  # what a loss or a head draws is the same in each evaluation
            yield inputs

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._replayed is not None:
            return copied(next(self._replayed))  # a head may change it in place
        with torch.no_grad():
            output = self._run(*args, **kwargs)
        self._outputs[-1].append(output)
        return copied(output)
