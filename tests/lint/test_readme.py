"""The README's Python, run as it stands."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

README = Path(__file__).parents[2] / "README.md"


def test_the_first_snippet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def base() -> LlamaForCausalLM:
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        return LlamaForCausalLM(LlamaConfig(vocab_size=60, **sizes)).eval()

    after = README.read_text().partition("```python\n")
    assert after[1]
    snippet = after[2].partition("```")[0]
    batches = [{"input_ids": torch.randint(60, (4, 12))} for _ in range(6)]
    names: dict[str, Any] = {"base": base(), "batches": batches[:4], "held_out": batches[4:]}
    monkeypatch.chdir(tmp_path)
    exec(snippet, names)
    exported = PeftModel.from_pretrained(base(), "lora")
    with torch.no_grad():
        assert_close(exported(**batches[0]).logits, names["merged"](**batches[0]).logits)
    assert {layer.form for layer in names["gap"].layers} == {"static", "calibrated"}
