"""Speed and memory against PEFT's LoRA: in one interleaved run, and in counts.

    python -m benchmarks.speed --threads 1 --output results/bench                     # make bench
    python -m benchmarks.speed minilm-l6 --device cuda --dtype bfloat16 --output gpu
    python -m benchmarks.speed linear --quick --output /tmp/look                      # seconds, for a look

`linear` is one linear layer, over a grid of tokens and widths, and compiled; `minilm-l6` and `smollm2-135m` are whole
models, compiled with --compile; `scaling` is the cost against tokens, width, rank and layers, and larger models on
paper. OUTPUT/WORKLOAD.json is written as it is finished; what is there is not run again.
"""

import argparse
import copy
import os
import platform
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch._inductor.config as inductor
from peft import LoraConfig, get_peft_model
from scipy.stats import linregress
from torch import Tensor, nn

from aurora_lora import AuroraConfig
from aurora_lora.data import get_task
from aurora_lora.files import read_json, write_json
from aurora_lora.machine import usable_cores
from aurora_lora.methods.parameters import head_modules
from aurora_lora.ops import update
from aurora_lora.train.finished_run import device as device_name
from aurora_lora.train.finished_run import git_commit, versions
from aurora_lora.train.models import load_base_model, load_causal_model, load_tokenizer
from aurora_lora.tuner import aurora_layers

from . import counts, paper_costs
from .speed_report import LAYER, tables
from .timing import Action, cpu_seconds, cuda_seconds, interleave, paired_difference, paired_ratio

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
Record = dict[str, Any]
Key = tuple[str, bool]
"""A variant's name, and whether it is compiled."""

MODELS = {
    "minilm-l6": ("encoder", ("query", "value"), 32, 64),
    "smollm2-135m": ("causal", paper_costs.TARGETS, 4, 64),
}
"""Architecture, adapted layers, examples in a batch and tokens in an example; classes or the next token are learned."""
WORKLOADS = ("linear", *MODELS, "scaling")
GRID = tuple((tokens, d) for tokens in (256, 1024, 4096) for d in (384, 768, 1536))
BATCHES, LEARNING_RATE = 4, 1e-4

# ---------------------------------------------------------------- what is compared


@dataclass(frozen=True)
class Variant:
    """One way to adapt the base model.

    Args:
        name: in records.
        label: in tables and figures.
        config: makes PEFT's configuration; None for no adapter.
        options: of the configuration.
        trains: whether its training step is measured; not where it is another variant's.
        infers: whether its inference is measured.
        merged: whether inference is that of the merged model.
    """

    name: str
    label: str
    config: Callable[..., Any] | None
    options: Mapping[str, Any]
    trains: bool = True
    infers: bool = True
    merged: bool = False


def lora(r: int) -> Variant:
    return Variant(f"lora-r{r}", f"LoRA r={r}", LoraConfig, {"r": r, "lora_alpha": 2 * r})


def aurora(r: int) -> Variant:
    options = {"r": r, "alpha": 2 * r, "eval_form": "dynamic"}
    return Variant(f"aurora-r{r}", f"AuroRA dynamic r={r}", AuroraConfig, options)


BASE, REFERENCE = "frozen", "lora-r8"
"""What inference is compared with, and what training steps are."""
_OURS: dict[str, Any] = {"r": 2, "alpha": 4}
VARIANTS = {
    one.name: one
    for one in (
        Variant(BASE, "frozen base", None, {}),
        lora(2),
        lora(8),
        # the same once more: how far noise alone goes (in inference the merged model shows it)
        Variant("lora-r8-again", "LoRA r=8, again", LoraConfig, lora(8).options, infers=False),
        lora(16),
        Variant("dora-r8", "DoRA r=8", LoraConfig, {**lora(8).options, "use_dora": True}),
        Variant("aurora-dynamic", "AuroRA dynamic r=2", AuroraConfig, {**_OURS, "eval_form": "dynamic"}),
        Variant("aurora-static", "AuroRA static r=2", AuroraConfig, {**_OURS, "train_form": "static"}),
        Variant(
            "aurora-calibrated", "AuroRA calibrated r=2", AuroraConfig, {**_OURS, "calibrated": True}, trains=False
        ),
        Variant(
            "aurora-merged", "AuroRA merged", AuroraConfig, {**_OURS, "calibrated": True}, trains=False, merged=True
        ),
    )
}
EAGER_ANCHORS = (BASE, REFERENCE, "aurora-dynamic")
"""The variants that run eagerly too beside compiled ones, so that the two modes can be compared."""


@dataclass
class Case:
    """A base model with data.

    Args:
        sizes: what it is, in numbers.
        base: the pretrained model; its weights are frozen.
        targets: names of the layers to adapt.
        batches: the arguments of the model, and labels.
        loss: what a training step differentiates.
        heads: modules that every variant trains beside its adapter.
        counted_loss: of a layer inside a network, whose input has a gradient: what calls are counted with.
    """

    sizes: dict[str, int]
    base: nn.Module
    targets: Sequence[str]
    batches: list[Batch]
    loss: Loss
    heads: Sequence[str] = ()
    counted_loss: Loss | None = None

    def batch(self, number: int) -> Batch:
        return self.batches[number % len(self.batches)]

    def run(self, model: nn.Module, batch: Batch) -> Any:
        return model(**{name: tensor for name, tensor in batch.items() if name != "labels"})

    def adapted(self) -> list[str]:
        return [name for name, _ in self.base.named_modules() if name.rsplit(".", 1)[-1] in self.targets]


class Stack(nn.Sequential):
    """Linear layers, one on the other. Its argument has a name, as a model's from Transformers."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


def linear_case(
    tokens: int, d: int, *, layers: int = 1, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Case:
    """Linear layers d -> d on random vectors, all adapted.

    The loss is the product with a fixed random vector, so that the gradient that comes back is an ordinary one. Calls
    are counted with the sum of the output instead, whose own calls are the fewest.
    """
    generator = torch.Generator().manual_seed(0)
    base = Stack(*(nn.Linear(d, d) for _ in range(layers))).to(device, dtype)
    batches = []
    for _ in range(BATCHES):
        x, cotangent = (torch.randn(tokens, d, generator=generator).to(device, dtype) for _ in range(2))
        batches.append({"x": x.requires_grad_(), "labels": cotangent})
    return Case(
        {"tokens": tokens, "d": d, "layers": layers},
        base,
        [str(i) for i in range(layers)],
        batches,
        loss=lambda model, batch: torch.vdot(model(batch["x"]).flatten(), batch["labels"].flatten()),
        counted_loss=lambda model, batch: model(batch["x"]).sum(),
    )


def model_case(base: Any, architecture: str, targets: Sequence[str], batch: int, length: int) -> Case:
    """A model of Transformers on random tokens with random labels; its head, if it is new, is trained, too."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(BATCHES):
        ids = torch.randint(0, base.config.vocab_size, (batch, length), generator=generator)
        classes = torch.randint(0, getattr(base.config, "num_labels", 2), (batch,), generator=generator)
        data = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": ids if architecture == "causal" else classes,
        }
        batches.append({name: tensor.to(base.device) for name, tensor in data.items()})
    sizes = {"tokens": batch * length, "batch": batch, "length": length}
    heads = () if architecture == "causal" else head_modules(base)
    return Case(sizes, base, targets, batches, lambda model, batch: model(**batch).loss, heads)


def load(name: str, *, quick: bool, device: str, dtype: torch.dtype) -> Case:
    architecture, targets, batch, length = MODELS[name]
    causal = architecture == "causal"
    base = (
        load_causal_model(name) if causal else load_base_model(name, get_task("movie-sentiment"), load_tokenizer(name))
    )
    return model_case(base.to(device, dtype), architecture, targets, *((2, 8) if quick else (batch, length)))


def share(base: nn.Module, but: Iterable[nn.Module] = ()) -> nn.Module:
    """A copy of a model that has the very weights of the first, except those of the modules in `but`."""
    own = {id(tensor) for module in but for tensor in (*module.parameters(), *module.buffers())}
    tensors = (*base.parameters(), *base.buffers())
    return copy.deepcopy(base, {id(tensor): tensor for tensor in tensors if id(tensor) not in own})


def build(variant: Variant, case: Case, *, training: bool) -> nn.Module:
    """The adapted model, in training or eval mode; frozen weights are shared with `case.base`.

    For training, adapters start as their methods start them; for inference they are random, so that none is a no-op.
    """
    if variant.config is None:
        return frozen(case) if training else share(case.base).eval()
    # merging writes into the adapted layers
    base = share(case.base, but=map(case.base.get_submodule, case.adapted()) if variant.merged else ())
    options: dict[str, Any] = {**variant.options, "target_modules": list(case.targets)}
    if variant.config is LoraConfig:
        options["init_lora_weights"] = training
    else:
        options["init_weights"] = "identity" if training else False
    if case.heads and training:
        options["modules_to_save"] = list(case.heads)
    model: Any = get_peft_model(base, variant.config(**options))
    for _, layer in aurora_layers(model) if options.get("calibrated") else ():  # a random matrix costs as any other
        A = layer.aurora_A["default"].weight
        layer.calibration["default"].store(torch.randn_like(A) / A.shape[1] ** 0.5)
    return (model.merge_and_unload() if variant.merged else model).train(training)


def frozen(case: Case) -> nn.Module:
    """The base model with only its head, if it has one, and the biases of the first adapted block trained, which may
    be new: the backward pass then reaches as deep as with adapters. Where the input has a gradient nothing is."""
    model = share(case.base).requires_grad_(False)
    for name in case.heads:
        model.set_submodule(name, copy.deepcopy(case.base.get_submodule(name)).requires_grad_(True))
    first = {} if case.counted_loss else {name.rsplit(".", 1)[-1]: name for name in reversed(case.adapted())}
    for path in first.values():
        layer: Any = model.get_submodule(path)
        bias = layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach().clone()
        layer.bias = nn.Parameter(bias)
    return model.train()


# ---------------------------------------------------------------- one case, measured


class TrainingStep:
    """One whole step: forward, loss, backward, AdamW (as Transformers' Trainer has it), zero_grad."""

    def __init__(self, model: nn.Module, case: Case, compiled: bool = False) -> None:
        self.model, self.case, self.compiled = model, case, compiled
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True) if trained else None
        self.loss: Loss = torch.compile(case.loss, dynamic=False) if compiled else case.loss

    def __call__(self, number: int = 0) -> None:
        batch = self.case.batch(number)
        self.loss(self.model, batch).backward()
        if self.optimizer is not None:
            self.optimizer.step()
        self.clear(batch)

    def clear(self, batch: Batch) -> None:
        for tensor in batch.values():
            tensor.grad = None
        if self.optimizer is not None:
            self.optimizer.zero_grad()

    def count(self) -> Record:
        """Calls forward, and forward and backward, bytes kept for the backward pass, and peak memory of a step."""
        case, batch = self.case, self.case.batch(0)
        # of a compiled step the loss is a part that cannot be left out
        plain = None if self.compiled else case.counted_loss
        loss = plain or self.loss
        device = next(self.model.parameters()).device

        def forward() -> Any:
            return loss(self.model, batch) if plain is None else case.run(self.model, batch)

        def both() -> None:
            loss(self.model, batch).backward()

        result: Record = {"calls": {}}
        for name, function in (("forward", forward), ("both", both)):
            result["calls"][name] = counts.calls_of(function, self.compiled).total()
            self.clear(batch)
        if device.type == "cuda":
            result["launches"] = counts.cuda_launches(both)
            self.clear(batch)
        # what the loss of a single layer alone keeps is not counted
        given = [batch["labels"]] if self.compiled and case.counted_loss else []
        weights = (*self.model.parameters(), *self.model.buffers(), *given)
        result["saved_bytes"] = counts.saved_bytes(forward, given)
        result["saved_bytes_but_weights"] = counts.saved_bytes(forward, weights)
        result["peak_bytes"] = counts.peak_bytes(self, device)
        result["parameters"] = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return result


class Inference:
    """One forward pass without gradients."""

    def __init__(self, model: nn.Module, case: Case, compiled: bool = False) -> None:
        self.case, self.compiled = case, compiled
        self.model: Any = torch.compile(model, dynamic=False) if compiled else model

    def __call__(self, number: int = 0) -> None:
        with torch.no_grad():
            self.case.run(self.model, self.case.batch(number))

    def count(self) -> Record:
        """Calls, with their names."""
        names = counts.calls_of(self, self.compiled)
        result: Record = {"calls": {"forward": names.total()}, "names": names}
        if next(iter(self.case.batch(0).values())).device.type == "cuda":
            result["launches"] = counts.cuda_launches(self)
        return result


def measure(case: Case, variants: Sequence[Variant], rounds: int, compiled: bool = False) -> list[Record]:
    """One entry for each variant and mode: docs/performance.md says what the figures are."""
    entries = [(one, False) for one in variants if not compiled or one.name in EAGER_ANCHORS]
    entries += [(one, True) for one in variants if compiled]
    found: dict[Key, Record] = {
        (one.name, mode): {"variant": one.name, "label": one.label, "compiled": mode} for one, mode in entries
    }
    for kind in ("training", "inference"):
        training = kind == "training"
        actions: dict[Key, TrainingStep | Inference] = {}
        for variant, mode in entries:
            if variant.trains if training else variant.infers:
                torch.manual_seed(0)
                model = build(variant, case, training=training)
                action = TrainingStep(model, case, mode) if training else Inference(model, case, mode)
                for number in range(2):  # what is done once only: tables, the optimizer's state, compilation
                    action(number)
                found[variant.name, mode][kind] = action.count()
                actions[variant.name, mode] = action
        clock = cuda_seconds if next(case.base.parameters()).device.type == "cuda" else cpu_seconds
        timed = interleave({repr(key): action for key, action in actions.items()}, rounds, clock)
        seconds = {key: timed[repr(key)] for key in actions}
        for key in actions:
            found[key][kind] |= ratios(key, seconds, REFERENCE if training else BASE)
        per_layer({key: found[key][kind] for key in actions}, case)
        torch.compiler.reset()  # graphs of this phase, and with them its models
    return list(found.values())


def ratios(key: Key, seconds: Mapping[Key, Sequence[float]], reference: str) -> Record:
    """Times of an entry beside the reference's of its mode; of a compiled one also the eager one's, and its own eager
    ones."""
    own = seconds[key]
    found: Record = {"seconds": statistics.median(own), "ratio": paired_ratio(own, seconds[reference, key[1]])}
    if key[1]:
        found["ratio_to_eager"] = paired_ratio(own, seconds[reference, False])
        if (key[0], False) in seconds:
            found["ratio_to_itself_eager"] = paired_ratio(own, seconds[key[0], False])
    return found


def per_layer(values: Mapping[Key, Record], case: Case) -> None:
    """Calls of one adapted layer: all of them where a layer is all there is, else what the adapter adds to the base."""
    names: dict[Key, Counter[str]] = {key: entry.pop("names", Counter()) for key, entry in values.items()}
    for (name, mode), entry in values.items():
        base = values[BASE, mode]["calls"]
        less = {kind: 0 if case.counted_loss else calls for kind, calls in base.items()}
        entry["per_layer"] = {kind: (n - less[kind]) / len(case.adapted()) for kind, n in entry["calls"].items()}
        if names[name, mode]:
            entry["same_calls_as_base"] = names[name, mode] == names[BASE, mode]


def with_operator(case: Case) -> Record:
    """The counts of a training step with sigma as a fused kernel, as on CUDA. No times: they are CUDA's."""
    found = {}
    with patch.object(update, "triton_serves", lambda *_: True):  # the operators run on a CPU, too
        for name in ("lora-r8", "aurora-dynamic", "aurora-static"):
            step = TrainingStep(build(VARIANTS[name], case, training=True), case)
            step()  # what is made once
            found[name] = step.count()
    return found


# ---------------------------------------------------------------- scaling


@dataclass(frozen=True)
class Axis:
    """What is varied while the rest is fixed: its values, those of a quick look, and the case and ranks at a value."""

    name: str
    values: tuple[int, ...]
    quick: tuple[int, ...]
    fixed: str
    case: Callable[..., Case]
    rank: Callable[[int], tuple[int, int]] = lambda value: (8, 2)


AXES = (
    Axis(
        "tokens", (128, 256, 512, 1024, 2048, 4096, 8192), (16, 32, 64), "d = 768, step",
        lambda n, **on: linear_case(n, 768, **on),
    ),
    Axis(
        "width", (128, 256, 512, 768, 1024, 1536), (16, 32, 64), "1,024 tokens, step",
        lambda n, **on: linear_case(1024, n, **on),
    ),
    Axis(
        "rank", (1, 2, 4, 8, 16, 32, 64), (1, 2, 4), "1,024 tokens, d = 768, step",
        lambda n, **on: linear_case(1024, 768, **on), lambda n: (n, n),
    ),
    Axis(
        "layers", (1, 2, 4, 8, 16), (1, 2, 3), "512 tokens, d = 384, step",
        lambda n, **on: linear_case(512, 384, layers=n, **on),
    ),
)  # fmt: skip


def fit(values: Sequence[float], costs: Sequence[float]) -> dict[str, float] | None:
    """Exponent b of cost = a value^b, by least squares of the logarithms, with its standard error; None for less than
    three points, or a cost that is not above 0."""
    if len(values) < 3 or min(costs) <= 0:
        return None
    found = linregress(torch.tensor(values).log(), torch.tensor(costs).log())
    return {"exponent": float(found.slope), "standard_error": float(found.stderr)}


def steps_at(axis: Axis, value: int, **on: Any) -> dict[str, TrainingStep]:
    """A training step of the base, LoRA and AuroRA at a value of an axis."""
    torch.manual_seed(0)
    case, (r_lora, r_aurora) = axis.case(value, **on), axis.rank(value)
    variants = {BASE: VARIANTS[BASE], "lora": lora(r_lora), "aurora": aurora(r_aurora)}
    return {name: TrainingStep(build(one, case, training=True), case) for name, one in variants.items()}


def measure_axis(axis: Axis, rounds: int, clock: Any, *, quick: bool, **on: Any) -> Record:
    """Seconds of the base, LoRA and AuroRA at each value, what the adapters add to the base, and the exponents."""
    points: list[Record] = []
    for value in axis.quick if quick else axis.values:
        steps: dict[str, Action] = {**steps_at(axis, value, **on)}
        seconds = interleave(steps, rounds, clock)
        added = {name: paired_difference(own, seconds[BASE]) for name, own in seconds.items() if name != BASE}
        medians = {name: statistics.median(own) for name, own in seconds.items()}
        points.append({"value": value, "seconds": medians, "added": added})
    values = [point["value"] for point in points]
    fits = {
        "seconds": {name: fit(values, [point["seconds"][name] for point in points]) for name in points[0]["seconds"]},
        "added": {
            name: fit(values, [point["added"][name]["median"] for point in points]) for name in points[0]["added"]
        },
    }
    ranks = ("", "") if axis.name == "rank" else (" r=8", " r=2")
    labels = {BASE: "frozen base", "lora": f"LoRA{ranks[0]}", "aurora": f"AuroRA{ranks[1]}"}
    return {"name": axis.name, "fixed": axis.fixed, "labels": labels, "points": points, "fits": fits}


# ---------------------------------------------------------------- the command


def run(workload: str, compiled: bool, args: argparse.Namespace) -> Record:
    """The record of one workload."""
    on = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    load_before = list(os.getloadavg())
    if workload == "scaling":
        clock = cuda_seconds if args.device.startswith("cuda") else cpu_seconds
        found: Record = {"axes": [measure_axis(axis, args.rounds, clock, quick=args.quick, **on) for axis in AXES]}
        calls = {name: entry["calls"]["both"] for name, entry in with_operator(linear_case(16, 16)).items()}
        found["paper"] = paper_costs.costs(calls["lora-r8"], calls["aurora-dynamic"])
    else:
        linear = workload == "linear"
        grid = [(64, 32)] if args.quick else [LAYER] if compiled else GRID
        makers: list[Callable[..., Case]] = [partial(linear_case, *sizes) for sizes in grid]
        makers = makers if linear else [partial(load, workload, quick=args.quick)]
        variants = [*VARIANTS.values(), *([aurora(8), aurora(16)] if linear else [])]
        found = {"cases": []}
        for make in makers:
            case = make(**on)
            measured = measure(case, variants, args.rounds, compiled)
            found["cases"].append(
                {"sizes": {**case.sizes, "adapted_layers": len(case.adapted())}, "variants": measured}
            )
        if linear:
            found["with_operator"] = with_operator(linear_case(*LAYER))
    names = ("rounds", "threads", "device", "dtype", "quick")
    return {
        "schema": 1,
        "workload": workload,
        "compiled": compiled,
        "settings": {name: getattr(args, name) for name in names},
        **found,
        "environment": {
            "device": f"{processor()}, {usable_cores()} cores" if args.device == "cpu" else device_name(),
            "load_before": load_before,
            "platform": platform.platform(),
            "versions": versions(),
            "git_commit": git_commit(),
        },
    }


def processor() -> str:
    """The name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def units(workloads: Sequence[str], compiled: bool) -> Iterator[tuple[str, str, bool]]:
    """The name of each record, its workload, and whether it is of compiled code."""
    for workload in workloads:
        yield workload, workload, False
        if workload == "linear" or (compiled and workload != "scaling"):  # models take long to build for a CPU
            yield f"{workload}-compiled", workload, True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"{', '.join(WORKLOADS)}; all by default")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--compile", action="store_true", help="models, too")
    parser.add_argument("--rounds", type=int, default=30, help="interleaved: pairs of each comparison")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch on the CPU")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: for a look at the output")
    args = parser.parse_args()
    if unknown := set(args.workloads) - set(WORKLOADS):
        parser.error(f"no workload {', '.join(unknown)}: there are {', '.join(WORKLOADS)}")
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    on_device = torch.cuda.device(args.device) if args.device.startswith("cuda") else nullcontext()
    for name, workload, compiled in units(args.workloads or WORKLOADS, args.compile):
        path = args.output / f"{name}.json"
        if not path.exists():
            # the profiler can then see the kernels that Inductor makes
            with on_device, inductor.patch({"cpp.enable_kernel_profile": True}):
                write_json(path, run(workload, compiled, args))
        record = read_json(path)
        for table in tables(record):
            print(f"{table.title}\n\n{table.markdown()}\n")


if __name__ == "__main__":
    main()
