"""Our experiments in PEFT's comparison of methods."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftConfig

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


@pytest.mark.slow
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
