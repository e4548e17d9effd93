"""A small Llama in a GGUF file, and adapters on it."""

from pathlib import Path
from typing import Any

import gguf
import numpy
import torch
from peft import get_peft_model

from aurora_lora.deploy.gguf import GGUF_FORMATS
from aurora_lora.train.models import load_causal_model

WIDTH, INNER, WORDS, HEADS, KV_HEADS = 256, 512, 48, 4, 2
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def random_blocks(name: str, rows: int, width: int, seed: int = 0) -> numpy.ndarray:
    """Rows of bytes of a quantised tensor, with scales of about 0.003."""
    entries, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    random = numpy.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows * width // entries, size), dtype=numpy.uint8)

    def halves(scale: float) -> numpy.ndarray:
        values = random.uniform(0.5, 1.5, len(blocks)) * scale
        return values.astype(numpy.float16).view(numpy.uint8).reshape(-1, 2)

    if name == "Q6_K":
        blocks[:, -2:] = halves(2e-5)
    elif name.endswith("_K"):
        blocks[:, :2], blocks[:, 2:4] = halves(1e-4), halves(8e-4)
    else:
        blocks[:, :2] = halves(5e-4 if name == "Q8_0" else 4e-3)
        if name.endswith("_1"):
            blocks[:, 2:4] = halves(-0.06 if name == "Q5_1" else -0.03)
    return blocks.reshape(rows, -1)


def write(file: Path, quantised: str, **fields: Any) -> None:
    """A Llama with grouped heads whose linear layers have this type."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<", "Ġa", *"Ġabcdefghijklmnopqrstuvwxyz0123456789.,:;!?-+/"])
    writer.add_eos_token_id(0)
    writer.add_token_scores([0.0] * WORDS)
    writer.add_token_merges(["Ġ a"])
    for name, value in fields.items():
        writer.add_uint16(name.replace("__", "."), value)
    random, kind = numpy.random.default_rng(0), getattr(gguf.GGMLQuantizationType, quantised)
    writer.add_tensor("token_embd.weight", (random.normal(size=(WORDS, WIDTH)) * 0.1).astype("float32"))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", numpy.ones(WIDTH, "float32"))
    narrow = WIDTH // HEADS * KV_HEADS
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (narrow, WIDTH), "attn_v": (narrow, WIDTH)}
    shapes |= {"attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH)}
    for i, (name, shape) in enumerate({**shapes, "ffn_down": (WIDTH, INNER)}.items()):
        if quantised in GGUF_FORMATS:
            writer.add_tensor(f"blk.0.{name}.weight", random_blocks(quantised, *shape, seed=i), raw_dtype=kind)
        else:
            values = (random.normal(size=shape) * 0.05).astype("float32")
            writer.add_tensor(f"blk.0.{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def loaded(file: Path) -> Any:
    return load_causal_model(str(file)).eval()


def adapted(file: Path, config: Any, scale: float = 0.3) -> Any:
    """The file's model with an adapter that was moved at random."""
    model = get_peft_model(loaded(file), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * scale)
    return model.eval()


def inputs() -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    return [{"input_ids": torch.randint(0, WORDS, (8, 12))} for _ in range(8)]


def tensors(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
