"""QLoRA with AuroRA: the base in bitsandbytes' 4 bits, the adapter in float32; runs on a CPU too.

    python examples/qlora.py --output runs/qlora

At the end the adapter is merged twice: into the dequantised weights, which is exact, and back into 4 bits, which rounds
the sum to 4 bits again. How far each merged model is from what the adapter computed is printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import common
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from aurora_lora import calibrate

with common.needs("quantized"):
    import bitsandbytes  # noqa: F401 - Transformers asks for it


def quantised(folder: Path) -> Any:
    """The model of a folder in 4 bits."""
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_use_double_quant=True,
    )
    place = {"": 0 if torch.cuda.is_available() else "cpu"}
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, dtype=torch.float32, device_map=place, trust_remote_code=False
    )


def train(model: nn.Module, batches: list[common.Batch], learning_rate: float, epochs: int) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    device = next(model.parameters()).device
    model.train()
    for step in range(epochs * len(batches)):
        batch = {key: value.to(device) for key, value in batches[step % len(batches)].items()}
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}/{epochs * len(batches)}: loss {loss.item():.4f}")


@torch.no_grad()
def log_probabilities(model: nn.Module, batch: common.Batch) -> Tensor:
    """(tokens, vocabulary), padding left out."""
    device = next(model.parameters()).device
    logits = model(input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device)).logits
    return functional.log_softmax(logits[batch["attention_mask"].bool().to(device)].float(), -1)


def distance(reference: Tensor, other: Tensor) -> dict[str, float]:
    """Mean KL(reference || other) in nats, and the largest difference of a log-probability."""
    kl = functional.kl_div(other, reference, log_target=True, reduction="batchmean")
    return {"kl": kl.item(), "largest": (reference - other).abs().max().item()}


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    args: argparse.Namespace = parser.parse_args()

    tokenizer, base = common.load_model(args.model)
    base.save_pretrained(args.output / "base")
    base = quantised(args.output / "base")
    base = prepare_model_for_kbit_training(base, gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(0)
    model = get_peft_model(base, common.aurora_config(args))
    batches = common.training_batches(args, tokenizer)
    train(model, batches, args.learning_rate, args.epochs)
    model.save_pretrained(args.output / "adapter")

    base = quantised(args.output / "base")
    model = PeftModel.from_pretrained(base, str(args.output / "adapter"))
    test = common.token_batches(tokenizer, common.sentences(args.model, 16), 16)[0]
    trained = log_probabilities(model.eval(), test)  # the dynamic form, as it is not calibrated yet
    calibrate(model, batches)
    model.save_pretrained(args.output / "calibrated")
    adapter = log_probabilities(model.eval(), test)  # the form that is merged
    in_4_bits = model.merge_and_unload()
    # On a CPU with AVX512-BF16, bitsandbytes packs 4-bit weights at the first call in eval mode, and Transformers would
    # dequantise those of the layers without adapter to other numbers. Making a state dict unpacks them, rightly with
    # double quantisation only.
    in_4_bits.state_dict()

    # the same adapter on the same 4-bit weights, dequantised: nothing is rounded to 4 bits again
    dense = quantised(args.output / "base").dequantize(torch.float32)
    dense = PeftModel.from_pretrained(dense, str(args.output / "calibrated"))
    reference = log_probabilities(dense, test)
    with dense.disable_adapter():
        without = log_probabilities(dense, test)
    merged = dense.merge_and_unload()
    merged.save_pretrained(args.output / "merged")

    result = {
        "effect of the adapter": distance(reference, without),
        "calibrated instead of trained form": distance(trained, adapter),
        "4-bit arithmetic instead of dequantised": distance(reference, adapter),
        "merged, dequantised": distance(reference, log_probabilities(merged, test)),
        "merged, in 4 bits again": distance(reference, log_probabilities(in_4_bits.dequantize(torch.float32), test)),
    }
    for name, values in result.items():
        print(f"{name}: KL {values['kl']:.2e}, largest log-probability difference {values['largest']:.2e}")
    (args.output / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
