"""The loss's gradient with respect to frozen weights, seen through a few columns on its way past.

dW = G = sum g x^T over all vectors x that reach a layer, with g the gradient of its output, and so `G Omega = sum g
(x^T Omega)` and `G^T Q = sum x (g^T Q)` need no dW, and no weight that requires a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from ..temporary_attributes import called_as, temporary_attributes
from ..tuner import aurora_layers
from ..tuner.adapters import plain_path
from ..tuner.linear import has_linear_shape
from ..tuner.peft_names import AuxiliaryTrainingWrapper, BaseTunerLayer
from .inputs import evaluated, output_embeddings, plain_model, trained_state

LOSS_SCALES = (2.0**14, 2.0**10, 2.0**6, 2.0**2, 1.0)
"""What to multiply a loss by before its backward pass: the first with which all gradients are finite.

float16 ends at 6e-8, and a gradient of the mean over thousands of tokens is often less; in other dtypes a power of two
changes nothing.
"""


def is_weight(module: nn.Module) -> bool:
    """Whether it is a linear layer, quantised or not, or a Conv1D of Transformers. Not where the weight is computed
    from others, as by weight normalisation: an adapter there cannot be merged."""
    own = (*module._parameters, *module._buffers)
    if isinstance(getattr(module, "weight", None), Tensor) and "weight" not in own:
        return False
    alone = isinstance(module, nn.Linear) or not any(True for _ in module.children())
    return alone and has_linear_shape(module)


def frozen_linears(model: Any) -> dict[str, nn.Module]:
    """The linear layers that an adapter could be put beside, by their path in the plain model.

    A module at several paths is there once, by the first. Left out are the adapters' own, those that are trained whole
    (`modules_to_save`), and the output layer of a language model.
    """
    inner: Any = plain_model(model)
    output = output_embeddings(inner)
    found: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()

    def walk(module: nn.Module, path: str) -> None:
        if module in seen:  # at another path: PEFT knows the first alone
            return
        seen.add(module)
        if isinstance(module, AuxiliaryTrainingWrapper) or module is output:
            return
        if isinstance(module, BaseTunerLayer):
            walk(module.get_base_layer(), path)
        elif is_weight(module):
            found[path] = module
        else:
            for name, child in module.named_children():
                walk(child, f"{path}.{name}" if path else name)

    walk(inner, "")
    return {plain_path(inner, path): layer for path, layer in found.items()}


# -------------------------------------------------------------------- on its way past

See = Callable[[Tensor, Tensor], None]


class _Seen(torch.autograd.Function):
    """The output of a layer, changed in nothing; when its gradient comes, it is shown to `see(x, g)`.

    The input x is kept as autograd keeps things: gradient checkpointing drops it, and computes it again.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, tracked: Tensor, see: See) -> Tensor:
        ctx.save_for_backward(x)
        ctx.see = see
        ctx.mark_dirty(y)  # no view of it, which nothing could change in place
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        with torch.autocast(g.device.type, enabled=False):
            ctx.see(*ctx.saved_tensors, g)
        return g, None, None, None


@contextmanager
def watched_gradients(layers: Sequence[tuple[nn.Module, See]]) -> Iterator[Callable[[Tensor], Any]]:
    """Within the block, the function that it gives runs a backward pass from a loss, in which each layer shows its
    input and the gradient of its output; no `.grad` changes, in the model or outside."""
    tracked = torch.empty(0, requires_grad=True)

    def hook(see: See, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> Any:
        # a router that is a linear layer may give more than a tensor: which experts it chose
        if not torch.is_grad_enabled() or not isinstance(y, Tensor):
            return y
        x = args[0] if args else next(iter(kwargs.values()))
        if y._is_view() and (y.grad_fn is None or isinstance(y.grad_fn, BackwardCFunction)):
            y = y.clone()  # of bitsandbytes' int8: not to be changed in place
        return _Seen.apply(y, x.detach(), tracked, see)  # type: ignore[no-untyped-call, unused-ignore]

    with ExitStack() as stack:
        for module, see in layers:
            stack.callback(module.register_forward_hook(partial(hook, see), with_kwargs=True).remove)
        yield lambda loss: torch.autograd.grad(loss, [tracked], allow_unused=True)


@contextmanager
def activation_gradients(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and in the form that it is trained in, with gradients for activations and none for
    weights; what it checkpoints in training is checkpointed here as well."""
    layers = [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
    ]
    within = {part for layer in layers for part in layer.modules() if part is not layer}
    forwards = [
        (layer, partial(checkpoint, layer.forward, use_reentrant=False)) for layer in layers if layer not in within
    ]
    every: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(one): one for one in every if getattr(one, "use_cache", False)}
    trained = [one for one in model.parameters() if one.requires_grad]
    with ExitStack() as stack:
        stack.enter_context(trained_state(model) if any(aurora_layers(model)) else evaluated(model))
        stack.enter_context(torch.enable_grad())
        for parameter in trained:
            stack.callback(parameter.requires_grad_, True)
            parameter.requires_grad_(False)
        if forwards:  # a layer that is computed again would add its keys and values to a cache once more
            stack.enter_context(temporary_attributes(configs.values(), use_cache=False))
            stack.enter_context(called_as(forwards))
        yield
