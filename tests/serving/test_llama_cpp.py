"""Merged GGUF files in llama.cpp: the same next-token distribution as Transformers on the dequantised file."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from aurora_lora.deploy.gguf import GGUF_FORMATS
from aurora_lora.deploy.stored import merge_stored
from aurora_lora.train.models import load_tokenizer
from deploy.gguf_llama import PROJECTIONS, adapted, inputs, loaded, write

llama_cpp = pytest.importorskip("xllamacpp", reason="make serving installs llama.cpp")
pytestmark = pytest.mark.serving
PROMPTS = ["this plot was", "an odd end? yes; no", "that actor moved me: 7 of 10! but the music", "a dull film"]
SHOWN = 40


def distance(file: Path, other: Path | None = None) -> float:
    """Mean KL divergence of llama.cpp's next tokens from those of Transformers, over the prompts: of the likeliest
    tokens, and the rest as one.

    Args:
        file: that llama.cpp computes with.
        other: that Transformers computes with; the same if None.
    """
    settings: Any = llama_cpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(file), 256, 1
    settings.cpuparams.n_threads, settings.warmup = 1, False
    server, model, tokenizer = llama_cpp.Server(settings), loaded(other or file), load_tokenizer(str(file))
    total = 0.0
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        given = {"prompt": ids[0].tolist(), "n_predict": 1, "n_probs": SHOWN, "temperature": 0.0}
        answer = server.handle_completions(given)
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        shown = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        with torch.no_grad():
            expected = model(ids).logits[0, -1].double().log_softmax(-1)
        theirs = torch.tensor([one["logprob"] for one in shown], dtype=torch.float64)
        ours = expected[torch.tensor([one["id"] for one in shown])]
        rest, their_rest = (max(1 - float(each.exp().sum()), 1e-9) for each in (ours, theirs))
        total += float((ours.exp() * (ours - theirs)).sum()) + rest * math.log(rest / their_rest)
    return total / len(PROMPTS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", GGUF_FORMATS)
def test_llama_cpp_computes_with_the_written_weights(name: str, tmp_path: Path) -> None:
    write(base := tmp_path / "base.gguf", name)
    model = adapted(base, LoraConfig(r=4, target_modules=PROJECTIONS), scale=0.1)
    merge_stored(model, base, merged := tmp_path / "merged.gguf", inputs())
    assert (own := distance(merged)) < distance(base) + 0.01
    assert own < 0.1 * distance(base, merged)
