"""A real language model on conversations of the Python package index: it learns, and its export says the same."""

import json
import os
from pathlib import Path

import packaged_chats
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from aurora_lora.data.models import resolve_model
from aurora_lora.lab.experiments.recipes import load_any
from aurora_lora.train.predicting import predict
from aurora_lora.train.run import train

pytest.importorskip("trl")


@pytest.mark.slow
@pytest.mark.packaged
@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    "AURORA_LORA_LONG_TESTS" not in os.environ, reason="takes minutes: AURORA_LORA_LONG_TESTS is not set"
)
def test_smollm2_on_300_conversations(tmp_path: Path) -> None:
    data = packaged_chats.write(tmp_path / "chats.jsonl")
    settings = ["model=smollm2-135m", "task.max_length=128", "training.epochs=1"]
    run = train(load_any("chat", [f"task.data={data}", *settings]), tmp_path / "run")  # type: ignore[arg-type]
    metric = run.result["metric"]
    for form in ("dynamic", "calibrated"):
        assert metric["by_form"][form]["perplexity"] < metric["before"]["perplexity"]
    asked = [json.loads(line)["messages"][0]["content"] for line in data.read_text().splitlines()[:3]]
    base = AutoModelForCausalLM.from_pretrained(resolve_model("smollm2-135m"), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, run.folder / "lora").eval()
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "lora")
    for question, answer in zip(asked, predict(run.folder, asked), strict=True):
        turn = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        written = model.generate(**ids, max_new_tokens=256, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(written, skip_special_tokens=True).strip() == answer["answer"]
