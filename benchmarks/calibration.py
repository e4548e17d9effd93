"""How many calibration inputs are enough, and what calibration costs.

    python -m benchmarks.calibration curve RUN... --output results/calibration/curve.json
    python -m benchmarks.calibration cost RUN --output results/calibration/cost-minilm.json

RUN is the folder of a finished `aurora train` (an AuroRA run). Every figure is of its test split; calibration inputs
are drawn from its training split.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from aurora_lora import calibrate, set_form
from aurora_lora.files import write_json
from aurora_lora.train.data import without_targets
from aurora_lora.train.finished_run import load_run
from aurora_lora.train.publish import ADAPTER
from aurora_lora.train.run import make_trainer
from aurora_lora.train.trainer import process_peak_memory, quiet_libraries, reset_peak_memory

SIZES = (16, 32, 64, 128, 256, 512, 1024)


def batches(data: Any, split: str, rows: list[int], size: int = 32) -> Iterator[dict[str, torch.Tensor]]:
    examples = data.splits[split]
    for start in range(0, len(rows), size):
        yield data.collate([examples[row] for row in rows[start : start + size]])


def logits(model: torch.nn.Module, data: list[dict[str, torch.Tensor]], form: str) -> torch.Tensor:
    model.eval()
    with torch.no_grad(), set_form(model, form):
        parts = [model(**without_targets(batch)).logits for batch in data]
    return torch.cat(parts).double()


def figures(mine: torch.Tensor, trained: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    p, q = trained.log_softmax(-1), mine.log_softmax(-1)
    return {
        "accuracy": float((mine.argmax(-1) == labels).double().mean()),
        "nll": float(torch.nn.functional.cross_entropy(mine, labels)),
        "kl": float((p.exp() * (p - q)).sum(-1).mean()),
    }


def curve(folders: list[Path], repeats: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """For each run and number of inputs: accuracy, nll and KL from the trained form, on the test split."""
    records, runs = [], []
    for folder in folders:
        run = load_run(folder)
        with tempfile.TemporaryDirectory() as nowhere:
            trainer, data = make_trainer(run.recipe, Path(nowhere), (), folder / ADAPTER)
        model = trainer.module
        test = list(batches(data, "test", list(range(len(data.splits["test"])))))
        labels = torch.cat([batch["labels"] for batch in test])
        trained = logits(model, test, "dynamic")
        runs.append({"run": folder.name, "dynamic": figures(trained, trained, labels)})
        runs[-1]["static"] = figures(logits(model, test, "static"), trained, labels)
        for size in sizes:
            for repeat in range(repeats):
                rows = random.Random(repeat).sample(range(len(data.splits["train"])), size)
                inputs = list(map(without_targets, batches(data, "train", rows)))
                report = calibrate(model, inputs)
                record = {"run": folder.name, "inputs": size, "repeat": repeat}
                record |= figures(logits(model, test, "calibrated"), trained, labels)
                record["explained"] = statistics.fmean(layer.explained for layer in report.layers)
                record["seconds"] = report.seconds
                records.append(record)
                print(json.dumps(record), file=sys.stderr, flush=True)
    return {"records": records, "runs": runs}


def cost(folder: Path, examples: int) -> dict[str, Any]:
    """Seconds and peak memory of a calibration, beside one epoch of training in the same process, interleaved."""
    run = load_run(folder)
    with tempfile.TemporaryDirectory() as nowhere:
        trainer, data = make_trainer(run.recipe, Path(nowhere))  # a new adapter: a loaded one is frozen
    model = trainer.module
    inputs = list(map(without_targets, batches(data, "train", list(range(examples)))))
    steps = list(batches(data, "train", list(range(640)), run.recipe.training.batch_size))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-9)
    seconds: dict[str, list[float]] = {"calibrate": [], "training": [], "forward": []}
    for _ in range(5):
        seconds["calibrate"].append(calibrate(model, inputs).seconds)
        start = time.perf_counter()
        with torch.no_grad(), set_form(model, "dynamic"):
            model.eval()
            for batch in inputs:
                model(**batch)
        seconds["forward"].append(time.perf_counter() - start)
        model.train()
        start = time.perf_counter()
        for batch in steps:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds["training"].append(time.perf_counter() - start)
        model.eval()
    epoch = statistics.median(seconds["training"]) * len(data.splits["train"]) / 640
    return {
        "model": run.recipe.model,
        "layers": len(calibrate(model, inputs).layers),
        "examples": examples,
        "epoch_examples": len(data.splits["train"]),
        "threads": torch.get_num_threads(),
        "epoch_s": epoch,
        "forward_s": statistics.median(seconds["forward"]),
        "calibrate_s": statistics.median(seconds["calibrate"]),
        "of_epoch": statistics.median(seconds["calibrate"]) / epoch,
        "peak_mb": {"none": peak(folder, examples, False), "calibrate": peak(folder, examples, True)},
    }


def peak(folder: Path, examples: int, calibrating: bool) -> float:
    """Peak memory in MB of a fresh process while it calibrates, or only runs the inputs; not while it loads the run."""
    command = [sys.executable, "-m", "benchmarks.calibration", "peak", str(folder), "--examples", str(examples)]
    command += [] if calibrating else ["--only-run"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(folder: Path, examples: int, calibrating: bool) -> None:
    run = load_run(folder)
    with tempfile.TemporaryDirectory() as nowhere:
        trainer, data = make_trainer(run.recipe, Path(nowhere), (), folder / ADAPTER)
    inputs = list(map(without_targets, batches(data, "train", list(range(examples)))))
    reset_peak_memory()  # that of loading may be higher
    if calibrating:
        calibrate(trainer.module, inputs)
    else:
        with torch.no_grad():
            for batch in inputs:
                trainer.module.eval()(**batch)
    print(process_peak_memory())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("curve", "cost", "peak"))
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--only-run", action="store_true")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    quiet_libraries()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.what == "peak":
        print_peak(args.runs[0], args.examples, not args.only_run)
        return
    result = curve(args.runs, args.repeats, SIZES) if args.what == "curve" else cost(args.runs[0], args.examples)
    if args.output is None:
        print(json.dumps(result, indent=2))
    else:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, result)


if __name__ == "__main__":
    main()
