"""What merges write, in the engines that serve it: llama.cpp for GGUF files, vLLM for folders of compressed-tensors."""

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from aurora_lora.deploy.gguf import GGUF_FORMATS
from aurora_lora.deploy.stored import merge_stored
from aurora_lora.files import read_json, write_json
from deploy import gguf_llama, test_compressed
from deploy.gguf_llama import PROJECTIONS, WORDS

PYTHON = os.environ.get("AURORA_LORA_SERVING")
pytestmark = [
    pytest.mark.serving,
    pytest.mark.skipif(PYTHON is None, reason="make serving makes an environment with llama.cpp and vLLM"),
    pytest.mark.filterwarnings("ignore"),
]
PROMPTS = [[7, 21, 3, 40, 12], [30, 2, 18], [11, 5, 29, 33, 8, 41, 16], [20, 9]]
SHOWN, TOKENS = 40, 5


def ask(script: str, **question: Any) -> Any:
    """What a script of this folder answers in the environment of the engines."""
    file = Path(__file__).with_name(f"ask_{script}.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    given = {"input": json.dumps(question), "capture_output": True, "text": True, "env": environment}
    run = subprocess.run([str(PYTHON), str(file)], **given)  # type: ignore[call-overload]
    answer = [line for line in run.stdout.splitlines() if line.startswith("ANSWER ")]
    assert answer, run.stdout[-2000:] + run.stderr[-2000:]
    return json.loads(answer[-1].removeprefix("ANSWER "))


def record(engine: str, name: str, figures: dict[str, Any]) -> None:
    """Put what was measured into the file that AURORA_LORA_SERVING_RESULTS names, if it does."""
    if (target := os.environ.get("AURORA_LORA_SERVING_RESULTS")) is not None:
        file = Path(target)
        found = read_json(file) if file.exists() else {}
        found.setdefault(engine, {})[name] = figures
        write_json(file, found)


def distance(file: Path, model: Any) -> float:
    """Mean KL divergence of llama.cpp's next tokens from those of a model of Transformers, over the prompts: of the
    likeliest tokens, and the rest as one."""
    total = 0.0
    for prompt, shown in zip(PROMPTS, ask("llama_cpp", model=str(file), prompts=PROMPTS, shown=SHOWN), strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)
        theirs = torch.tensor(list(shown.values()), dtype=torch.float64)
        ours = expected[[int(token) for token in shown]]
        rest, their_rest = (max(1 - float(each.exp().sum()), 1e-9) for each in (ours, theirs))
        total += float((ours.exp() * (ours - theirs)).sum()) + rest * math.log(rest / their_rest)
    return total / len(PROMPTS)


@pytest.mark.parametrize("name", GGUF_FORMATS)
def test_llama_cpp_computes_with_the_written_weights(name: str, tmp_path: Path) -> None:
    gguf_llama.write(base := tmp_path / "base.gguf", name)
    model = gguf_llama.adapted(base, LoraConfig(r=4, target_modules=PROJECTIONS), scale=0.1)
    merge_stored(model, base, merged := tmp_path / "merged.gguf", gguf_llama.inputs())
    written = gguf_llama.loaded(merged)
    figures = {
        "merged": distance(merged, written),
        "base": distance(base, gguf_llama.loaded(base)),
        "base from merged": distance(base, written),
    }
    record("llama.cpp", name, figures)
    assert figures["merged"] < figures["base"] + 0.01
    assert figures["merged"] < 0.1 * figures["base from merged"]


def sequences() -> torch.Tensor:
    """(8, 12): each token is 5 times the one before and 7, modulo the words."""
    columns = [torch.randint(0, WORDS, (8,))]
    for _ in range(11):
        columns.append((5 * columns[-1] + 7) % WORDS)
    return torch.stack(columns, 1)


def taught(model: Any) -> Any:
    """The model with an adapter that continues `sequences`, so that greedy tokens are far from ties."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=3e-3)
    for _ in range(300):
        ids = sequences()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


# vLLM has no kernel for W8A16, NVFP4 and MXFP4 on a CPU
@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM", "W8A8", "FP8_DYNAMIC"])
def test_vllm_gives_the_tokens_of_transformers(scheme: str, tmp_path: Path) -> None:
    changes = {"group_size": 64} if scheme.startswith("W4") else {}
    test_compressed.write(base := tmp_path / "base", scheme, **changes)
    model = taught(test_compressed.adapted(base, r=32, moved=0.0))
    data = [{"input_ids": sequences()} for _ in range(8)]
    merge_stored(model, base, merged := tmp_path / "merged", data)
    written = test_compressed.loaded(merged)
    prompts = data[0]["input_ids"][:4, :4].tolist()
    greedy = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    expected = [written.generate(torch.tensor([prompt]), **greedy)[0, 4:].tolist() for prompt in prompts]
    assert expected[0] == data[0]["input_ids"][0, 4 : 4 + TOKENS].tolist()
    found = ask("vllm", model=str(merged), prompts=prompts, tokens=TOKENS)
    same = sum(
        one == two for ours, theirs in zip(expected, found, strict=True) for one, two in zip(ours, theirs, strict=True)
    )
    record("vLLM", scheme, {"tokens": 4 * TOKENS, "same": same})
    assert found == expected
    assert ask("vllm", model=str(base), prompts=prompts, tokens=TOKENS) != expected
