"""A model as it stands, for passes with gradients of its activations: in eval mode, and checkpointed where it is so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import CalibrationError
from ..temporary_attributes import temporary_attributes
from ..tuner import aurora_layers
from .calibrate import trained_state
from .gradients import frozen
from .passes import evaluated
from .wrappers import input_embeddings, plain_model

FUNCTION = "_gradient_checkpointing_func"
"""What Transformers calls the function that checkpoints, in each module that it marks."""


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """The model as it stands, in eval mode, with gradients for activations and none for weights."""
    with ExitStack() as stack:
        stack.enter_context(trained_state(model) if any(aurora_layers(model)) else evaluated(model))
        stack.enter_context(frozen(model))
        stack.enter_context(torch.enable_grad())
        layers = checkpointed(model)
        for layer in layers:
            stack.enter_context(_checkpointed_at_rest(layer))
        if layers:
            stack.enter_context(without_cache(model))
        embeddings = input_embeddings(plain_model(model)) if any(map(_is_marked, model.modules())) else None
        if embeddings is not None:  # reentrant checkpointing needs an input with a gradient
            stack.callback(embeddings.register_forward_hook(_tracked).remove)
        yield


def checkpointed(model: nn.Module) -> list[Any]:
    """The modules that Transformers checkpoints, those around them and within them left out.

    Of its checkpointed layers the outermost; their parts, as the attention of T5, may bear the mark as well. In models
    whose own code checkpoints, the innermost that have the function for it.
    """
    marked = [module for module in model.modules() if _is_marked(module) and hasattr(module, FUNCTION)]
    layers = [one for one in marked if isinstance(one, GradientCheckpointingLayer)]
    within = {part for layer in layers for part in layer.modules() if part is not layer}
    outermost = [layer for layer in layers if layer not in within]
    taken = {*outermost, *within}
    others = set(marked) - taken
    around = {one for one in others if any(part is not one and part in taken | others for part in one.modules())}
    return [one for one in marked if one in outermost or one in others - around]


def _is_marked(module: nn.Module) -> bool:
    return bool(getattr(module, "gradient_checkpointing", False))


def is_reentrant(model: nn.Module) -> bool:
    """Whether its checkpointing is of the kind that gives no gradient unless an input of a layer has one."""
    functions = (getattr(layer, FUNCTION) for layer in checkpointed(model))
    return any(getattr(function, "keywords", {}).get("use_reentrant", False) for function in functions)


def _checkpointed_at_rest(layer: Any) -> AbstractContextManager[None]:
    """A layer that is checkpointed, as Transformers does in train mode alone, and computed as in eval mode."""
    layer.training = True  # `evaluated` puts it back
    original = layer._gradient_checkpointing_func

    def in_eval_mode(function: Callable[..., Any], *inputs: Any) -> Any:
        layer.training = False
        try:
            return function(*inputs)
        finally:
            layer.training = True

    def checkpoint(function: Callable[..., Any], *inputs: Any) -> Any:
        return original(partial(in_eval_mode, function), *inputs)

    return temporary_attributes([layer], _gradient_checkpointing_func=checkpoint)


def without_cache(model: nn.Module) -> AbstractContextManager[None]:
    """No keys and values of earlier tokens: nobody reads them, and a layer that is computed again would add them once
    more."""
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    using = {id(one): one for one in configs if getattr(one, "use_cache", False)}
    return temporary_attributes(using.values(), use_cache=False)


def check_not_of_inference(model: nn.Module, action: str) -> None:
    """Raise a CalibrationError for weights that no gradient can be had behind.

    Args:
        model: whose weights are looked at.
        action: the function that needs gradients.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise CalibrationError(
                f"{action} needs gradients, and {name} was made in torch.inference_mode(), which rules them out: make "
                "or load the model outside of it."
            )


def _tracked(_: nn.Module, args: Any, output: Any) -> Any:
    if isinstance(output, Tensor) and output.is_floating_point() and torch.is_grad_enabled():
        # no leaf, as Transformers' own hook gives: some models add to the embeddings in place (GIT, BLIP)
        return output.detach().requires_grad_().clone() if output.is_leaf else output
    return output
