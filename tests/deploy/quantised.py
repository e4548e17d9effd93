"""A tiny Llama, quantised in each format, with adapters of each kind of method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, OFTConfig, PeftModel, VeraConfig, get_peft_model
from torch import Tensor
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
from torchao.quantization.granularity import PerGroup
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TorchAoConfig

from aurora_lora import AuroraConfig

TARGETS = ["q_proj", "v_proj", "down_proj"]


def _bnb4(kind: str, double: bool = False, storage: torch.dtype = torch.uint8) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_quant_storage=storage,
    )


FORMATS: dict[str, Callable[[], Any]] = {
    "nf4": lambda: _bnb4("nf4"),
    "nf4, double": lambda: _bnb4("nf4", double=True),
    "nf4, stored as bfloat16": lambda: _bnb4("nf4", storage=torch.bfloat16),
    "fp4": lambda: _bnb4("fp4"),
    "int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "torchao int8": lambda: TorchAoConfig(Int8WeightOnlyConfig()),
    "torchao int4": lambda: TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))),
}

METHODS: dict[str, Callable[[], Any]] = {
    "aurora": lambda: AuroraConfig(target_modules=TARGETS, init_weights=False, train_form="static"),
    "lora": lambda: LoraConfig(target_modules=TARGETS, init_lora_weights=False),
    "dora": lambda: LoraConfig(target_modules=TARGETS, init_lora_weights=False, use_dora=True),
    "vera": lambda: VeraConfig(target_modules=["q_proj"], init_weights=False),
    "oft": lambda: OFTConfig(target_modules=TARGETS, oft_block_size=32, init_weights=False),
    "ia3": lambda: IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
}


def save_base(folder: Path, width: int = 128) -> str:
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 3 * width // 2, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=200, num_attention_heads=4, num_key_value_heads=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def load(folder: str, quantisation: str, packing: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """The model in a format; unless `packing`, bitsandbytes keeps 4-bit weights as they are at calls in eval mode."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=FORMATS[quantisation](), dtype=dtype, device_map={"": "cpu"}
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu") and not packing:
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def adapted(base: Any, method: str, size: float = 0.3) -> PeftModel:
    """With a random adapter whose update is a fraction of the weights."""
    torch.manual_seed(1)
    model = get_peft_model(base, METHODS[method]()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "aurora_B" in name:
                parameter.mul_(size)
    return model


def batches(n: int = 6, vocabulary: int = 200) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    made = []
    for _ in range(n):
        ids = torch.randint(0, vocabulary, (8, 32), generator=generator)
        mask = torch.ones_like(ids)
        mask[:4, 25:] = 0
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**batch).logits[batch["attention_mask"].bool()]
    return found


def dense_copy(base: Any) -> Any:
    """An unquantised model with the weights that a quantised one stands for."""
    from aurora_lora.tuner.merging import dequantized
    from aurora_lora.tuner.peft_names import get_quantization_kwargs, resolve_quantization_backend

    config = LlamaConfig.from_dict({**base.config.to_dict(), "quantization_config": None})
    del config.quantization_config
    dense = LlamaForCausalLM(config).eval()
    state = {name: value for name, value in base.state_dict().items() if name in dense.state_dict()}
    for path, module in base.named_modules():
        backend = resolve_quantization_backend(module, **get_quantization_kwargs(base))
        if backend is not None and hasattr(module, "in_features"):
            state[f"{path}.weight"] = dequantized(module, backend).float()
    dense.load_state_dict(state)
    return dense
