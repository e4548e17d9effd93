"""PiSSA's and MiLoRA's start: decomposed once, kept beside the adapter and in the run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from aurora_lora.errors import CheckpointError
from aurora_lora.methods import METHODS
from aurora_lora.methods.singular import START_FILE, SingularMethod

MakeModel = Callable[[str], Any]


def made(make_model: MakeModel, name: str, kept: Path | None = None) -> tuple[Any, SingularMethod]:
    method: Any = METHODS[name].bind({"r": 4, "target_modules": ["query"]})
    return method.apply(make_model("bert"), "SEQ_CLS", kept), method


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each decomposition."""
    done: list[int] = []
    svd = torch.linalg.svd

    def counting(*args: Any, **kwargs: Any) -> Any:
        done.append(1)
        return svd(*args, **kwargs)

    monkeypatch.setattr(torch.linalg, "svd", counting)
    return done


def same(one: Any, other: Any) -> bool:
    weights: dict[str, Tensor] = other.state_dict()
    return all(
        torch.equal(value, weights[name]) for name, value in one.state_dict().items() if "classifier" not in name
    )


@pytest.mark.parametrize("name", ["milora", "pissa"])
def test_decomposed_once_in_a_run(make_model: MakeModel, tmp_path: Path, decomposed: list[int], name: str) -> None:
    kept = tmp_path / "checkpoints"
    first, _ = made(make_model, name, kept)
    count = len(decomposed)
    assert count == 3
    again, _ = made(make_model, name, kept)
    assert len(decomposed) == count
    assert same(first, again)


@pytest.mark.parametrize("name", ["milora", "pissa"])
def test_the_start_in_a_base_of_bfloat16_is_exact(make_model: MakeModel, name: str) -> None:
    """A and B are not rounded to its precision, and what is left of the weight is rounded once."""
    path = "bert.encoder.layer.1.attention.self.query"
    base = make_model("bert").to(torch.bfloat16)
    W0 = base.get_submodule(path).weight.detach().float()
    model = METHODS[name].bind({"r": 4, "lora_alpha": 12, "target_modules": ["query"]}).apply(base, "SEQ_CLS")
    layer: Any = next(module for found, module in model.named_modules() if found.endswith(path))
    A, B = (one["default"].weight.detach() for one in (layer.lora_A, layer.lora_B))
    for factor in (A, B):
        assert factor.dtype == torch.float32
        assert not torch.equal(factor, factor.bfloat16().float())
    assert torch.equal(layer.base_layer.weight, (W0 - 3.0 * (B @ A)).bfloat16())


def test_plain_peft_loads_pissa(make_model: MakeModel, tmp_path: Path) -> None:
    model, method = made(make_model, "pissa")
    method.save(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["init_lora_weights"] == "pissa"
    loaded = PeftModel.from_pretrained(make_model("bert"), tmp_path).state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded[name], value, atol=1e-6, rtol=1e-5)


def test_a_damaged_start_is_an_error(make_model: MakeModel, tmp_path: Path) -> None:
    kept = tmp_path / START_FILE
    made(make_model, "milora", tmp_path)
    whole = kept.read_bytes()
    kept.write_bytes(whole[:40])
    with pytest.raises(CheckpointError, match="cannot be read"):
        made(make_model, "milora", tmp_path)
    kept.write_bytes(whole)
    method: Any = METHODS["milora"]
    with pytest.raises(CheckpointError, match="does not fit"):
        method.bind({"r": 2, "target_modules": ["query"]}).apply(make_model("bert"), "SEQ_CLS", tmp_path)
