"""Costs on paper: the paper's parameter counts, and the formulas against what is measured on a layer that fits here."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from aurora_lora.lab.bench.analytic_cost import LLAMA3_8B, LLAMA3_70B, METHODS, CostedMethod, costs
from aurora_lora.lab.bench.variants import VARIANTS, build, share
from aurora_lora.lab.bench.workloads import linear_case
from aurora_lora.lab.saved_tensors import count_saved
from aurora_lora.ops import dispatch

LORA8, LORA32, AURORA = METHODS


def test_parameters() -> None:
    found = {(entry["model"]["name"], entry["method"]): entry for entry in costs({"lora": 14, "aurora": 33})}
    assert found["LLaMA3-8B", "AuroRA r=2"]["parameters"] == 3_542_144
    assert found["LLaMA3-8B", "LoRA r=32"]["parameters"] == 32 * 32 * 55_296
    assert found["LLaMA3-8B", "LoRA r=8"]["calls"] == 14 * 5 * 32
    assert LLAMA3_8B.parameters() == 8_030_261_248
    assert LLAMA3_70B.parameters() == 70_553_706_496
    assert len(found) == 6


def test_a_step_on_paper() -> None:
    found = {(entry["model"]["name"], entry["method"]): entry for entry in costs({"lora": 14, "aurora": 33})}
    lora, aurora = (found["LLaMA3-8B", name] for name in ("LoRA r=8", "AuroRA r=2"))
    # weights, gradients and the two moments, 4 bytes a number
    assert aurora["state_bytes"] == 4 * 4 * 3_542_144
    # x in bfloat16, in 32 blocks: that of q, k and v, that of up, and that of down
    for entry in (lora, aurora):
        assert entry["saved_bytes_1k_with_x"] - entry["saved_bytes_1k"] == 1000 * 32 * 2 * (4096 + 4096 + 14336)
    # an entry of A or B takes part in three products of a step, one of the frozen base in two; no embedding, no norms
    base = 8_030_261_248 - 128_256 * 4096 - 65 * 4096
    assert lora["flops_of_base"] == pytest.approx(3 * lora["parameters"] / (2 * base))


def test_flops_of_sigma() -> None:
    """By hand, for rank 2, 8 basis functions and cubic pieces: what AuroRA adds to a LoRA of its rank."""
    one_channel_forward = 2 + 4 + 48 + 16 + 2  # tanh twice, H, Horner's scheme, W_s, sum and place
    one_channel_backward = 2 * 3 + 8 + 2 * 48 + 32 + 3  # tanh', H twice, both schemes, W_s and the slope, the rest
    added = AURORA.flops(64, 64) - CostedMethod("LoRA r=2", 2, False).flops(64, 64)
    assert added == 2 * (one_channel_forward + one_channel_backward)


@pytest.mark.parametrize(("variant", "method"), [("lora-r8", LORA8), ("aurora-dynamic", AURORA)])
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("operator", [False, True])
def test_kept_in_the_rank_space(
    variant: str,
    method: CostedMethod,
    dtype: torch.dtype,
    width: int,
    operator: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What grows with the tokens, beside x."""
    if operator:
        monkeypatch.setattr(dispatch, "triton_serves", lambda *_: True)
    sizes = []
    for tokens in (64, 192):
        case = linear_case(tokens, 32, dtype=dtype)
        model = build(VARIANTS[variant], case, training=True).to(dtype)
        x = case.batch(0)["x"]
        sizes.append(count_saved(lambda model=model, x=x: model(x), [x]).bytes())
    assert (sizes[1] - sizes[0]) / 128 == method.saved_bytes(width, operator=operator)


@pytest.mark.parametrize(("variant", "method"), [("lora-r8", LORA8), ("aurora-dynamic", AURORA)])
def test_flops(variant: str, method: CostedMethod) -> None:
    """The products of a step; of AuroRA's, those with A and B are all but a constant number for each token."""

    def flops(d: int, name: str) -> int:
        case = linear_case(16, d)
        model = share(case.base) if name == "frozen" else build(VARIANTS[name], case, training=True)
        with FlopCounterMode(display=False) as counter:
            for parameter in model.parameters() if name == "frozen" else ():
                parameter.requires_grad_(False)
            model(case.batch(0)["x"]).sum().backward()
        return counter.get_total_flops()

    added = {d: (flops(d, variant) - flops(d, "frozen")) / 16 for d in (32, 64)}
    assert added[64] - added[32] == method.flops(64, 64) - method.flops(32, 32)
    assert added[64] <= method.flops(64, 64)
