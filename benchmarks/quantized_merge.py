"""What a merge back into 4 or 8 bits loses: nearest values beside rounding by the inputs, for LoRA, DoRA and AuroRA.

    python -m benchmarks.quantized_merge --output results/quantized [--only lora-0] [--bits 4 8]

SmolLM2-135M in NF4 (blocks of 64) or LLM.int8(); adapters trained as `RECIPE` says, on the NF4 weights dequantised:
on a CPU that takes a fraction of the time and gives the same adapter. Compared on questions that were not trained
on: the KL divergence from the unmerged adapter over the same quantised base, the share of positions with the same
most likely token, the perplexity, and the accuracy of the task. DoRA on LLM.int8() is left out on a CPU: PEFT 0.21
loses the scales there, and the second forward pass fails. Inputs of the calibration: 256 training texts of
the task, or as many film-review sentences. One JSON file for each adapter and base, written as it is finished; what
is there is not run again.
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from aurora_lora import merge_quantized
from aurora_lora.data import SplitSizes, get_task
from aurora_lora.files import write_json
from aurora_lora.train import train
from aurora_lora.train.data import Data, without_targets
from aurora_lora.train.kinds.choices import choice_scores
from aurora_lora.train.models import load_causal_model, load_tokenizer
from aurora_lora.train.recipe import Recipe, validate
from aurora_lora.train.run import load_data
from aurora_lora.train.trainer import quiet_libraries

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "r": 8, "lora_alpha": 16, "target_modules": TARGETS},
    "dora": {"name": "dora", "r": 8, "lora_alpha": 16, "target_modules": TARGETS},
    "aurora": {"name": "aurora", "skip": False, "r": 2, "alpha": 4, "target_modules": TARGETS},
}
SEEDS = (0, 1, 2)
RECIPE: dict[str, Any] = {
    "name": "quantized",
    "task": {
        "name": "wikihow-goal",
        "train_size": 320,
        "validation_size": 60,
        "test_size": 300,
        "max_length": 96,
        "loss_on": "answer",
    },
    "training": {
        "epochs": 2,
        "batch_size": 8,
        "eval_batch_size": 16,
        "learning_rate": 2e-3,
        "precision": "bf16",
        "threads": 1,
    },
    "calibration": {"examples": 128},
}
CALIBRATION, TEST, BATCH = 256, 128, 32
Batch = dict[str, Tensor]


def settings(bits: int) -> BitsAndBytesConfig:
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def bases(folder: Path) -> dict[str, Path]:
    """The model, and its NF4 weights dequantised, as folders."""
    paths = {"float": folder / "float", "dense": folder / "dense"}
    if not (paths["dense"] / "model.safetensors").exists():
        tokenizer = load_tokenizer("smollm2-135m")
        load_causal_model("smollm2-135m").save_pretrained(paths["float"])
        dense = quantised(paths["float"], 4).dequantize(torch.float32)
        if hasattr(dense.config, "quantization_config"):
            del dense.config.quantization_config
        for path in paths.values():
            tokenizer.save_pretrained(str(path))
        dense.save_pretrained(paths["dense"])
    return paths


def quantised(folder: Path, bits: int) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings(bits), dtype=torch.float32, device_map={"": "cpu"}
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # else bitsandbytes computes in bfloat16 on some CPUs
    return model.eval()


def recipe(name: str, base: Path) -> Recipe:
    method, seed = name.split("-")
    values = {**RECIPE, "model": str(base), "method": METHODS[method], "seed": int(seed)}
    values["task"] = {**RECIPE["task"], "split_seed": int(seed)}
    return validate(values, name)


def rows(data: Data, split: str, n: int) -> list[Any]:
    """An even sample of a split, of like lengths together."""
    examples = data.splits[split]
    n = min(n, len(examples))
    chosen = [examples[i * len(examples) // n] for i in range(n)]
    return sorted(chosen, key=lambda example: len(example["prompt"]))


def texts(data: Data, split: str, n: int) -> list[Batch]:
    """Question and right answer, without labels."""
    chosen = rows(data, split, n)
    return [without_targets(data.collate(chosen[at : at + BATCH])) for at in range(0, len(chosen), BATCH)]


def film_sentences(tokenizer: Any, seed: int) -> list[Batch]:
    split = get_task("movie-rating").load(SplitSizes(CALIBRATION, 100, 100), seed)["train"]
    sentences = sorted(split["text"], key=len)
    options: dict[str, Any] = {"padding": True, "truncation": True, "max_length": 96, "return_tensors": "pt"}
    return [dict(tokenizer(sentences[at : at + BATCH], **options)) for at in range(0, len(sentences), BATCH)]


@torch.no_grad()
def predictions(model: Any, batches: list[Batch]) -> tuple[Tensor, float]:
    """Log-probabilities (positions, vocabulary), padding left out, and the perplexity of the texts."""
    found, nll, n = [], 0.0, 0
    for batch in batches:
        mask = batch["attention_mask"].bool()
        log_p = model(**batch).logits.float().log_softmax(-1)
        found.append(log_p[mask])
        target, counted = batch["input_ids"][:, 1:], mask[:, 1:]
        nll -= float(log_p[:, :-1].gather(-1, target[..., None])[..., 0][counted].sum())
        n += int(counted.sum())
    return torch.cat(found), float(torch.tensor(nll / n).exp())


def distance(found: Tensor, reference: Tensor) -> dict[str, float]:
    """From log-probabilities (positions, vocabulary) to others: KL divergence, share with the same likeliest token."""
    kl = functional.kl_div(found, reference, log_target=True, reduction="batchmean").item()
    return {"kl": kl, "same_top": (found.argmax(-1) == reference.argmax(-1)).float().mean().item()}


@torch.no_grad()
def accuracy(model: Any, data: Data) -> float:
    """By the likelihood of the choices, a character."""
    chosen, right = rows(data, "test", TEST), 0
    assert data.questions is not None
    for at in range(0, len(chosen), BATCH):
        batch = data.questions(chosen[at : at + BATCH])
        scores = choice_scores(model, batch, data.questions.max_choices)[..., 1]
        right += int((scores.argmax(-1) == batch["labels"]).sum())
    return right / len(chosen)


def compare(name: str, run: Path, base: Path, bits: int, data: Data) -> dict[str, Any]:
    test, tokenizer = texts(data, "test", TEST), data.processor
    own, film = texts(data, "train", CALIBRATION), film_sentences(tokenizer, int(name.split("-")[1]))
    model = PeftModel.from_pretrained(quantised(base, bits), str(run / "adapter")).eval()
    reference, perplexity = predictions(model, test)

    def measured() -> dict[str, float]:
        found, perplexity = predictions(model, test)
        return {**distance(found, reference), "perplexity": perplexity, "accuracy": accuracy(model, data)}

    result: dict[str, Any] = {
        "adapter": name,
        "bits": bits,
        "positions": len(reference),
        "unmerged": {"perplexity": perplexity, "accuracy": accuracy(model, data)},
    }
    with model.disable_adapter():
        result["no adapter"] = measured()
    for tag, inputs in (("by inputs", own), ("by other texts", film)):
        report = merge_quantized(model, inputs)
        worst = report.worst(n=1)[0]
        result[tag] = {
            **measured(),
            "layers": sum(layer.by_inputs for layer in report.layers) / len(report.layers),
            "layers_nearest": sum(layer.nearest for layer in report.layers) / len(report.layers),
            "worst": {"layer": worst.layer, "share": worst.by_inputs},
            "vectors": report.vectors,
            "seconds": report.seconds,
        }
        model.unmerge_adapter()
    model.merge_adapter()
    result["nearest"] = measured()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/quantized"), help="where models and adapters go")
    parser.add_argument("--only", nargs="*", help="such as lora-0; all by default")
    parser.add_argument("--bits", nargs="*", type=int, choices=[4, 8], default=[4, 8])
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    warnings.filterwarnings("ignore", message="Merg|MatMul8bitLt|.*already merged")
    torch.set_num_threads(1)
    paths = bases(args.runs)
    names = args.only or [f"{method}-{seed}" for seed in SEEDS for method in METHODS]
    for name in names:
        wanted = recipe(name, paths["dense"])
        run = train(wanted, args.runs / name).folder
        data = load_data(wanted, load_tokenizer(str(paths["dense"])))
        for bits in args.bits:
            target = args.output / f"{name}-{bits}bit.json"
            if name.startswith("dora") and bits == 8 and not torch.cuda.is_available():
                print(f"{name}, 8 bits: left out, PEFT computes no DoRA on LLM.int8() on a CPU")
            elif not target.exists():
                found = compare(name, run, paths["float"], bits, data)
                write_json(target, {**found, "recipe": wanted.resolved() | {"model": "smollm2-135m, NF4 dequantised"}})
                print(
                    f"{name}, {bits} bits: "
                    + ", ".join(
                        f"{tag} KL {found[tag]['kl']:.3f}"
                        for tag in ("no adapter", "nearest", "by inputs", "by other texts")
                    )
                )


if __name__ == "__main__":
    main()
