"""How many of our files each operation runs through, counted by a profiler: what a reader has to open to follow it."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from typer.testing import CliRunner

import aurora_lora

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from tiny import save_model

SOURCE = str(Path(aurora_lora.__file__).parent) + os.sep
BOUNDS = {
    "forward": 4,
    "merge": 6,
    "export": 7,
    "calibrate": 8,
    "merge_gap": 10,
    "merge_quantized": 10,
    "probe": 8,
    "train": 56,
}


@contextmanager
def opened() -> Iterator[dict[str, set[str]]]:
    """Collects the functions of ours that are called within the block, by file; not what an import runs."""
    found: dict[str, set[str]] = {}

    def note(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(SOURCE) and "<" not in code.co_qualname.rpartition(".")[2]:
            found.setdefault(code.co_filename.removeprefix(SOURCE), set()).add(code.co_qualname)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


class Model(nn.Module):
    def __init__(self, linear: Any = nn.Linear) -> None:
        super().__init__()
        self.q, self.k, self.o = linear(64, 64), linear(64, 64), nn.Linear(64, 4)
        self.config = {"tie_word_embeddings": False, "model_type": "custom"}

    def forward(self, x: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        return {"logits": self.o(torch.tanh(self.q(x) + self.k(x)))}


BATCHES = [{"x": torch.randn(8, 64, generator=torch.Generator().manual_seed(0))} for _ in range(4)]


def adapted() -> Any:
    model = get_peft_model(Model(), aurora_lora.AuroraConfig(target_modules=["q", "k"], init_weights=False))
    aurora_lora.calibrate(model, BATCHES)
    aurora_lora.merge_gap(model, BATCHES)
    return model


def loss(model: Any, batch: Any) -> torch.Tensor:
    found: torch.Tensor = model(**batch)["logits"].square().mean()
    return found


def quantised() -> Any:
    bnb = pytest.importorskip("bitsandbytes")

    def linear(d_in: int, d_out: int) -> Any:
        layer = bnb.nn.Linear4bit(d_in, d_out, compute_dtype=torch.float32, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(torch.randn(d_out, d_in), requires_grad=False, quant_type="nf4")
        return layer

    model = Model(linear).to("cpu")
    model(**BATCHES[0])
    return get_peft_model(model, LoraConfig(target_modules=["q", "k"], r=2, init_lora_weights=False))


def check(operation: str, found: dict[str, set[str]]) -> None:
    listed = "\n".join(f"  {file}: {', '.join(sorted(names))}" for file, names in found.items())
    print(
        f"{operation}: {len(found)} of {BOUNDS[operation]} files, {sum(map(len, found.values()))} functions\n{listed}"
    )
    assert 0 < len(found) <= BOUNDS[operation], f"{operation} runs through {len(found)} files of ours:\n{listed}"


@pytest.mark.parametrize("operation", ["forward", "calibrate", "merge_gap", "export", "merge"])
def test_an_operation_is_followed_in_a_few_files(operation: str, tmp_path: Path) -> None:
    model = adapted()
    aurora_lora.export_lora(model, tmp_path / "first")
    model.train(operation == "forward")
    run = {
        "forward": lambda: model(**BATCHES[0]),
        "calibrate": lambda: aurora_lora.calibrate(model, BATCHES),
        "merge_gap": lambda: aurora_lora.merge_gap(model, BATCHES),
        "export": lambda: aurora_lora.export_lora(model, tmp_path / "lora"),
        "merge": model.merge_adapter,
    }[operation]
    _ = aurora_lora.export_lora  # an import
    with opened() as found:
        run()
    check(operation, found)


def test_merge_quantized_is_followed_in_a_few_files() -> None:
    model = quantised()
    aurora_lora.merge_quantized(quantised(), BATCHES)
    with opened() as found:
        aurora_lora.merge_quantized(model, BATCHES)
    check("merge_quantized", found)


def test_probe_is_followed_in_a_few_files() -> None:
    model, _ = Model(), aurora_lora.probe  # an import
    with opened() as found:
        aurora_lora.probe(model, BATCHES, loss=loss, rank=2)
    check("probe", found)


def test_a_run_is_followed_in_a_few_files(tmp_path: Path) -> None:
    from aurora_lora.cli import app

    rows = "\n".join(f"{'good warm' if i % 2 else 'bad cold'} film {i},{'up' if i % 2 else 'down'}" for i in range(80))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}\n")
    base = save_model(tmp_path / "base")
    words = ["train", "classification", f"task.data={tmp_path / 'rows.csv'}", f"model={base}", "training.epochs=1"]
    CliRunner().invoke(app, [*words, "--output", str(tmp_path / "first")])  # imports all that it needs
    with opened() as found:
        done = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    check("train", found)
