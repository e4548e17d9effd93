"""What is compared: the frozen base, PEFT's LoRA and DoRA, and the forms of AuroRA."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, get_peft_model
from torch import nn

from ...errors import UserError, unknown
from ...tuner import AuroraConfig

if TYPE_CHECKING:
    from .workloads import Case

REFERENCE = "lora-r8"
"""Training steps are compared with this variant's."""

BASE = "frozen"
"""Inference is compared with this variant's, which is then the base model as it is."""


@dataclass(frozen=True)
class Variant:
    """One way to adapt the base model.

    Args:
        name: on the command line and in results.
        label: in tables and figures.
        config: makes the PEFT configuration from its common fields; None for no adapter.
        trains: whether its training step is measured; not where it is another variant's.
        infers: whether its inference is measured.
        merged: whether inference is that of the merged model.
    """

    name: str
    label: str
    config: Callable[..., Any] | None
    trains: bool = True
    infers: bool = True
    merged: bool = False


def _lora(r: int, **options: Any) -> Callable[..., Any]:
    def config(random: bool, **common: Any) -> Any:
        return LoraConfig(r=r, lora_alpha=2 * r, init_lora_weights=not random, **common, **options)

    return config


def _aurora(r: int, **options: Any) -> Callable[..., Any]:
    def config(random: bool, **common: Any) -> Any:
        return AuroraConfig(r=r, alpha=2 * r, init_weights=False if random else "identity", **common, **options)

    return config


def lora(r: int) -> Variant:
    """PEFT's LoRA of rank r."""
    return Variant(f"lora-r{r}", f"LoRA r={r}", _lora(r))


def aurora(r: int) -> Variant:
    """AuroRA of rank r in its dynamic form."""
    return Variant(f"aurora-r{r}", f"AuroRA dynamic r={r}", _aurora(r, eval_form="dynamic"))


_ALL = (
    Variant(BASE, "frozen base", None),
    lora(2),
    lora(8),
    # the same once more: how far noise alone goes (in inference the merged model shows it)
    Variant("lora-r8-again", "LoRA r=8, again", _lora(8), infers=False),
    lora(16),
    Variant("dora-r8", "DoRA r=8", _lora(8, use_dora=True)),
    Variant("aurora-dynamic", "AuroRA dynamic r=2", _aurora(2, eval_form="dynamic")),
    Variant("aurora-static", "AuroRA static r=2", _aurora(2, train_form="static")),
    Variant("aurora-calibrated", "AuroRA calibrated r=2", _aurora(2, calibrated=True), trains=False),
    Variant("aurora-merged", "AuroRA merged", _aurora(2, calibrated=True), trains=False, merged=True),
)
VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _ALL}


def choose(names: Iterable[str]) -> list[Variant]:
    """The variants of these names, in the order of `VARIANTS`, with the two that others are compared with.

    Raises:
        UserError: an unknown name.
    """
    wanted = {BASE, REFERENCE}
    for name in names:
        if name not in VARIANTS:
            raise UserError(f"variant '{name}': {unknown('variant', VARIANTS, name)}")
        wanted.add(name)
    return [variant for name, variant in VARIANTS.items() if name in wanted]


def build(variant: Variant, case: Case, *, training: bool) -> nn.Module:
    """The adapted model, in training or eval mode; frozen weights are shared with `case.base`.

    For training, adapters start as their methods start them; for inference they are random, so that none is a no-op.
    The frozen base is trained just enough for a backward pass as deep as the adapters': see `frozen`.
    """
    if variant.config is None:
        return frozen(case) if training else share(case.base).eval()
    # merging writes into the adapted layers
    base = share(case.base, but=case.adapted_layers() if variant.merged else ())
    heads = {"modules_to_save": list(case.heads)} if case.heads and training else {}
    config = variant.config(random=not training, target_modules=list(case.targets), **heads)
    model: nn.Module = get_peft_model(base, config)
    if variant.merged:
        model = model.merge_and_unload()  # type: ignore[operator]
    return model.train(training)


def frozen(case: Case) -> nn.Module:
    """The base model with only its head, if it has one, and the biases of the first adapted block trained.

    Where those layers have no bias they get one of zeros. The backward pass then reaches as deep as with adapters. A
    case whose input asks for a gradient needs no such help, and nothing is trained.
    """
    model = share(case.base)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in case.heads:
        model.set_submodule(name, copy.deepcopy(case.base.get_submodule(name)).requires_grad_(True))
    if not case.input_has_gradient:
        for path in case.first_block():
            layer: Any = model.get_submodule(path)
            start = layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach().clone()
            layer.bias = nn.Parameter(start)
    return model.train()


def share(base: nn.Module, but: Iterable[nn.Module] = ()) -> nn.Module:
    """A copy of a model that has the very weights of the first, except those of the modules in `but`."""
    own = {id(tensor) for module in but for tensor in (*module.parameters(), *module.buffers())}
    tensors = (*base.parameters(), *base.buffers())
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors if id(tensor) not in own}
    return copy.deepcopy(base, memo)


__all__ = ["BASE", "REFERENCE", "VARIANTS", "Variant", "aurora", "build", "choose", "frozen", "lora", "share"]
