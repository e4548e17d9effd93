"""The QLoRA example: it learns, merging into dequantised weights is exact, and requantising is what costs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file


@pytest.mark.slow
def test_qlora(run_example: Callable[..., str], losses: Callable[[str], list[float]], tmp_path: Path) -> None:
    values = losses(run_example("qlora.py", tmp_path, "--steps", "8", "--epochs", "3"))
    assert len(values) == 24
    assert sum(values[-8:]) < 0.98 * sum(values[:8])
    trained = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    calibrated = load_file(tmp_path / "calibrated" / "adapter_model.safetensors")
    assert all((calibrated[key] == value).all() for key, value in trained.items())
    result = json.loads((tmp_path / "result.json").read_text())
    effect = result["effect of the adapter"]["kl"]
    assert abs(result["merged, dequantised"]["kl"]) < 1e-6
    assert result["merged, dequantised"]["largest"] < 1e-3
    assert result["calibrated instead of trained form"]["kl"] < 0.05 * effect
    assert result["merged, in 4 bits again"]["kl"] > 1e-4  # not a merge of nothing, nor of garbage
    assert result["merged, in 4 bits again"]["kl"] < effect
