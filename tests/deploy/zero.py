"""One of two processes that train under a stage of DeepSpeed's ZeRO: run by test_deepspeed.py. Prints what it finds."""

import os
import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from accelerate import PartialState
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from aurora_lora import AuroraConfig, calibrate
from aurora_lora.deploy.calibrate import alone
from aurora_lora.train import CalibrationCallback
from aurora_lora.tuner import aurora_layers


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4))


def main(stage: int, threshold: int, folder: Path) -> None:
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # which it would compile
    PartialState(backend="gloo")
    ids = torch.arange(16 * 8).reshape(16, 8) * 7 % 60
    data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()})
    batches = [{"input_ids": rows} for rows in ids.split(4)]
    zero = {"stage": stage, "stage3_param_persistence_threshold": threshold}
    if not threshold:  # nothing stays whole between its uses
        zero |= {"stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 0}
    given = TrainingArguments(
        folder, max_steps=3, per_device_train_batch_size=4, learning_rate=1e-2, eval_strategy="steps", eval_steps=2,
        save_strategy="no", report_to=[], accelerator_config={"use_configured_state": True},
        deepspeed={
            "zero_optimization": zero, "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
            "optimizer": {"type": "AdamW", "params": {"lr": "auto", "torch_adam": True}},
        },
    )  # fmt: skip
    config = AuroraConfig(r=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_weights=False)
    model = get_peft_model(base(), config)
    callback = CalibrationCallback(batches[rank::2])
    trainer = Trainer(model, given, train_dataset=data, eval_dataset=data, callbacks=[callback])
    trainer.train()
    print("stage", trainer.model_wrapped.zero_optimization_stage())
    print("forms", {layer.form("default") for _, layer in aurora_layers(model.eval())})
    calibrate(model, batches[rank::2])
    trainer.save_model(str(folder / "adapter"))
    if stage == 3:
        try:
            model.merge_adapter()
        except NotImplementedError as error:
            print("merge", error)
    dist.barrier()
    if rank == 0:
        whole = PeftModel.from_pretrained(base(), folder / "adapter").eval()
        layers = [layer for _, layer in aurora_layers(whole)]
        print("saved", {layer.form("default") for layer in layers})
        found = [layer.aurora_A_cal["default"].weight.clone() for layer in layers]
        with alone():
            calibrate(whole, batches)
        for layer, matrix in zip(layers, found, strict=True):
            torch.testing.assert_close(matrix, layer.aurora_A_cal["default"].weight, rtol=1e-4, atol=1e-5)
        print("same matrices")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads, still there while Python ends, now and then abort the process


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
