"""What rounding by the inputs costs in a 4-bit merge: beside a calibration on SmolLM2-135M, and at LLaMA3-8B's shapes.

    python benchmarks/quantized_cost.py --output results/quantized/cost.json

Seconds are those of one CPU core (process time, one thread), so that other work on the machine does not count.
SmolLM2-135M in NF4 with AuroRA r=2 on seven projections: `calibrate` and `merge_quantized` in turn on the same 256
texts. Blocks of LLaMA3-8B at three sixteenths of its widths: `merge_quantized`, its gathering of moments and its
rounding apart. The time at full width is that, scaled by the operations: a moment takes d_in^2 for each vector, the
rounding of a layer d_in^2 d_out.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from quantized_merge import CALIBRATION, bases, quantised, recipe, texts
from torch import Tensor, nn

from aurora_lora import AuroraConfig, calibrate, merge_quantized
from aurora_lora.deploy.moments import Target, moment_bytes, pack
from aurora_lora.files import write_json
from aurora_lora.lab.bench.analytic_cost import LLAMA3_8B, Shapes
from aurora_lora.lab.bench.timing import cpu_seconds
from aurora_lora.train.build import load_data
from aurora_lora.train.models import load_tokenizer
from aurora_lora.train.progress import quiet_libraries

PROJECTIONS = list(LLAMA3_8B.layers())
BLOCKS, D, D_KV, D_FF = LLAMA3_8B.blocks, LLAMA3_8B.hidden, LLAMA3_8B.kv, LLAMA3_8B.intermediate
INPUTS = {
    "q_proj": "h",
    "k_proj": "h",
    "v_proj": "h",
    "o_proj": "o",
    "gate_proj": "m",
    "up_proj": "m",
    "down_proj": "f",
}
"""Which projections have the same input, and so one moment."""


def shapes(d: int, d_kv: int, d_ff: int) -> dict[str, tuple[int, int]]:
    """(d_in, d_out) of a block's projections."""
    return Shapes("a block", d, d_kv, d_ff, blocks=1, vocabulary=0).layers()


def operations(d: int, d_kv: int, d_ff: int) -> dict[str, int]:
    """Of a block, for a vector (moments, forward pass) or once (rounding, factors): what time is proportional to."""
    of = shapes(d, d_kv, d_ff)
    own = {INPUTS[name]: d_in for name, (d_in, _) in of.items()}
    return {
        "moments": sum(d_in**2 for d_in in own.values()),
        "forward": sum(d_in * d_out for d_in, d_out in of.values()),
        "rounding": sum(d_in**2 * d_out for d_in, d_out in of.values()) + sum(d_in**3 for d_in in own.values()),
    }


def smollm2(runs: Path, repeats: int) -> dict[str, Any]:
    paths = bases(runs)
    data = load_data(recipe("aurora-0", paths["dense"]), load_tokenizer(str(paths["dense"])))
    batches = texts(data, "train", CALIBRATION)
    torch.manual_seed(0)
    config = AuroraConfig(r=2, skip=False, target_modules=PROJECTIONS, init_weights=False)
    model = get_peft_model(quantised(paths["float"], 4), config).eval()
    found: dict[str, Any] = {"calibrate": [], "merge_quantized": []}
    for _ in range(repeats):
        found["calibrate"].append(cpu_seconds(lambda: calibrate(model, batches)))
        found["merge_quantized"].append(cpu_seconds(lambda: merge_quantized(model, batches)))
        model.unmerge_adapter()
        print("SmolLM2-135M:", {name: round(values[-1], 1) for name, values in found.items()})
    return found


class Block(nn.Module):
    """The projections of a block; attention, which takes little of the time here, is left out."""

    def __init__(self, d: int, d_kv: int, d_ff: int) -> None:
        super().__init__()
        for name, (d_in, d_out) in shapes(d, d_kv, d_ff).items():
            options: dict[str, Any] = {"bias": False, "quant_type": "nf4", "compute_dtype": torch.float32}
            setattr(self, name, bnb.nn.Linear4bit(d_in, d_out, **options))

    def forward(self, x: Tensor) -> Tensor:
        shared = self.q_proj(x) + (self.k_proj(x) + self.v_proj(x)).repeat(1, D // D_KV)
        h = x + self.o_proj(shared)
        m = h + 0  # an input of its own, as after a norm
        return h + self.down_proj(self.gate_proj(m) * self.up_proj(m))


def llama(share: float, blocks: int, vectors: int) -> dict[str, Any]:
    """Blocks of LLaMA3-8B at a share of its widths."""
    sizes = [int(share * size) for size in (D, D_KV, D_FF)]
    torch.manual_seed(0)
    model = nn.Sequential(*[Block(*sizes) for _ in range(blocks)]).to("cpu")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model = get_peft_model(model, LoraConfig(r=8, target_modules=PROJECTIONS, init_lora_weights=False)).eval()
    counted = operations(*sizes)
    times = {}
    for n in (vectors // 4, vectors):  # the difference is the moments' and the forward pass's, the rest the rounding's
        batches = [0.1 * torch.randn(n // 4, sizes[0]) for _ in range(4)]
        times[n] = cpu_seconds(lambda batches=batches: merge_quantized(model, batches, max_memory=8 * 2**30))
        model.unmerge_adapter()
    by_vector = (times[vectors] - times[vectors // 4]) / (vectors - vectors // 4)
    return {
        "share": share,
        "widths": sizes,
        "blocks": blocks,
        "seconds": {str(n): value for n, value in times.items()},
        "seconds_a_block": {
            "for 1,000 vectors": 1000 * by_vector / blocks,
            "rounding": (times[vectors] - vectors * by_vector) / blocks,
        },
        "operations_a_block": counted,
    }


class _Shape:
    def __init__(self, d_in: int, d_out: int) -> None:
        self.in_features, self.out_features = d_in, d_out

    def get_base_layer(self) -> _Shape:
        return self


def llama3_8b(measured: dict[str, Any], memory: str = "16 GiB", vectors: int = 256 * 128) -> dict[str, Any]:
    """The plan from shapes, and the time scaled from what was measured on narrower blocks."""
    layers = [
        Target(f"{i}.{name}", _Shape(d_in, d_out))
        for i in range(BLOCKS)
        for name, (d_in, d_out) in shapes(D, D_KV, D_FF).items()
    ]
    passes = len(pack(layers, moment_bytes, int(memory.split()[0]) * 2**30))
    full, small, took = operations(D, D_KV, D_FF), measured["operations_a_block"], measured["seconds_a_block"]
    rounding = BLOCKS * took["rounding"] * full["rounding"] / small["rounding"]
    # with little memory the forward pass is repeated; its share of the time of a vector is that of its operations
    per_vector = took["for 1,000 vectors"] / 1000 / (small["moments"] + small["forward"])
    gathering = BLOCKS * vectors * per_vector * (full["moments"] + passes * full["forward"])
    return {
        "memory": memory,
        "passes": passes,
        "vectors": vectors,
        "core_hours": {"rounding": rounding / 3600, "moments and forward passes": gathering / 3600},
        "operations": {
            "rounding": BLOCKS * full["rounding"],
            "moments": BLOCKS * vectors * full["moments"],
            "forward": BLOCKS * vectors * passes * full["forward"],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/quantized"), help="where the model goes")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    warnings.filterwarnings("ignore", message="Merg|.*already merged")
    torch.set_num_threads(1)
    narrow = [llama(share, blocks=2, vectors=8192) for share in (2 / 16, 3 / 16)]
    result = {"llama": narrow, "llama3_8b": llama3_8b(narrow[-1])}
    # what the narrower of the two foretells of the wider
    ratio = narrow[1]["operations_a_block"]["rounding"] / narrow[0]["operations_a_block"]["rounding"]
    result["foretold"] = {"rounding": narrow[0]["seconds_a_block"]["rounding"] * ratio}
    for each in narrow:
        print(f"{each['widths']}:", {k: round(v, 2) for k, v in each["seconds_a_block"].items()})
    print(result["llama3_8b"], result["foretold"])
    result["smollm2"] = smollm2(args.runs, args.repeats)
    write_json(args.output, result)


if __name__ == "__main__":
    main()
