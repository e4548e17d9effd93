"""The axes of scaling: exponents, what an adapter adds, and that each axis varies what it is named for."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from aurora_lora.lab.bench import scaling
from aurora_lora.lab.bench.scaling import AURORA, AXES, BASE, LORA, fit, measure_axis


def test_the_exponent_is_that_of_the_cost() -> None:
    found = fit([1, 2, 4], [3, 12, 48])
    assert found is not None
    assert found["exponent"] == pytest.approx(2)
    assert found["standard_error"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("costs", [[1.0, 2.0], [1.0, 0.0, 2.0], [1.0, 2.0, -1.0]])
def test_no_fit(costs: list[float]) -> None:
    assert fit(range(1, len(costs) + 1), costs) is None


def test_what_an_adapter_adds_is_its_time_less_that_of_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(actions: dict[str, float], *_: Any, **__: Any) -> dict[str, list[float]]:
        return {name: [value] * 3 for name, value in actions.items()}

    def made_up(value: int, *_: Any) -> Any:
        return {BASE: 1.0 * value, LORA: 3.0 * value, AURORA: value + 1.0 * value**2}

    monkeypatch.setattr(scaling, "interleave", seconds)
    axis = replace(AXES[0], quick=(2, 4, 8), actions=made_up)
    found = measure_axis(axis, 3, "cpu", torch.float32, lambda: None, quick=True)
    point = found["points"][1]
    assert point["value"] == 4
    assert point["seconds"] == {BASE: 4, LORA: 12, AURORA: 20}
    assert {name: added["median"] for name, added in point["added"].items()} == {LORA: 8, AURORA: 16}
    exponents = {name: one["exponent"] for name, one in found["fits"]["added"].items()}
    assert exponents == pytest.approx({LORA: 1, AURORA: 2})


@pytest.mark.parametrize("name", ["tokens", "width", "rank", "layers"])
def test_an_axis_varies_what_it_is_named_for(name: str) -> None:
    (axis,) = (axis for axis in AXES if axis.name == name)
    actions = axis.actions(12, "cpu", torch.float32)
    for series, ending in ((LORA, "lora_A.default.weight"), (AURORA, "aurora_A.default")):
        step: Any = actions[series]
        A = [value for path, value in step.model.named_parameters() if path.endswith(ending)]
        rank, width = A[0].shape
        sizes = {"tokens": step.case.batch(0)["x"].shape[-2], "width": width, "rank": rank, "layers": len(A)}
        assert [quantity for quantity, size in sizes.items() if size == 12] == [name]


def test_the_adapters_of_a_mixed_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    (axis,) = (axis for axis in AXES if axis.name == "adapters")
    monkeypatch.setattr(scaling, "_on_examples", lambda model, case, adapter_names=(): (model, adapter_names))
    found: Any = axis.actions(3, "cpu", torch.float32)
    assert found[BASE][1] == ()
    for series in (LORA, AURORA):
        model, names = found[series]
        assert len(names) == 32
        assert set(names) == set(model.peft_config) == {"adapter0", "adapter1", "adapter2"}
