"""Our experiments in PEFT's comparison of methods."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import aurora_lora  # noqa: F401

HERE = Path(__file__).parents[2] / "benchmarks" / "method_comparison"
EXPERIMENTS = sorted(path.parent for path in HERE.glob("MetaMathQA/experiments/*/*/adapter_config.json"))


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_configurations_load_and_say_what_their_names_say(experiment: Path) -> None:
    config = PeftConfig.from_pretrained(str(experiment))
    assert config.peft_type.value.lower() == experiment.parent.name
    name = experiment.name.removesuffix("-aligned")
    assert name == f"llama-3.2-3B-rank{config.r}"
    if experiment.parent.name == "aurora":
        settings = json.loads((experiment / "aurora.json").read_text())
        assert bool(settings["aligned"]) == experiment.name.endswith("-aligned")
        assert settings["calibrated"] > 0


def test_what_cannot_be_run_is_one_line() -> None:
    for given, message in (
        (["nowhere", "experiments/aurora/llama-3.2-3B-rank2"], "name a checkout of huggingface/peft"),
        (["nowhere", "experiments/aurora/rank3"], "is no experiment: experiments/aurora/"),
        (["nowhere", "experiments/aurora"], "is no experiment: experiments/aurora/"),
    ):
        done = subprocess.run([sys.executable, HERE / "run.py", *given], capture_output=True, text=True)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    characters = [*map(str, range(10)), *" abcdefghijklmnopqrstuvwxyzQTA.:?#"]
    vocabulary = {"<eos>": 0, "<unk>": 1} | {character: n + 2 for n, character in enumerate(characters)}
    characters_only = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    characters_only.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=characters_only, eos_token="<eos>", unk_token="<unk>").save_pretrained(
        folder
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=64, num_attention_heads=2, num_key_value_heads=2, eos_token_id=0, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.skipif("PEFT_CHECKOUT" not in os.environ, reason="PEFT_CHECKOUT names no checkout of huggingface/peft")
@pytest.mark.parametrize(
    "name", ["aurora/llama-3.2-3B-rank2-aligned", "aurora/llama-3.2-3B-rank8", "lora/llama-3.2-3B-rank2"]
)
def test_from_training_to_the_record(name: str, model: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("trial.py")
    peft = os.environ["PEFT_CHECKOUT"]
    command = [sys.executable, script, model, peft, f"experiments/{name}", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    (record,) = (tmp_path / "temporary_results").glob("*.json")
    found = json.loads(record.read_text())
    assert found["train_info"]["status"] == "success", found["run_info"]["error_msg"]
    assert found["run_info"]["experiment_name"] == name
    assert found["run_info"]["peft_branch"].startswith("aurora-lora")
    assert "test accuracy" in found["train_info"]["metrics"][-1]
    assert ("calibrated on 256 examples" in done.stderr) == name.startswith("aurora")
    assert not list((Path(peft) / "method_comparison" / "MetaMathQA" / "results").glob(f"{name.replace('/', '--')}*"))
