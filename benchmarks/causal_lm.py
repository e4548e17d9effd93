"""The forms on a causal language model: SmolLM2-135M, next-token loss on the film sentences, perplexity by form.

    python -m benchmarks.causal_lm --output results/causal-lm
    python -m benchmarks.causal_lm --cost --output results/calibration/cost-smollm2.json

Plain text: what `aurora train` has no recipe for. AuroRA r = 2 on q, k, v, up
and down. One JSON file for each learning rate and seed, written as it is finished; what is there is not run again.
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import get_linear_schedule_with_warmup, set_seed

from aurora_lora import AuroraConfig, calibrate, merge_gap
from aurora_lora.data import SplitSizes, get_task
from aurora_lora.files import write_json
from aurora_lora.train.data import without_targets
from aurora_lora.train.models import load_base_model, load_tokenizer
from aurora_lora.train.trainer import process_peak_memory, quiet_libraries, reset_peak_memory

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


def batches(tokenizer: Any, texts: list[str], size: int) -> Iterator[dict[str, torch.Tensor]]:
    for start in range(0, len(texts), size):
        batch = dict(
            tokenizer(
                [text + tokenizer.eos_token for text in texts[start : start + size]],
                padding=True,
                truncation=True,
                max_length=64,
                return_tensors="pt",
            )
        )
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        yield batch


def load(seed: int = 0) -> tuple[Any, Any]:
    """The tokenizer, and the model with a new adapter."""
    tokenizer = load_tokenizer("smollm2-135m")
    tokenizer.padding_side = "right"
    base = load_base_model("smollm2-135m", get_task("siqa"), tokenizer)  # any task of a causal language model
    set_seed(seed)
    return tokenizer, get_peft_model(base, AuroraConfig(target_modules=TARGETS, skip=False, task_type="CAUSAL_LM"))


def cost(examples: int = 256, epoch: int = 3000, batch_size: int = 16) -> dict[str, Any]:
    """Seconds and peak memory of a calibration, beside training steps in the same process."""
    tokenizer, model = load()
    texts = list(get_task("movie-rating").load(SplitSizes(epoch, 500, 500), 0)["train"]["text"])
    inputs = list(map(without_targets, batches(tokenizer, texts[:examples], 32)))
    model.eval()
    reset_peak_memory()
    with torch.no_grad():
        for batch in inputs:
            model(**batch)
    peak_mb = {"none": process_peak_memory()}
    reset_peak_memory()
    report = calibrate(model, inputs)
    peak_mb["calibrate"] = process_peak_memory()
    seconds: dict[str, list[float]] = {"calibrate": [report.seconds], "train": []}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-9)
    steps = list(batches(tokenizer, texts[: 4 * batch_size], batch_size))
    for _ in range(2):
        model.train()
        start = time.perf_counter()
        for batch in steps:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds["train"].append(time.perf_counter() - start)
        seconds["calibrate"].append(calibrate(model, inputs).seconds)
    epoch_s = statistics.median(seconds["train"]) * epoch / (4 * batch_size)
    calibrate_s = statistics.median(seconds["calibrate"])
    return {
        "model": "smollm2-135m",
        "layers": len(report.layers),
        "examples": examples,
        "epoch_examples": epoch,
        "threads": torch.get_num_threads(),
        "epoch_s": epoch_s,
        "calibrate_s": calibrate_s,
        "of_epoch": calibrate_s / epoch_s,
        "peak_mb": peak_mb,
    }


def run(learning_rate: float, seed: int, sizes: SplitSizes, epochs: int, batch_size: int) -> dict[str, Any]:
    data = get_task("movie-rating").load(sizes, 0)
    texts = {name: list(data[name]["text"]) for name in ("train", "test")}
    tokenizer, model = load(seed)
    test = list(batches(tokenizer, texts["test"], 32))
    with model.disable_adapter():
        model.eval()
        losses = [(float(model(**b).loss.detach()), int((b["labels"][:, 1:] != -100).sum())) for b in test]
    base_nll = sum(loss * n for loss, n in losses) / sum(n for _, n in losses)
    order = random.Random(seed)
    steps = math.ceil(len(texts["train"]) / batch_size) * epochs
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(0.06 * steps), steps)
    model.train()
    start, step = time.perf_counter(), 0
    for _ in range(epochs):
        shuffled = order.sample(texts["train"], len(texts["train"]))
        for batch in batches(tokenizer, shuffled, batch_size):
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % 10 == 0:
                print(f"lr {learning_rate:g} step {step}/{steps} loss {loss.item():.3f}", file=sys.stderr, flush=True)
    train_s = time.perf_counter() - start
    inputs = list(map(without_targets, batches(tokenizer, texts["train"][:256], 32)))
    result: dict[str, Any] = {
        "model": "smollm2-135m",
        "targets": TARGETS,
        "learning_rate": learning_rate,
        "seed": seed,
        "train_sentences": len(texts["train"]),
        "test_sentences": len(texts["test"]),
        "epochs": epochs,
        "trainable": model.get_nb_trainable_parameters()[0],
        "train_s": train_s,
        "base": {"nll": base_nll, "perplexity": math.exp(base_nll)},
        "by_form": {},
        "threads": torch.get_num_threads(),
    }
    result["calibrate_s"] = calibrate(model, inputs).seconds
    for entry in merge_gap(model, test).end_to_end:
        nll = entry.metric["nll"]
        result["by_form"][entry.form] = {
            "nll": nll,
            "perplexity": math.exp(nll),
            "kl": entry.kl,
            "agreement": entry.agreement,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cost", action="store_true", help="measure what a calibration costs; OUTPUT is a file")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[2e-3, 5e-3, 1e-2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    quiet_libraries()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.cost:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, cost())
        return
    args.output.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for rate in args.learning_rates:
            path = args.output / f"lr{rate:g}-seed{seed}.json"
            if path.exists():
                there = json.loads(path.read_text(encoding="utf-8"))
                asked = {"train_sentences": args.train, "test_sentences": args.test, "epochs": args.epochs}
                if odd := [name for name, value in asked.items() if there[name] != value]:
                    raise SystemExit(f"{path} is of another {odd[0]} ({there[odd[0]]}): choose another --output")
                continue
            sizes = SplitSizes(args.train, 500, args.test)
            write_json(path, run(rate, seed, sizes, args.epochs, args.batch_size))


if __name__ == "__main__":
    main()
