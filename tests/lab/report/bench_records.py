"""Records of `aurora bench` with known figures."""

from typing import Any

from aurora_lora.lab.bench.analytic_cost import costs


def ratio(median: float) -> dict[str, float]:
    return {"median": median, "low": median - 0.01, "high": median + 0.01}


ONE = {"median": 1.0, "low": 1.0, "high": 1.0}


def entry(name: str, label: str, step: float | None, eval_: float, both: int, compiled: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {"variant": name, "label": label, "compiled": compiled}
    calls = {"forward": 5, "both": both}
    if step is not None:
        found["training"] = {
            "calls": calls,
            "per_layer": calls,
            "parameters": 3092,
            "saved_bytes": 15_118_000,
            "saved_bytes_but_weights": 12_700_000,
            "peak_bytes": 25_400_000,
            "seconds": 0.1,
            "ratio": ONE if name == "lora-r8" else ratio(step),
        }
    found["inference"] = {
        "calls": {"forward": 3},
        "per_layer": {"forward": 3},
        "same_calls_as_base": name in ("frozen", "aurora-merged"),
        "seconds": 0.04,
        "ratio": ONE if name == "frozen" else ratio(eval_),
    }
    if compiled:
        for kind, value in (("training", 0.8), ("inference", 0.9)):
            if kind in found:
                found[kind]["ratio_to_eager"] = ratio(value)
    return found


def variants(compiled: bool = False) -> list[dict[str, Any]]:
    return [
        entry("frozen", "frozen base", 0.9, 1.0, 4, compiled),
        entry("lora-r8", "LoRA r=8", 1.0, 1.2, 14, compiled),
        entry("aurora-dynamic", "AuroRA dynamic r=2", 0.987, 1.1, 33, compiled),
        entry("aurora-static", "AuroRA static r=2", 0.95, 1.1, 33, compiled),
        entry("aurora-calibrated", "AuroRA calibrated r=2", None, 1.05, 0, compiled),
        entry("aurora-merged", "AuroRA merged", None, 1.001, 0, compiled),
        entry("aurora-r8", "AuroRA dynamic r=8", 1.03, 1.3, 33, compiled),
    ]


def record(workload: str, **changes: Any) -> dict[str, Any]:
    sizes = {"tokens": 2048, "batch": 32, "length": 64, "adapted_layers": 12}
    return {
        "schema": 1,
        "workload": workload,
        "compiled": False,
        "settings": {"rounds": 30, "threads": 1, "device": "cpu", "dtype": "float32", "quick": False},
        "cases": [{"sizes": sizes, "variants": variants()}],
        "environment": {
            "device": "a CPU, 2 cores",
            "load_before": [0.1, 0.2, 0.3],
            "versions": {"torch": "2.13.0", "peft": "0.21.2", "transformers": "5.23.0"},
            "git_commit": "0123456789abcdef",
        },
        "status": "finished",
        **changes,
    }


def linear(**changes: Any) -> dict[str, Any]:
    grid_ = [(256, 384), (4096, 384), (256, 768), (4096, 768), (256, 1536), (4096, 1536)]
    cases = [
        {"sizes": {"tokens": t, "d": d, "layers": 1, "adapted_layers": 1}, "variants": variants()} for t, d in grid_
    ]
    operator = {name: {"calls": {"both": 12}} for name in ("lora-r8", "aurora-dynamic", "aurora-static")}
    return record("linear", cases=cases, with_operator=operator, **changes)


def compiled() -> dict[str, Any]:
    sizes = {"tokens": 4096, "d": 768, "layers": 1, "adapted_layers": 1}
    cases = [{"sizes": sizes, "variants": [*variants()[:3], *variants(compiled=True)]}]
    return record("linear", compiled=True, cases=cases)


def scaling() -> dict[str, Any]:
    points = [
        {
            "value": n,
            "seconds": {"frozen": n / 1e4, "lora": n / 8e3, "aurora": n / 9e3},
            "added": {"lora": ratio(1e-3), "aurora": ratio(-1e-3)},
        }
        for n in (128, 256, 512)
    ]
    found = {"exponent": 1.0, "standard_error": 0.0}
    axis = {
        "name": "tokens",
        "fixed": "d = 768",
        "labels": {"frozen": "frozen base", "lora": "LoRA r=8", "aurora": "AuroRA r=2"},
        "points": points,
        "fits": {
            "seconds": dict.fromkeys(("frozen", "lora", "aurora"), found),
            "added": {"lora": found, "aurora": None},
        },
    }
    names = ("tokens", "width", "rank", "layers", "adapters")
    axes = [{**axis, "name": name} for name in names]
    return record("scaling", axes=axes, paper=costs({"lora": 14, "aurora": 12}))


ALL = {
    "linear": linear(),
    "linear-compiled": compiled(),
    "minilm-l6": record("minilm-l6"),
    "smollm2-135m": record("smollm2-135m"),
    "scaling": scaling(),
}
