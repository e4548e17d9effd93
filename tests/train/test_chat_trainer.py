"""The trainer of conversations: what it refuses before it trains."""

from typing import Any

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from aurora_lora.errors import UserError
from aurora_lora.train.chat_trainer import check_packing

SIZES: dict[str, Any] = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conversations_in_a_row_must_not_see_each_other(dtype: torch.dtype) -> None:
    """Where each begins is told by positions alone, of which not every model makes a mask."""
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=24, max_position_embeddings=64))
    for in_one in (False, True):
        check_packing(llama.to(dtype).train(), in_one=in_one)
        assert llama.training
    opt = OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=24, max_position_embeddings=64, word_embed_proj_dim=16))
    bloom = BloomForCausalLM(BloomConfig(vocab_size=60, hidden_size=16, n_layer=2, n_head=2))
    for model in (opt, bloom):
        kind = type(model).__name__
        with pytest.raises(
            UserError, match=rf"task\.packing: true is not allowed: conversations .* in a {kind}: leave"
        ):
            check_packing(model.to(dtype))
