"""What a probe costs: beside the training steps that follow it on SmolLM2-135M, and at LLaMA3-8B's shapes.

    python -m benchmarks.probe_cost --output results/probe/cost.json

Training questions of wikihow-goal in batches of 8; LoRA of the ranks that the probe chooses, for a budget like that of
r=8 on query and value. Seconds are those of one CPU core (process time, one thread), so that other work on the machine
does not count: probes and steps in turn, the same batches for both. Memory is the peak, after the model was loaded, of
a process that makes a few steps, and of one that probes (Linux). LLaMA3-8B: the sketches' memory and the operations,
by its shapes.
"""

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import aurora_lora
from aurora_lora.files import write_json
from aurora_lora.methods.start import PROBED
from aurora_lora.train.models import load_causal_model, load_tokenizer
from aurora_lora.train.probing import MOST
from aurora_lora.train.recipe import validate
from aurora_lora.train.run import load_data
from aurora_lora.train.trainer import process_peak_memory, quiet_libraries, reset_peak_memory

from .paper_costs import LLAMA3_8B

MODEL, BATCH, EPOCH = "smollm2-135m", 8, 3000
EXAMPLES: int = PROBED["probe_examples"]
BUDGET = 30 * 8 * (576 + 576 + 576 + 192)
"""Weights of LoRA r=8 on query and value."""
TASK = {
    "name": "wikihow-goal",
    "train_size": 320,
    "validation_size": 60,
    "test_size": 60,
    "max_length": 96,
    "loss_on": "answer",
}
Batch = dict[str, Tensor]


def batches(n: int) -> list[Batch]:
    recipe = validate({"name": "probe-cost", "model": MODEL, "task": TASK, "method": {"name": "lora"}}, "probe-cost")
    data = load_data(recipe, load_tokenizer(MODEL))
    chosen = [data.splits["train"][i] for i in range(n)]
    made = [data.collate(chosen[at : at + BATCH]) for at in range(0, n, BATCH)]
    return [{name: batch[name] for name in ("input_ids", "attention_mask", "labels")} for batch in made]


class Steps:
    """Training steps of LoRA with the ranks of a probe."""

    def __init__(self, found: aurora_lora.Probe | None) -> None:
        base = load_causal_model(MODEL)
        config = (
            aurora_lora.ranked_config(found, BUDGET, LoraConfig)
            if found is not None
            else LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
        )
        self.model = get_peft_model(base, config).train()
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def __call__(self, data: Sequence[Batch]) -> None:
        for batch in data:
            self.model(**batch).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


def seconds(work: Any, *args: Any, **options: Any) -> tuple[float, Any]:
    start = time.process_time()
    result = work(*args, **options)
    return time.process_time() - start, result


def peak_mb(what: str, examples: int) -> float:
    """Of a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return float(pool.apply(_peak, (what, examples)))


def _peak(what: str, examples: int) -> float:
    quiet_libraries()
    torch.set_num_threads(1)
    data = batches(examples)
    steps, model = (Steps(None), None) if what == "steps" else (None, load_causal_model(MODEL))
    reset_peak_memory()  # that of loading may be higher
    if steps is not None:
        steps(data[:4])
    else:
        aurora_lora.probe(model, data, rank=MOST)
    return process_peak_memory()


def llama(examples: int, tokens: int) -> dict[str, Any]:
    """By the shapes: a weight costs 2 operations for each token forward and 2 backward, and twice that for the sketch's
    columns."""
    blocks, shapes = LLAMA3_8B.blocks, LLAMA3_8B.layers()
    columns = MOST + 8
    widths = blocks * sum(d_in + d_out for d_in, d_out in shapes.values())
    weights = blocks * sum(d_in * d_out for d_in, d_out in shapes.values())
    n = examples * tokens
    return {
        "examples": examples,
        "tokens": tokens,
        "weight_bytes": 2 * weights,  # bfloat16
        "sketch_bytes": 2 * 4 * columns * widths,  # as `max_memory` counts them: `Sketch.bytes`
        "operations": {"passes": 2 * 4 * weights * n, "sketches": 2 * 2 * columns * widths * n},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="that are probed: those of a recipe by default")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    data, probes, steps = batches(args.examples), [], []
    train = None
    for _ in range(args.rounds):
        taken, found = seconds(aurora_lora.probe, load_causal_model(MODEL), data, rank=MOST)
        probes.append(taken)
        train = train or Steps(found)
        steps.append(seconds(train, data)[0] / len(data))
        print(f"probe {probes[-1]:.1f} s, a step {steps[-1]:.2f} s", flush=True)
    epoch = min(steps) * EPOCH / BATCH
    result = {
        "examples": args.examples,
        "batch": BATCH,
        "epoch": EPOCH,
        "rank": MOST,
        "probe_s": probes,
        "step_s": steps,
        "share_of_epoch": min(probes) / epoch,
        "peak_mb": {what: peak_mb(what, args.examples) for what in ("steps", "probe")},
        "llama3_8b": llama(args.examples, 256),
    }
    print(result)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, result)


if __name__ == "__main__":
    main()
