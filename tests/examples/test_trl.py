"""TRL: supervised fine-tuning as in the example, and GRPO, which needs one form throughout."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback

import aurora_lora

STATIC = {"train_form": "static", "eval_form": "static"}


def config(**fields: Any) -> aurora_lora.AuroraConfig:
    return aurora_lora.AuroraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **fields)


@pytest.mark.slow
def test_sft(run_example: Callable[..., str], common: Any, tmp_path: Path) -> None:
    output = run_example("trl_sft.py", tmp_path)
    assert "calibrated 4 layers" in output
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        adapter = PeftModel.from_pretrained(common.tiny_model(), str(tmp_path / "adapter")).eval()(ids).logits
        lora = PeftModel.from_pretrained(common.tiny_model(), str(tmp_path / "lora")).eval()(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
        base = common.tiny_model().eval()(ids).logits
    assert (adapter - base).abs().max() > 0.1
    torch.testing.assert_close(lora, adapter, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(merged, adapter, rtol=1e-4, atol=1e-4)


def moved(model: Any) -> Any:
    """As after some training: B is zero at the start, and all forms are equal then."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "aurora_" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def outputs(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return model.train()(ids).logits, model.eval()(ids).logits


class Sync(TrainerCallback):
    """What TRL does for vLLM after each step: merge, read the weights, unmerge."""

    def __init__(self) -> None:
        self.differences: list[float] = []

    def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
        ids = torch.arange(40).reshape(2, 20)
        training = model.training
        trained, sampled = outputs(model, ids)
        model.merge_adapter()
        synced = outputs(model, ids)[1]
        model.unmerge_adapter()
        model.train(training)
        self.differences += [(sampled - trained).abs().max().item(), (synced - trained).abs().max().item()]


def test_grpo(common: Any, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    sync = Sync()
    trainer = trl.GRPOTrainer(
        model=common.tiny_model(),
        reward_funcs=lambda completions, **kwargs: [float(len(set(text))) for text in completions],
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=8,
            learning_rate=1e-2,
            beta=0.1,  # the reference policy is the model with its adapter switched off
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": common.sentences("tiny", 8)}),
        processing_class=common.tiny_tokenizer(),
        peft_config=config(**STATIC),
        callbacks=[sync],
    )
    trainer.train()
    trained = [p for name, p in trainer.model.named_parameters() if "aurora_B" in name]
    assert trained
    assert all(p.abs().max() > 0 for p in trained)
    assert len(sync.differences) == 4
    assert max(sync.differences) < 1e-4


def test_dpo_compares_a_trained_adapter_with_itself(common: Any, tmp_path: Path) -> None:
    """At the first step policy and reference are equal, and the loss is log 2; the reference stays as it was."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    rows = {"prompt": ["a film"] * 4, "chosen": [" good"] * 4, "rejected": [" bad"] * 4}
    plain = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "bf16": False}
    model, ids = moved(get_peft_model(common.tiny_model(), config())), torch.arange(40).reshape(2, 20)
    trainer = trl.DPOTrainer(
        model=model,
        args=trl.DPOConfig(str(tmp_path), max_steps=2, per_device_train_batch_size=4, logging_steps=1, **plain),
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=common.tiny_tokenizer(),
    )
    with torch.no_grad():
        policy = model.train()(ids).logits
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    with torch.no_grad():
        assert not torch.allclose(model.train()(ids).logits, policy)
        model.set_adapter("ref")
        torch.testing.assert_close(model.train()(ids).logits, policy)
