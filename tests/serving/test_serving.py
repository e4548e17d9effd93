"""What merges write, in the engines that serve it: llama.cpp for GGUF files, vLLM for folders of compressed-tensors."""

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from aurora_lora import AuroraConfig, calibrate, export_lora
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
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def ask(script: str, **question: Any) -> Any:
    """What a script of this folder answers in the environment of the engines."""
    file = Path(__file__).with_name(f"ask_{script}.py")
    given = {"input": json.dumps(question), "capture_output": True, "text": True, "env": ENVIRONMENT}
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
    answers = ask("llama_cpp", model=str(file), adapter=None, prompts=PROMPTS, tokens=1, shown=SHOWN)
    for prompt, (shown,) in zip(PROMPTS, answers, strict=True):
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


def greedy(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """The tokens with which a model of Transformers continues each prompt."""
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    return [model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist() for prompt in prompts]


def test_llama_cpp_serves_an_exported_adapter(tmp_path: Path) -> None:
    gguf_llama.write(base := tmp_path / "base.gguf", "F32")
    config = AuroraConfig(r=16, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    model = taught(get_peft_model(gguf_llama.loaded(base), config))
    data = [{"input_ids": sequences()} for _ in range(8)]
    calibrate(model, data)
    export_lora(model, tmp_path / "lora")
    model.config.architectures = ["LlamaForCausalLM"]  # which a GGUF file does not tell
    model.config.save_pretrained(tmp_path / "config")
    converter = Path(str(PYTHON)).parents[1] / "llama.cpp" / "convert_lora_to_gguf.py"
    command = [
        str(PYTHON),
        str(converter),
        "--base",
        str(tmp_path / "config"),
        "--outfile",
        str(tmp_path / "lora.gguf"),
    ]
    subprocess.run([*command, str(tmp_path / "lora")], check=True, env=ENVIRONMENT)
    prompts = data[0]["input_ids"][:4, :4].tolist()
    expected = greedy(model, prompts)
    assert expected[0] == data[0]["input_ids"][0, 4 : 4 + TOKENS].tolist()
    asked = {"model": str(base), "prompts": prompts, "tokens": TOKENS, "shown": 1}
    answers = [ask("llama_cpp", adapter=file, **asked) for file in (str(tmp_path / "lora.gguf"), None)]
    served, plain = ([[int(next(iter(token))) for token in tokens] for tokens in answer] for answer in answers)
    assert served == expected
    assert plain != expected


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
    expected = greedy(written, prompts)
    assert expected[0] == data[0]["input_ids"][0, 4 : 4 + TOKENS].tolist()
    found = ask("vllm", model=str(merged), prompts=prompts, tokens=TOKENS)
    same = sum(
        one == two for ours, theirs in zip(expected, found, strict=True) for one, two in zip(ours, theirs, strict=True)
    )
    record("vLLM", scheme, {"tokens": 4 * TOKENS, "same": same})
    assert found == expected
    assert ask("vllm", model=str(base), prompts=prompts, tokens=TOKENS) != expected
