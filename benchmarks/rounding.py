"""Which way of rounding changes a layer's outputs least: variants of `ops.rounding`, and llmcompressor's GPTQ.

    python benchmarks/rounding.py --output results/quantized/rounding.json

The layers of SmolLM2-135M in NF4 (blocks of 64) with the adapter lora-0 of `quantized_merge.py`, every fifth block.
For each way the geometric mean over the layers of E|(W_q - W) x|^2 / E|dW x|^2: on 128 texts that were not
rounded by (test), and on them where it was rounded by other texts. End to end, the KL divergence where the inputs
are those of the model before the merge (used), and where each block is merged before the inputs of the next are
gathered. With llmcompressor installed, its GPTQ is compared on a grid that both know (int4 and int8, symmetric), layer
by layer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from quantized_merge import (
    CALIBRATION,
    TEST,
    Batch,
    bases,
    distance,
    film_sentences,
    predictions,
    quantised,
    recipe,
    texts,
)
from torch import Tensor

from aurora_lora import merge_quantized
from aurora_lora.deploy.formats import Format, format_of
from aurora_lora.deploy.inputs import Passes, Runner
from aurora_lora.deploy.merge_quantized import hold_rounded, quantized_layers, round_layer
from aurora_lora.deploy.merged_weight import adapters_of, merged_linear
from aurora_lora.deploy.moments import Target, input_moments
from aurora_lora.files import write_json
from aurora_lora.ops.rounding import Grid, better_grid, input_moment, output_error, round_to_moment
from aurora_lora.train import train
from aurora_lora.train.build import load_data
from aurora_lora.train.models import load_tokenizer
from aurora_lora.train.progress import quiet_libraries
from aurora_lora.tuner.peft_names import BaseTunerLayer, resolve_quantization_backend

Way = Callable[[Tensor, Tensor, Format], Tensor]
"""From a weight, the moment of its inputs and the format: the rounded weight."""


def moments(model: Any, layers: dict[str, Any], batches: list[Batch]) -> dict[str, Tensor]:
    targets = [Target(name, layer) for name, layer in layers.items()]
    with torch.no_grad(), Runner(model, "rounding.py") as runner:
        found = input_moments(runner, targets, Passes(batches))
        return {each.target.name: S for together in found for S in [together[0].mean()] for each in together}


def rounding(
    grid: str = "better", feedback: bool = True, ordered: bool = True, sweeps: int = 1, damping: float = 1e-3
) -> Way:
    def way(weight: Tensor, S: Tensor, format: Format) -> Tensor:
        held, own = format.grid(), format.fitted(weight)
        on = {"held": held, "own": own, "better": better_grid(weight, held, own, S.diagonal())}[grid]
        if not feedback:
            return on.dequantised(on.round(weight))
        inputs = input_moment(S, damping)
        if not ordered:
            back = torch.argsort(inputs.order)
            damped = inputs.S[back][:, back]
            upper = torch.linalg.cholesky(torch.linalg.inv(damped.double()), upper=True)
            inputs = replace(inputs, order=torch.arange(len(S)), S=damped, U=upper.float())
        return on.dequantised(round_to_moment(weight, inputs, on, sweeps))

    return way


WAYS: dict[str, Way] = {
    "nearest values": rounding("own", feedback=False),
    "feedback, columns in their order": rounding("own", ordered=False, sweeps=0),
    "feedback, by importance": rounding("own", sweeps=0),
    "the same, scales of the base": rounding("held", sweeps=0),
    "the same, the better scales": rounding(sweeps=0),
    "the same, one sweep (used)": rounding(),
    "the same, two sweeps": rounding(sweeps=2),
    "one sweep, damping 1e-2": rounding(damping=1e-2),
    "one sweep, damping 1e-4": rounding(damping=1e-4),
}


def reference(weights: dict[str, Tensor], S: dict[str, Tensor], test: dict[str, Tensor]) -> list[dict[str, Any]]:
    """llmcompressor's GPTQ and ours, on int4 in blocks of 64 and int8 by row."""
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    rows = []
    for bits, block in ((4, 64), (8, None)):
        for name, weight in weights.items():
            width = block or weight.shape[1]
            scale = weight.view(len(weight), -1, width).abs().amax(-1) / ((2**bits - 1) / 2)
            strategy = "group" if block else "channel"
            args = QuantizationArgs(
                num_bits=bits, symmetric=True, strategy=strategy, group_size=block, actorder="static"
            )
            zero = torch.zeros_like(scale, dtype=torch.int8)
            theirs = quantize_weight(
                weight.clone()[None], S[name].clone()[None], scale.clone()[None], zero[None], None, args, percdamp=1e-2
            )[0].view_as(weight)
            top = 2 ** (bits - 1)
            grid = Grid(torch.arange(-top, top, dtype=torch.float32), scale.reshape(-1), width)
            same, ours = (
                grid.dequantised(round_to_moment(weight, input_moment(S[name], damping), grid, sweeps))
                for damping, sweeps in ((1e-2, 0), (1e-3, 1))
            )
            near = grid.dequantised(grid.round(weight))
            row: dict[str, Any] = {"layer": name, "bits": bits}
            for tag, rounded in (
                ("nearest", near),
                ("llmcompressor", theirs),
                ("ours, its settings", same),
                ("ours", ours),
            ):
                row[tag] = {
                    "calibration": output_error(rounded - weight, S[name]),
                    "test": output_error(rounded - weight, test[name]),
                }
            rows.append(row)
    return rows


def in_order(model: Any, batches: list[Batch], test: list[Batch]) -> dict[str, dict[str, float]]:
    """KL divergence of the merge by the inputs of the unmerged model, and block by block by those of the merged one."""
    reference, _ = predictions(model, test)

    def measured() -> dict[str, float]:
        return distance(predictions(model, test)[0], reference)

    merge_quantized(model, batches)
    result = {"inputs of the unmerged model (used)": measured()}
    model.unmerge_adapter()
    layers, _ = quantized_layers(model)
    blocks: dict[str, list[str]] = {}
    for path in layers:
        blocks.setdefault(path.split(".layers.")[1].split(".")[0], []).append(path)
    for paths in blocks.values():
        with torch.no_grad(), Runner(model, "rounding.py") as runner:
            targets = [Target(path, layers[path].module) for path in paths]
            rounded = {}
            for together in input_moments(runner, targets, Passes(batches)):
                S = together[0].mean()
                inputs = input_moment(S)
                for each in together:
                    rounded[each.target.name] = round_layer(layers[each.target.name], S, inputs, each.vectors)
        for path in paths:
            hold_rounded(layers[path], rounded[path])
    result["inputs of the merged blocks before"] = measured()
    model.unmerge_adapter()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/quantized"))
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    torch.set_num_threads(1)
    paths = bases(args.runs)
    wanted = recipe("lora-0", paths["dense"])
    run = train(wanted, args.runs / "lora-0").folder
    data = load_data(wanted, load_tokenizer(str(paths["dense"])))
    model = PeftModel.from_pretrained(quantised(paths["float"], 4), str(run / "adapter")).eval()
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer)
        and adapters_of(layer)
        and int(name.split(".layers.")[1].split(".")[0]) % 5 == 1
    }
    own = moments(model, layers, texts(data, "train", CALIBRATION))
    film = moments(model, layers, film_sentences(data.processor, 0))
    test = moments(model, layers, texts(data, "test", TEST))
    formats = {
        n: format_of(layer.get_base_layer(), resolve_quantization_backend(layer.get_base_layer()))
        for n, layer in layers.items()
    }  # type: ignore[arg-type]
    base = {n: format.dense() for n, format in formats.items()}  # type: ignore[union-attr]
    weights = {n: merged_linear(n, layer, base[n], adapters_of(layer))[0] for n, layer in layers.items()}
    result: dict[str, Any] = {"layers": len(layers), "ways": {}}
    for tag, way in WAYS.items():
        start, found = time.perf_counter(), {}
        for texts_of, S in (("its texts", own), ("other texts", film)):
            shares = [
                output_error(way(w, S[n], formats[n]) - w, test[n]) / output_error(w - base[n], test[n])  # type: ignore[arg-type]
                for n, w in weights.items()
            ]
            found[texts_of] = statistics.geometric_mean(shares)
        result["ways"][tag] = {**found, "seconds": (time.perf_counter() - start) / 2}
        print(f"{tag}: {found['its texts']:.4f}, other texts {found['other texts']:.4f}")
    result["order"] = in_order(model, texts(data, "train", CALIBRATION), texts(data, "test", TEST))
    print(result["order"])
    try:
        chosen = {n: w for n, w in weights.items() if n.split(".")[-1] in ("q_proj", "up_proj", "down_proj")}
        result["llmcompressor"] = reference(chosen, own, test)
    except ImportError:
        print("llmcompressor is not installed: not compared with it")
    write_json(args.output, result)


if __name__ == "__main__":
    main()
