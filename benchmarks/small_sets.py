"""What `aurora train KIND task.data=FILE` learns from 100 to 400 rows, by the defaults alone.

    python -m benchmarks.small_sets --output results/small-sets [--only tweets ...] [--seeds 0 1] [KEY=VALUE ...]

Six sets of the user's own data, each seed with rows and a start of its own; AuroRA and LoRA (r = 8, the reference of
the recipes) on all linear layers. Beside them what takes no model, and for texts logistic regression (for numbers ridge
regression) on the mean of MiniLM's last hidden states, its strength chosen by five folds of all rows but the test's.
A run is one file of OUTPUT, SET-METHOD-SEED.json; what is there is not run again. KEY=VALUE changes the defaults, which
were tuned so at seed 100, on rows that the other seeds do not have.
"""

import argparse
import csv
import functools
import json
import random
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aurora_lora.data import SplitSizes, get_task
from aurora_lora.data.fetch import ARCHIVES, Archive, fetch
from aurora_lora.data.models import MODELS
from aurora_lora.files import new_file
from aurora_lora.train import load_recipe, train
from aurora_lora.train.run import pretrain
from aurora_lora.train.trainer import quiet_libraries

from .frozen_features import embedded

SMALL_VIT = "vit-fashion-10k"
"""`vit-fashion-mnist`, pretrained on 10,000 of the 55,000 images."""
TUNING_SEED = 100
WORDS = 12
"""The most of a text, for the cost of 60 runs."""
PARTS = ("tweets", "amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets")
TOPICS = dict(zip(PARTS, ("daily life", "a product", "a film", "the news"), strict=True))
METHODS = {"aurora": [], "lora": ["method={name: lora, r: 8, lora_alpha: 16, target_modules: all-linear}"]}


class AllParts(Archive):
    """An archive of which the package itself takes a part only, in a folder of its own."""

    folder_name = "small-sets-sentences"


@functools.cache
def sentences(part: str) -> list[tuple[str, float]]:
    """Texts and the means of 20 or more ratings, from -4 to 4, of Hutto and Gilbert (2014)."""
    archive, file = ARCHIVES["vaderSentiment"], f"{part}_GroundTruth.txt"
    members = {f"hutto_ICWSM_2014/{name}_GroundTruth.txt": f"{name}_GroundTruth.txt" for name in PARTS}
    source = {**vars(archive), "members": members}
    lines = (fetch(AllParts(**source)) / file).read_text(encoding="utf-8", errors="replace").split("\n")
    rows = {text.strip(): float(rating) for _, rating, text in (line.split("\t") for line in lines if line.strip())}
    return [(text, rating) for text, rating in rows.items() if len(text.split()) <= WORDS]


def tweets() -> list[dict[str, Any]]:
    def name(rating: float) -> str:
        return "neutral" if abs(rating) <= 0.5 else "positive" if rating > 0 else "negative"

    return [{"text": text, "label": name(rating)} for text, rating in sentences("tweets")]


def reviews() -> list[dict[str, Any]]:
    clear = [(text, rating) for text, rating in sentences("amazonReviewSnippets") if abs(rating) > 0.5]
    return [{"text": text, "label": "good" if rating > 0 else "bad"} for text, rating in clear]


def topics() -> list[dict[str, Any]]:
    return [{"text": text, "label": topic} for part, topic in TOPICS.items() for text, _ in sentences(part)[:3500]]


def ratings() -> list[dict[str, Any]]:
    return [{"text": text, "label": rating} for text, rating in sentences("movieReviewSnippets")]


def choices() -> list[dict[str, Any]]:
    short = [(text, rating) for text, rating in sentences("tweets") if abs(rating) > 0.5 and len(text.split()) <= 7]
    options = ["happy", "unhappy"]
    return [
        {"question": f"{text}\nThe writer is", "options": options, "answer": options[rating < 0]}
        for text, rating in short
    ]


def images() -> list[dict[str, Any]]:
    split = get_task("digits").load_splits(SplitSizes(None, 1, 1), 0)["train"]
    return [{"image": row["image"], "label": row["label"]} for row in split]


class OwnSet(NamedTuple):
    """Rows of a set of the user's own: so many to learn from, of which `aurora` holds out a tenth, and to test on."""

    kind: str
    rows: int
    test: int
    make: Callable[[], list[dict[str, Any]]]
    model: str = "minilm-l6"


SETS = {
    "tweets": OwnSet("classification", 300, 150, tweets),
    "reviews": OwnSet("classification", 200, 150, reviews),
    "topics": OwnSet("classification", 100, 150, topics),
    "ratings": OwnSet("regression", 300, 150, ratings),
    "choices": OwnSet("choices", 100, 40, choices, "smollm2-135m"),
    "images": OwnSet("images", 400, 400, images, SMALL_VIT),
}


def drawn(one: OwnSet, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of a seed: those to learn from, and those to test on."""
    rows = one.make()
    random.Random(0).shuffle(rows)
    rows = rows[seed == TUNING_SEED :: 2]  # defaults are tuned on rows that no other seed has
    random.Random(seed).shuffle(rows)
    return rows[one.test : one.test + one.rows], rows[: one.test]


def write(rows: list[dict[str, Any]], place: Path) -> Path:
    """The rows as a file, or as a folder of images by class."""
    if "image" in rows[0]:
        for number, row in enumerate(rows):
            path = place / str(row["label"]) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            row["image"].save(path)
        return place
    path = place.with_suffix(".jsonl" if "options" in rows[0] else ".csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(rows)
    return path


def on_features(rows: list[dict[str, Any]], test: list[dict[str, Any]]) -> float:
    """Accuracy of logistic regression on frozen features, or Pearson's correlation of ridge regression."""
    x, z = (
        np.stack([one.numpy() for one in embedded([row["text"] for row in some], "sentences")]) for some in (rows, test)
    )
    y, wanted = (np.array([row["label"] for row in some]) for some in (rows, test))
    strengths = np.logspace(-4, 2, 7)
    if y.dtype.kind == "f":
        found = make_pipeline(StandardScaler(), RidgeCV(1 / strengths)).fit(x, y).predict(z)
        return float(np.corrcoef(found, wanted)[0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=strengths, cv=5, max_iter=2000)).fit(x, y)
    return float((fitted.predict(z) == wanted).mean())


def run(name: str, method: str, seed: int, changes: list[str]) -> dict[str, Any]:
    """One run as a user would start it, and its record."""
    one = SETS[name]
    rows, test = drawn(one, seed)
    if one.model == SMALL_VIT and SMALL_VIT not in MODELS:
        whole: Any = MODELS["vit-fashion-mnist"]
        MODELS[SMALL_VIT] = replace(whole, name=SMALL_VIT, task={**whole.task, "train_size": 10_000})
        pretrain(SMALL_VIT)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        data = [f"task.data={write(rows, here / 'mine')}", f"task.test_data={write(test, here / 'test')}"]
        recipe = load_recipe(one.kind, [*data, f"model={one.model}", f"seed={seed}", *METHODS[method], *changes])
        result = train(recipe, here / "run").result
    metric, epochs = result["metric"], result["epochs"]
    (always,) = metric.get("most_frequent", metric.get("chance", {None: {}})).values()
    form = metric["selected_by"]["form"]
    record = {
        "set": name,
        "method": method,
        "seed": seed,
        "metric": metric["name"],
        "examples": metric["examples"],
        "score": metric["by_form"][form][metric["name"]],
        "scores": metric["by_form"][form],
        "baseline": always.get(metric["name"], 0.0),  # a constant has no correlation with anything
        "validation": [entry["validation"] for entry in epochs],
        "train_loss": [entry["train_loss"] for entry in epochs],
        "best_epoch": metric["selected_by"]["epoch"],
        "steps": epochs[-1]["step"],
        "train_s": result["time"]["train_s"],
        "changes": changes,
    }
    return record | ({"features": on_features(rows, test)} if "text" in rows[0] else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=SETS, default=[*SETS], help="all by default")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=[*METHODS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    for seed in args.seeds:
        for name in args.only:
            for method in args.methods:
                path = args.output / f"{name}-{method}-{seed}.json"
                if not path.exists():
                    record = run(name, method, seed, args.changes)
                    with new_file(path) as partial:
                        partial.write_text(json.dumps(record, indent=1) + "\n")
                    print(
                        path.stem, {key: record[key] for key in ("score", "baseline", "steps", "train_s")}, flush=True
                    )


if __name__ == "__main__":
    main()
