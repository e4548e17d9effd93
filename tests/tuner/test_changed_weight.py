"""AuroRA and another method's adapter on the same layers: merged and taken out in any order, as diffusers does."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from aurora_lora import AuroraConfig, AuroraLayer
from aurora_lora.errors import MergeError

X = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
AURORA = AuroraConfig(target_modules=["0"], eval_form="static", init_weights=False)
SECOND = AuroraConfig(target_modules=["0"], r=3, eval_form="static", init_weights=False)
LORA = LoraConfig(target_modules=["0"], r=2, init_lora_weights=False)
CONFIGS = {"mine": AURORA, "more": SECOND, "lcm": LORA}

UNDER, OVER = ["lcm", "mine", "more"], ["mine", "more", "lcm"]


def adapted(names: list[str], base: nn.Module | None = None) -> Any:
    """A model with one adapter put over another, in this order, as `add_adapter` of diffusers does."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(64, 32)) if base is None else base
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are several
        for name in names:
            model = inject_adapter_in_model(copy.deepcopy(CONFIGS[name]), model, adapter_name=name)
    for layer in layers(model):
        layer.set_adapter([name for name in names if name in vars(layer)["scaling"]])
    return model.eval()


def layers(model: nn.Module) -> list[Any]:
    """From the outside in."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def base_of(model: Any) -> Any:
    return model[0].get_base_layer()


def merge(model: nn.Module, names: list[str]) -> None:
    for name in names:
        for layer in layers(model):
            layer.merge(adapter_names=[name])


def unmerge(model: nn.Module, order: str) -> None:
    found = layers(model)
    for layer in found if order == "parents first" else reversed(found):
        layer.unmerge()


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    result: Tensor = model(X)
    return result


@pytest.mark.parametrize("order", ["parents first", "children first"])
@pytest.mark.parametrize(
    "merged", [["lcm", "mine"], ["mine", "lcm"], ["more", "lcm", "mine"], ["mine", "more", "lcm"], ["lcm"], ["mine"]]
)
@pytest.mark.parametrize("stack", [UNDER, OVER], ids=["under", "over"])
@pytest.mark.filterwarnings("ignore:Already ")
def test_any_order(stack: list[str], merged: list[str], order: str) -> None:
    model = adapted(stack)
    before, weight = output(model), base_of(model).weight.detach().clone()
    expected = weight.clone()
    for layer in layers(model):
        for name in merged:
            if name in layer.scaling:
                expected += layer.get_delta_weight(name)
    merge(model, merged)
    torch.testing.assert_close(base_of(model).weight, expected)
    unmerge(model, order)
    torch.testing.assert_close(base_of(model).weight, weight)
    torch.testing.assert_close(output(model), before)
    if merged == ["mine"]:
        assert torch.equal(base_of(model).weight, weight)


@pytest.mark.parametrize("while_merged", ["nothing", "cast", "copied"])
def test_another_is_taken_out_first(while_merged: str) -> None:
    """What had been merged before stays out."""
    model = adapted(UNDER)
    weight = base_of(model).weight.detach().clone()
    merge(model, ["lcm", "mine"])
    if while_merged == "cast":
        model.to(torch.float64)
    elif while_merged == "copied":
        model = copy.deepcopy(model)
    outer, inner = layers(model)
    inner.unmerge()
    outer.unmerge()
    torch.testing.assert_close(base_of(model).weight.float(), weight)


def test_a_refused_merge_after_another_changes_nothing() -> None:
    model = adapted(UNDER)
    weight = base_of(model).weight.detach().clone()
    merge(model, ["mine", "lcm"])
    merged = base_of(model).weight.detach().clone()
    outer = layers(model)[0]
    B = outer.aurora_B["more"].detach().clone()
    outer.aurora_B["more"].data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaNs detected"):
        outer.merge(safe_merge=True, adapter_names=["more"])
    assert torch.equal(base_of(model).weight, merged)
    outer.aurora_B["more"].data = B
    unmerge(model, "parents first")
    torch.testing.assert_close(base_of(model).weight, weight)


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("back", [True, False])
def test_a_cast_is_no_change(cast: torch.dtype, back: bool) -> None:
    """The original comes back, and not what the cast has left of the merged weight."""
    model = adapted(["mine"])
    weight = base_of(model).weight.detach().clone()
    merge(model, ["mine"])
    model.to(cast)
    if back:
        model.to(torch.float32)
    unmerge(model, "parents first")
    assert torch.equal(base_of(model).weight, weight if back else weight.to(cast))


@pytest.mark.parametrize(
    "casts",
    [(torch.float16, torch.bfloat16, torch.float32), (torch.float8_e4m3fn, torch.float32), (torch.float8_e4m3fn,)],
)
def test_several_casts_are_no_change(casts: tuple[torch.dtype, ...]) -> None:
    model = adapted(["mine"])
    weight = base_of(model).weight.detach().clone()
    merge(model, ["mine"])
    for dtype in casts:
        model.to(dtype)
    unmerge(model, "parents first")
    assert torch.equal(base_of(model).weight.float(), weight.to(casts[-1]).float())


@pytest.mark.parametrize("copied", ["not", "in memory", "in a file"])
@pytest.mark.parametrize("written", ["by loading", "by another parameter", "by an optimizer"])
@pytest.mark.filterwarnings("ignore:The base weight was changed while merged")
def test_what_is_written_to_the_parameter_is_undone(copied: str, written: str, tmp_path: Path) -> None:
    model = adapted(["mine"])
    before = copy.deepcopy(base_of(model).state_dict())
    merge(model, ["mine"])
    if copied == "in memory":
        model = copy.deepcopy(model)
    elif copied == "in a file":
        torch.save(model, tmp_path / "model.pt")
        model = torch.load(tmp_path / "model.pt", weights_only=False)
    base = base_of(model)
    if written == "by an optimizer":
        base.weight.grad = torch.ones_like(base.weight)
        torch.optim.SGD([base.weight], lr=0.1).step()
    else:
        base.load_state_dict(before, assign=written == "by another parameter")
    unmerge(model, "parents first")
    assert torch.equal(base_of(model).weight, before["weight"])


@pytest.mark.parametrize("stack", [UNDER, OVER], ids=["under", "over"])
def test_a_tied_weight_stays_as_it_is(stack: list[str]) -> None:
    """A third merge would write another method's update into the parameter that both modules have."""
    model = adapted(stack)
    outer = next(layer for layer in layers(model) if isinstance(layer, AuroraLayer))
    outer.weight_is_shared = True  # as AuroraModel finds of tied embeddings
    shared = base_of(model).weight
    weight = shared.detach().clone()
    merge(model, ["mine", "lcm"])
    assert torch.equal(shared, weight)
    with pytest.raises(MergeError, match="tied to that of another module: unmerge that first"):
        outer.merge(adapter_names=["more"])
    assert torch.equal(shared, weight)
    unmerge(model, "parents first")
    torch.testing.assert_close(base_of(model).weight, weight)
    assert base_of(model).weight is shared


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    model = adapted(OVER, nn.Sequential(nn.Linear(64, 32, dtype=dtype)))
    weight = base_of(model).weight.detach().clone()
    merge(model, ["lcm", "mine"])
    unmerge(model, "children first")
    torch.testing.assert_close(base_of(model).weight, weight, atol=3e-2, rtol=0)


def test_in_a_peft_model() -> None:
    """LoRA is put over AuroRA, and merged by itself."""
    torch.manual_seed(0)
    model: Any = get_peft_model(nn.Sequential(nn.Linear(64, 32)), copy.deepcopy(AURORA), adapter_name="mine").eval()
    before = output(model)
    weight = model.base_model.model[0].get_base_layer().weight.detach().clone()
    model.merge_adapter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inject_adapter_in_model(LORA, model.base_model.model, adapter_name="lcm")
    lora = model.base_model.model[0]
    assert not isinstance(lora, AuroraLayer)
    lora.merge()
    lora.base_layer.unmerge()
    lora.unmerge()
    torch.testing.assert_close(lora.get_base_layer().weight, weight)
    with torch.no_grad():
        torch.testing.assert_close(lora.base_layer(X), before)


@pytest.mark.filterwarnings("ignore:Merge lora module", "ignore:Unmerge lora module", "ignore:Already unmerged")
@pytest.mark.parametrize("order", ["parents first", "children first"])
@pytest.mark.parametrize(("kind", "stack"), [("8bit", UNDER[:2]), ("nf4", UNDER[:2]), ("nf4", OVER[::2])])
def test_quantised(kind: str, stack: list[str], order: str) -> None:
    """Up to the rounding of both merges; either update is more than twice as large.

    PEFT puts no LoRA over AuroRA on 8 bits, and takes none out of what bitsandbytes has packed for a CPU since.
    """
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    layer = {
        "8bit": lambda: bnb.nn.Linear8bitLt(64, 96, has_fp16_weights=False),
        "nf4": lambda: bnb.nn.Linear4bit(64, 96, quant_type="nf4"),
    }[kind]()
    base: Any = nn.Sequential(layer).to("cpu")  # which quantises
    setattr(base, "is_loaded_in_8bit" if kind == "8bit" else "is_loaded_in_4bit", True)
    model = adapted(stack, base)
    output(model)
    aurora = next(layer for layer in layers(model) if isinstance(layer, AuroraLayer))
    weight = aurora.get_base_weight().clone()
    merge(model, ["mine", "lcm"])
    unmerge(model, order)
    least = min(layer.get_delta_weight(name).norm() for layer in layers(model) for name in layer.scaling)
    assert (aurora.get_base_weight() - weight).norm() < 0.5 * least
