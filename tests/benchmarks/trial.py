"""One experiment of benchmarks/method_comparison on a CPU: a tiny Llama and a few questions in place of the real ones.

python trial.py MODEL PEFT EXPERIMENT --output FOLDER
"""

import sys
import types
from pathlib import Path

import datasets
import peft.utils
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "method_comparison"))
import run as wrapper  # PEFT's script has the same name

del sys.modules["run"]
MODEL = sys.argv.pop(1)
peft.utils.infer_device = lambda: "cuda"  # the script insists on it at import


def load_dataset(name, config=None, split=None, **_):
    questions = [f"{i} and {i % 7}?" for i in range(120)]
    answers = [f"The answer is: {i + i % 7}" for i in range(120)]
    if "MetaMath" in name:
        columns = {"type": ["sum"] * 120, "query": questions, "original_question": questions, "response": answers}
        return datasets.DatasetDict(train=datasets.Dataset.from_dict(columns))
    if "gsm8k" in name:
        rows = datasets.Dataset.from_dict({"question": questions, "answer": [f"#### {i + i % 7}" for i in range(120)]})
        return datasets.DatasetDict(train=rows.select(range(60)), test=rows.select(range(60, 72)))
    return datasets.Dataset.from_dict({"text": questions * 1})


def prepare(run, utils):
    import data

    data.load_dataset = load_dataset
    for module in (run, utils):
        module.infer_device = lambda: "cpu"
    utils.device = "cpu"
    on_cpu = {name: lambda *_: 0 for name in ("memory_allocated", "memory_reserved", "max_memory_reserved")}
    on_cpu |= {name: lambda *_: None for name in ("reset_peak_memory_stats", "manual_seed_all", "empty_cache")}
    torch.cpu = types.SimpleNamespace(**{**vars(torch.cpu), **on_cpu, "get_device_name": lambda _: "cpu"})
    loss = run.calculate_mean_per_token_loss
    # a sanity check wants a loss that a random model has not
    run.calculate_mean_per_token_loss = lambda **given: 1.5 + 0.1 * torch.tanh(torch.tensor(loss(**given))).item()
    found = utils.get_train_config

    def small(path):
        config = found(path)
        config.model_id, config.dtype = MODEL, "float32"
        config.max_steps, config.eval_steps, config.batch_size_eval = 12, 6, 16
        config.generation_kwargs = {"max_new_tokens": 4}
        return config

    run.get_train_config = utils.get_train_config = small


wrapper.main(prepare)
