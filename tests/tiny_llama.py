"""A Llama of a few thousand random weights, with AuroRA on it."""

import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from aurora_lora import AuroraConfig

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 2, 4, 1]])
ATTENTION = ["q_proj", "v_proj"]


def llama(layers=2, **kwargs):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, **kwargs)).eval()


def adapt(base=None, seed=1, **fields):
    torch.manual_seed(seed)
    config = AuroraConfig(**{"target_modules": ATTENTION, "init_weights": False, "task_type": "CAUSAL_LM", **fields})
    return get_peft_model(llama() if base is None else base, config).eval()


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits
