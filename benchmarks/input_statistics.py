"""A merge into a quantised model without data: what it loses by moments of the inputs that are kept in a compact form.

    python -m benchmarks.input_statistics --output results/quantized    # after benchmarks.gguf_merge

E[x x^T] of each layer's inputs, kept as its k leading eigenvectors and the diagonal of what they leave, for some k, on
SmolLM2-135M in Q4_1 and NF4: the KL divergence of the merge from the unmerged adapter, on texts that were neither
trained on nor rounded by. Beside it what is on disk of LLaMA3-8B: four inputs a block, three of width
4,096 and one of 14,336.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from aurora_lora.deploy.calibrate import MAX_MEMORY
from aurora_lora.deploy.gguf import GgufFile
from aurora_lora.deploy.inputs import Passes, Runner, evaluated
from aurora_lora.deploy.merge_quantized import round_layer
from aurora_lora.deploy.merges import input_moments, layers_with_adapters
from aurora_lora.deploy.statistics import Kept
from aurora_lora.files import write_json
from aurora_lora.ops.rounding import input_moment
from aurora_lora.train.models import load_causal_model, load_tokenizer
from aurora_lora.train.trainer import quiet_libraries

from .gguf_merge import CALIBRATION, TEST, batches, predictions, texts

KEPT = (0, 8, 32, 64, 128, 256)
WIDTHS, BLOCKS, LAYERS = (4096, 4096, 4096, 14336), 32, 7


def megabytes(k: int) -> float:
    """On disk for a layer of LLaMA3-8B, of which those that share an input share this."""
    return sum((k + 2) * width * 2 for width in WIDTHS) / LAYERS / 1e6


def model_on(kind: str, base: Path, work: Path) -> Any:
    if kind == "Q4_1":
        return load_causal_model(str(base))
    plain = work / "float"
    if not plain.exists():
        load_causal_model(str(base)).save_pretrained(str(plain))
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=nf4, dtype=torch.float32, device_map={"": "cpu"}
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # else bitsandbytes computes in bfloat16 on some CPUs
    return model


def losses(kind: str, base: Path, adapter: Path, tokenizer: Any) -> dict[str, float]:
    """The KL divergence of each merge."""
    model = PeftModel.from_pretrained(model_on(kind, base, adapter.parent), str(adapter)).eval()
    test = batches(tokenizer, texts("reviews", "test", 0, TEST))
    reference = predictions(model, test)
    every = layers_with_adapters(model, "input_statistics")
    if kind == "Q4_1":
        file = GgufFile(base)
        every = [replace(each, format=file.format_of(model, each.path, each.module.get_base_layer())) for each in every]
    layers = {each.path: each for each in every}
    data = Passes(batches(tokenizer, texts("reviews", "train", 0, CALIBRATION)))
    data.hold()
    held: dict[str, dict[str, Any]] = {"full": {}, "nearest": {}} | {str(k): {} for k in KEPT}
    with evaluated(model), Runner(model, "input_statistics") as runner:
        for S, together in input_moments(layers, runner, data, MAX_MEMORY):
            for name in held:
                if name == "nearest":
                    continue
                kept = (
                    S
                    if name == "full"
                    else S.diagonal().diag()
                    if name == "0"
                    else Kept.of(S, int(name), {}).moment(S.device)
                )
                inputs = input_moment(kept)
                for layer, vectors in together:
                    found = round_layer(layer, kept, inputs, vectors)
                    held[name][layer.path] = found.weight
                    held["nearest"][layer.path] = found.nearest
    result = {}
    with model.disable_adapter():
        log_p = predictions(model, test)
        result["no adapter"] = functional.kl_div(log_p, reference, log_target=True, reduction="batchmean").item()
        for name, weights in held.items():
            for path, weight in weights.items():
                layers[path].format.put(weight)
            log_p = predictions(model, test)
            result[name] = functional.kl_div(log_p, reference, log_target=True, reduction="batchmean").item()
            print(kind, name, result[name], flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/gguf"), help="of benchmarks.gguf_merge")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    base, adapter = args.work / "smollm2-Q4_1.gguf", args.work / "smollm2-lora-0"
    tokenizer = load_tokenizer(str(base))
    found = {kind: losses(kind, base, adapter, tokenizer) for kind in ("Q4_1", "NF4")}
    write_json(args.output / "input_statistics.json", {"kl": found, "megabytes": {k: megabytes(k) for k in KEPT}})


if __name__ == "__main__":
    main()
