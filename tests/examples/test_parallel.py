"""Two processes take the steps that one takes on the same batches, with DDP, FSDP2 and Accelerate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

Run = Callable[..., str]


@pytest.fixture(scope="session")
def one_process(
    run_example: Run, tmp_path_factory: pytest.TempPathFactory, losses: Callable[[str], list[float]]
) -> Callable[..., tuple[dict[str, torch.Tensor], list[float]]]:
    """The adapter that one process trains, with these modules_to_save, and its losses."""
    trained: dict[tuple[str, ...], tuple[dict[str, torch.Tensor], list[float]]] = {}

    def train(*modules: str) -> tuple[dict[str, torch.Tensor], list[float]]:
        if modules not in trained:
            folder = tmp_path_factory.mktemp("one")
            output = run_example("ddp.py", folder, *(["--modules-to-save", *modules] if modules else []))
            trained[modules] = load_file(folder / "adapter" / "adapter_model.safetensors"), losses(output)
        return trained[modules]

    return train


def assert_same(adapter: Path, expected: dict[str, torch.Tensor], without: str = "fingerprint") -> None:
    """All weights but for rounding: the sums over the rows of a batch are taken in another order.

    Adam widens a difference of a gradient that is near zero. 2e-5 is 1/250 of what it can move a weight in one step.
    """
    found = load_file(adapter / "adapter_model.safetensors")
    expected = {key: value for key, value in expected.items() if without not in key}
    assert {key for key in found if without not in key} == expected.keys()
    for key, value in expected.items():  # a fingerprint is a hash: equal only for equal bits
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=2e-5, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["ddp.py", "fsdp2.py"])
@pytest.mark.parametrize(
    ("modules", "checkpointing"), [((), "off"), (("lm_head",), "reentrant"), (("lm_head",), "non-reentrant")]
)
def test_ddp_and_fsdp2(
    run_example: Run,
    one_process: Callable[..., Any],
    losses: Callable[[str], list[float]],
    tmp_path: Path,
    script: str,
    modules: tuple[str, ...],
    checkpointing: str,
) -> None:
    options = ["--gradient-checkpointing", checkpointing, *(["--modules-to-save", *modules] if modules else [])]
    output = run_example(script, tmp_path, *options, processes=2)
    expected, expected_losses = one_process(*modules)
    assert losses(output) == pytest.approx(expected_losses, abs=2e-4)
    assert any("lm_head" in key for key in expected) == bool(modules)
    assert any("aurora_A_cal" in key for key in expected)
    if script == "ddp.py":
        assert_same(tmp_path / "adapter", expected)
    else:  # saved before it was calibrated, and after
        assert_same(tmp_path / "adapter", expected, without="aurora_A_cal")
        assert_same(tmp_path / "calibrated", expected)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate(
    run_example: Run,
    one_process: Callable[..., Any],
    losses: Callable[[str], list[float]],
    tmp_path: Path,
    processes: int,
) -> None:
    output = run_example("accelerate_loop.py", tmp_path, processes=processes)
    expected, expected_losses = one_process()
    assert losses(output) == pytest.approx(expected_losses, abs=2e-4)
    assert_same(tmp_path / "adapter", expected)
    assert (tmp_path / "lora" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_merged_is_what_the_adapter_computes(run_example: Run, common: Any, tmp_path: Path) -> None:
    run_example("ddp.py", tmp_path, processes=2)
    adapter = PeftModel.from_pretrained(common.tiny_model(), str(tmp_path / "adapter")).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapter(ids).logits, rtol=1e-4, atol=1e-4)
