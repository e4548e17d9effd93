"""Where AuroRA's nonlinearity earns something: a map on frozen features, before a linear head.

    python -m benchmarks.frozen_features --output results/frozen-features [--only "digits, pixels"]

Features x of a frozen base, standardised on the training split, go through a frozen identity that has an adapter, and
through a linear head that is trained with it: head(x + s B sigma(A x)) for AuroRA (s = 2, evaluated dynamic), as it
comes, without the skip (tanh), and so with ReLU; LoRA and Houlsby's bottleneck (GELU) in the same place, at the ranks
whose numbers of weights come nearest to AuroRA's; and the head alone.

Every setting is tuned alike, on a split of its own (`TUNING_SEED`), by the least validation loss: from `START` along
`RATES`, until both neighbours are worse, then at that rate along `DECAYS`. AdamW, a constant rate, until
the validation loss has not fallen for `PATIENCE`, both of it, or for `STEPS` in all; the best epoch's weights are
scored. Seeds 0 to 4 decide on the splits, the start and the order of the batches. A run is one line of
OUTPUT/runs.jsonl, written as it is finished; what is there is not run again. Features are kept in --cache.
"""

import argparse
import copy
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel

from aurora_lora import AuroraConfig, calibrate, set_form
from aurora_lora.data import SplitSizes, get_task
from aurora_lora.data.metrics import classification_metrics, regression_metrics
from aurora_lora.data.models import resolve_model
from aurora_lora.files import new_file, write_text
from aurora_lora.methods.bottleneck import AfterLinear
from aurora_lora.train.models import load_tokenizer
from aurora_lora.train.trainer import quiet_libraries

RANKS = (2, 8, 32)
AURORA: dict[str, dict[str, Any]] = {
    "aurora-skip": {},
    "aurora": {"skip": False},
    "aurora-relu": {"skip": False, "fixed_activation": "relu"},
}
METHODS = (*AURORA, "lora", "mlp")
RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
DECAYS = (0.0, 0.1, 1.0, 10.0, 100.0)
START = {"rate": 3e-3, "decay": 1.0}
SEEDS, TUNING_SEED = (0, 1, 2, 3, 4), 100
BATCH, STEPS = 128, 20_000
PATIENCE = {"epochs": 5, "steps": 300}
SCALE = 2
CALIBRATION = 2048
FEATURES: dict[str, tuple[str, str, SplitSizes]] = {
    f"{task}, {base}": (task, base, sizes)
    for task, bases, sizes in (
        ("digits", ("pixels",), SplitSizes(None, 400, 500)),
        ("cifar10-10k", ("pixels",), SplitSizes(None, 1000, 3000)),
        ("movie-sentiment", ("words", "sentences"), SplitSizes(None, 1000, 3000)),
        ("movie-rating", ("words", "sentences"), SplitSizes(None, 1000, 3000)),
    )
    for base in bases
}
"""Task and base. "sentences": MiniLM-L6, the mean of its last hidden states; "words": the mean of its word embeddings;
"pixels": 8 by 8, those of CIFAR-10 the means of 4 by 4."""


@dataclass(frozen=True)
class Split:
    """x: (examples, d); y: (examples,)."""

    x: Tensor
    y: Tensor


class Texts:
    """The features of texts, each computed once and kept under the hash of its text."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.found: dict[str, dict[str, Tensor]] = {}

    def __call__(self, base: str, texts: list[str]) -> Tensor:
        path = self.cache / f"{base}.safetensors"
        if base not in self.found:
            self.found[base] = load_file(path) if path.exists() else {}
        known = self.found[base]
        names = {text: hashlib.sha256(text.encode()).hexdigest() for text in texts}
        if new := sorted((text for text, name in names.items() if name not in known), key=len):
            known |= {names[text]: one for text, one in zip(new, embedded(new, base), strict=True)}
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(path) as partial:
                save_file(known, str(partial))
        return torch.stack([known[names[text]] for text in texts])


@torch.no_grad()
def embedded(texts: list[str], base: str) -> list[Tensor]:
    tokenizer = load_tokenizer("minilm-l6")
    model = AutoModel.from_pretrained(resolve_model("minilm-l6")).eval()
    found: list[Tensor] = []
    for at in range(0, len(texts), 64):
        options: dict[str, Any] = {"padding": True, "truncation": True, "max_length": 128, "return_tensors": "pt"}
        batch = tokenizer(texts[at : at + 64], add_special_tokens=base == "sentences", **options)
        mask = batch["attention_mask"][..., None]
        hidden = (
            model(**batch).last_hidden_state
            if base == "sentences"
            else model.get_input_embeddings()(batch["input_ids"])
        )
        found += ((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).unbind()
    return [row.clone() for row in found]


def pixels(images: list[Any]) -> Tensor:
    from torchvision.transforms.functional import pil_to_tensor

    whole = torch.stack([pil_to_tensor(image).float() for image in images])
    return functional.adaptive_avg_pool2d(whole, 8).flatten(1)


def load(name: str, seed: int, texts: Texts) -> dict[str, Split]:
    """The splits, standardised."""
    task_name, base, sizes = FEATURES[name]
    task = get_task(task_name)
    splits = {}
    for part, rows in task.load_splits(sizes, seed).items():
        y = torch.tensor(rows["label"], dtype=torch.float32 if task.kind == "regression" else torch.int64)
        x = pixels(rows["image"]) if base == "pixels" else texts(base, rows["text"])
        splits[part] = Split(x, y)
    rows = splits["train"].x
    mean, std = rows.mean(0), rows.std(0)
    std = std.clamp(min=0.1 * float(std.mean()))  # a pixel may be 0 in every training image, and not in the others
    return {part: Split((split.x - mean) / std, split.y) for part, split in splits.items()}


def outputs(name: str) -> int:
    task = get_task(FEATURES[name][0])
    return 1 if task.kind == "regression" else task.num_labels


def chance(splits: dict[str, Split]) -> float:
    """Of always saying the most frequent class of the training split; no correlation."""
    train, test = splits["train"].y, splits["test"].y
    return 0.0 if train.is_floating_point() else (test == train.mode().values).float().mean().item()


class Identity(nn.Linear):
    """A linear layer with the identity for a weight, which costs no product."""

    def __init__(self, d: int) -> None:
        super().__init__(d, d, bias=False)
        nn.init.eye_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Probe(nn.Module):
    def __init__(self, d: int, outputs: int) -> None:
        super().__init__()
        self.map = Identity(d)
        self.head = nn.Linear(d, outputs)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(examples, d) to (examples, classes), or (examples,)."""
        return self.head(self.map(x)).squeeze(-1)


def probe(method: str, rank: int, d: int, outputs: int) -> nn.Module:
    """What is trained: the head, and the adapter of the identity before it."""
    model: Any = Probe(d, outputs)
    head = model.head
    model.map.requires_grad_(False)
    rank = matched(method, rank, d)
    if method in AURORA:
        options: Any = {"alpha": SCALE * rank, "target_modules": ["map"], "eval_form": "dynamic"}
        config = AuroraConfig(r=rank, **AURORA[method], **options)
        model = get_peft_model(model, config)
    elif method == "lora":
        model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=["map"]))
    elif method == "mlp":
        model.map = AfterLinear(model.map, {"r": rank, "activation": "gelu"})
    head.requires_grad_(True)
    return model


def matched(method: str, rank: int, d: int) -> int:
    """The rank whose number of weights is the nearest to that of AuroRA at `rank`."""
    wanted = 2 * d * rank + sum(AuroraConfig().anl.weight_sizes(rank))
    each, fixed = {"lora": (2 * d, 0), "mlp": (2 * d + 1, d)}.get(method, (0, 0))
    return max(1, round((wanted - fixed) / each)) if each else rank


def loss(found: Tensor, y: Tensor) -> Tensor:
    return functional.mse_loss(found, y) if y.is_floating_point() else functional.cross_entropy(found, y)


@torch.no_grad()
def scores(model: nn.Module, split: Split) -> dict[str, float]:
    """The metrics of the task, the first one first, and the loss."""
    found = model.eval()(split.x)
    if split.y.is_floating_point():
        metrics = regression_metrics(found, split.y, ("spearman",))
        return {"pearson": metrics["pearson"], "spearman": metrics["spearman"], "loss": metrics["mse"]}
    metrics = classification_metrics(found, split.y)
    return {"accuracy": metrics["accuracy"], "loss": metrics["nll"]}


def fit(model: nn.Module, splits: dict[str, Split], rate: float, decay: float, seed: int) -> dict[str, Any]:
    """Train to the plateau of the validation loss; leaves the best epoch's weights in the model."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(trained.values(), lr=rate, weight_decay=decay, foreach=True)
    x, y = splits["train"].x, splits["train"].y
    draw = torch.Generator().manual_seed(seed)
    best, at, epoch = math.inf, 0, 0
    kept = {name: p.detach().clone() for name, p in trained.items()}
    per_epoch = math.ceil(len(y) / BATCH)
    patience = max(PATIENCE["epochs"], math.ceil(PATIENCE["steps"] / per_epoch))
    while epoch - at < patience and epoch * per_epoch < STEPS:
        epoch += 1
        model.train()
        for rows in torch.randperm(len(y), generator=draw).split(BATCH):
            optimiser.zero_grad()
            loss(model(x[rows]), y[rows]).backward()
            optimiser.step()
        found = scores(model, splits["validation"])["loss"]
        if found < best:
            best, at, kept = found, epoch, {name: p.detach().clone() for name, p in trained.items()}
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(kept[name])
    return {
        "validation_loss": best,
        "steps": epoch * per_epoch,
        "best_step": at * per_epoch,
        "plateau": epoch - at >= patience,
    }


def merged_scores(model: nn.Module, splits: dict[str, Split]) -> dict[str, float]:
    """Of the calibrated form, which is what a merge computes, with the head as it was trained."""
    model = copy.deepcopy(model)
    calibrate(model, [splits["train"].x[:CALIBRATION]])
    set_form(model, "calibrated")
    return scores(model, splits["test"])


class Benchmark:
    """The runs of OUTPUT/runs.jsonl, and those that are still missing."""

    def __init__(self, output: Path, cache: Path) -> None:
        self.path = output / "runs.jsonl"
        self.texts = Texts(cache)
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if whole != lines:
            self.path.write_text("".join(whole))
        self.runs = {self.key(run): run for run in map(json.loads, whole)}
        self.loaded: dict[tuple[str, int], Any] = {}
        self.asked: set[tuple[Any, ...]] = set()

    @staticmethod
    def key(run: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(run[name] for name in ("features", "method", "rank", "rate", "decay", "seed"))

    def run(self, features: str, method: str, rank: int, rate: float, decay: float, seed: int) -> dict[str, Any]:
        self.asked.add((features, method, rank, rate, decay, seed))
        asked = {"features": features, "method": method, "rank": rank, "rate": rate, "decay": decay, "seed": seed}
        if found := self.runs.get(self.key(asked)):
            return found
        if (features, seed) not in self.loaded:
            self.loaded = {(features, seed): load(features, seed, self.texts)}
        splits = self.loaded[features, seed]
        torch.manual_seed(seed)
        model = probe(method, rank, splits["train"].x.shape[-1], outputs(features))
        weights = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and "head" not in name)
        began = time.perf_counter()
        record = {**asked, "weights": weights, **fit(model, splits, rate, decay, seed)}
        record["seconds"] = round(time.perf_counter() - began, 2)
        if seed != TUNING_SEED:
            record |= {"chance": chance(splits), "test": scores(model, splits["test"])}
            if method in AURORA:
                record["merged"] = merged_scores(model, splits)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.runs[self.key(record)] = record
        return record

    def tidy(self) -> None:
        """Leave out what was not asked for: seeds with values that are no longer chosen."""
        write_text(self.path, "".join(json.dumps(run) + "\n" for key, run in self.runs.items() if key in self.asked))

    def tuned(self, features: str, method: str, rank: int) -> tuple[float, float]:
        """Learning rate and weight decay."""

        def found(rate: float, decay: float) -> float:
            return self.run(features, method, rank, rate, decay, TUNING_SEED)["validation_loss"]

        rate = descended(RATES, START["rate"], lambda rate: found(rate, START["decay"]))
        return rate, descended(DECAYS, START["decay"], lambda decay: found(rate, decay))


def descended(values: Sequence[float], start: float, loss: Callable[[float], float]) -> float:
    """The value from which no neighbour is better, by steps from `start` to the better neighbour."""
    at = values.index(start)
    while True:
        near = [at, *(place for place in (at - 1, at + 1) if 0 <= place < len(values))]
        best = min(near, key=lambda place: loss(values[place]))
        if best == at:
            return values[at]
        at = best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/frozen-features"), help="where features go")
    parser.add_argument("--only", nargs="*", choices=FEATURES, default=[*FEATURES], help="all by default")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    torch.set_num_threads(1)
    benchmark = Benchmark(args.output, args.cache)
    settings = [("head", 0), *((method, rank) for rank in RANKS for method in METHODS)]
    for features in args.only:
        chosen = {setting: benchmark.tuned(features, *setting) for setting in settings}
        for seed in SEEDS:
            for setting, (rate, decay) in chosen.items():
                benchmark.run(features, *setting, rate, decay, seed)
        for setting, (rate, decay) in chosen.items():
            tests = [benchmark.run(features, *setting, rate, decay, seed)["test"] for seed in SEEDS]
            mean = statistics.mean(next(iter(test.values())) for test in tests)
            print(f"{features}: {setting}, {rate:g}, {decay:g}: {mean:.4f}", flush=True)
    if len(args.only) == len(FEATURES):
        benchmark.tidy()


if __name__ == "__main__":
    main()
