"""The tables of "Where the nonlinearity earns something": `benchmarks/frozen_features.py`."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from aurora_lora.data.metrics import metric_named
from aurora_lora.lab.report.study import MARGIN, Answer
from aurora_lora.text_table import TextTable

Run = dict[str, Any]
Place = tuple[str, str, int]
"""Features, method and rank."""
Subject = tuple[str, str]
"""Features and metric."""

HEAD = "head"
AURORA = {"aurora-skip": "default", "aurora": "tanh, no skip", "aurora-relu": "ReLU, no skip"}
METHODS = {
    "lora": "LoRA",
    **{method: f"AuroRA, {sigma}" for method, sigma in AURORA.items()},
    "mlp": "bottleneck, GELU",
}
RIVALS = {"minus the head alone": HEAD, "minus LoRA": "lora", "minus the bottleneck": "mlp"}
MERGED = "merged, minus the head alone"


def by_setting(runs: Iterable[Run]) -> dict[Place, list[Run]]:
    """The runs with a test score, by seed."""
    found: dict[Place, list[Run]] = {}
    for run in runs:
        if "test" in run:
            found.setdefault((run["features"], run["method"], run["rank"]), []).append(run)
    return {place: sorted(group, key=lambda run: run["seed"]) for place, group in found.items()}


def subjects(runs: Iterable[Run]) -> list[Subject]:
    """Every metric of the test scores but the loss, for all features."""
    found = ((run["features"], metric) for run in runs if "test" in run for metric in run["test"] if metric != "loss")
    return list(dict.fromkeys(found))


def ranks_of(found: dict[Place, list[Run]], features: str) -> list[int]:
    return sorted({rank for name, _, rank in found if name == features and rank})


def paired(first: Sequence[Run], second: Sequence[Run], metric: str, part: str = "test") -> list[float]:
    """The first's scores less the second's test scores, by seed."""
    theirs = {run["seed"]: run["test"][metric] for run in second}
    return [run[part][metric] - theirs[run["seed"]] for run in first]


def compared(first: Sequence[Run], second: Sequence[Run], metric: str, part: str = "test") -> Answer:
    by_seed = dict(zip((run["seed"] for run in first), paired(first, second, metric, part), strict=True))
    return Answer("", first[0]["method"], second[0]["method"], metric, by_seed, MARGIN)


def headline(runs: Sequence[Run]) -> str:
    """The answer, with its figures."""
    found = differences(runs)

    def gain(features: str, metric: str, method: str, rank: int, rival: str) -> str:
        difference, between, _ = found[(features, metric), method, rank][rival].cells()
        return f"{difference} ({between})"

    head, pixels = "minus the head alone", ("cifar10-10k, pixels", "accuracy", "aurora-skip", 32)
    ratings = ("movie-rating, sentences", ("pearson", "spearman"), "aurora-skip", 8)
    pearson, spearman = (gain(ratings[0], metric, *ratings[2:], head) for metric in ratings[1])
    return (
        f"Yes, unmerged, where a linear head is not enough. On CIFAR-10's pixels AuroRA of rank 32 is "
        f"{gain(*pixels, head)} points more accurate than the linear head alone, and {gain(*pixels, 'minus LoRA')} "
        "than LoRA with as many weights. On ratings of film reviews, from MiniLM's sentence embeddings, rank 8 adds "
        f"{pearson} points to Pearson's correlation. That is a curved scale of the output: the order of the "
        f"predictions is no better (Spearman: {spearman}). On film sentiment it adds nothing, on digits nothing "
        "certain. Houlsby's bottleneck with as many weights mostly does as well or better. No merge keeps the gain."
    )


def scores_table(runs: Sequence[Run]) -> str:
    """Test scores, the mean over the seeds."""
    found = by_setting(runs)
    table = TextTable("", ["features", "chance", "head alone", "r", *METHODS.values()], align="lr")
    for features, metric in subjects(runs):

        def mean(group: Sequence[Run], metric: str = metric) -> str:
            return metric_named(metric).shown(statistics.mean(run["test"][metric] for run in group))

        head = found[features, HEAD, 0]
        chance = metric_named(metric).shown(statistics.mean(run["chance"] for run in head))
        about = [f"{features} ({metric})", chance, mean(head)]
        for rank in ranks_of(found, features):
            table.rows.append([*about, str(rank), *(mean(found[features, method, rank]) for method in METHODS)])
            about = [""] * len(about)
    return table.markdown()


def differences(runs: Sequence[Run]) -> dict[tuple[Subject, str, int], dict[str, Answer]]:
    """AuroRA minus what it is compared with; its calibrated form, which a merge computes, minus the head alone."""
    found, answers = by_setting(runs), {}
    for features, metric in subjects(runs):
        for method in AURORA:
            for rank in ranks_of(found, features):
                ours = found[features, method, rank]
                rivals = {title: found[features, name, 0 if name == HEAD else rank] for title, name in RIVALS.items()}
                unmerged = {title: compared(ours, rival, metric) for title, rival in rivals.items()}
                merged = compared(ours, found[features, HEAD, 0], metric, "merged")
                answers[(features, metric), method, rank] = {**unmerged, MERGED: merged}
    return answers


def differences_table(runs: Sequence[Run]) -> str:
    """In points, with the 95% interval; bold where that is above 0, and not all within the margin."""
    table = TextTable("", ["features", "sigma", "r", *RIVALS, MERGED], align="llr")
    for ((features, metric), method, rank), found in differences(runs).items():
        cells = []
        for one in found.values():
            difference, between, said = one.cells()
            cells.append((f"**{difference}**" if said == "better" else difference) + f" ({between})")
        table.rows.append([f"{features} ({metric})", AURORA[method], str(rank), *cells])
    return table.markdown()


def skip_table(runs: Sequence[Run]) -> str:
    """The default, which has the skip, minus the same sigma without it: unmerged, in points, with the 95% interval."""
    found = by_setting(runs)
    ranks = sorted({rank for features, _ in subjects(runs) for rank in ranks_of(found, features)})
    table = TextTable("", ["features", *(f"r={rank}" for rank in ranks)], align="lr")
    for features, metric in subjects(runs):
        cells = []
        for rank in ranks:
            answer = compared(found[features, "aurora-skip", rank], found[features, "aurora", rank], metric)
            difference, between, _ = answer.cells()
            significant = f", {answer.side}" if answer.side else ""
            cells.append(f"{difference} ({between}){significant}")
        table.rows.append([f"{features} ({metric})", *cells])
    return table.markdown()


def counts(runs: Sequence[Run]) -> str:
    """How often each verdict came, how many intervals there are, and whether the tuning had room."""
    answers = differences(runs)
    said = {title: [found[title].verdict for found in answers.values()] for title in (*RIVALS, MERGED)}
    words = sorted({word for all_of_it in said.values() for word in all_of_it})
    table = TextTable("", ["AuroRA", *words], align="lr")
    for title, all_of_it in said.items():
        table.rows.append([title, *(str(all_of_it.count(word)) for word in words)])
    lines = [table.markdown()]
    intervals = sum(map(len, answers.values()))
    seeds = len({run["seed"] for group in by_setting(runs).values() for run in group})
    runs_on = [run for run in runs if "test" in run and not run["plateau"]]
    lines += [
        "",
        f"{intervals} intervals of Student's t over {seeds} paired seeds, not corrected for their number: about "
        f"{0.05 * intervals:.0f} would leave out 0 by chance. {len(runs)} runs, {sum('test' in run for run in runs)} "
        f"of them with test scores, of which {len(runs_on)} had not come to their plateau at the last step.",
        edges(runs),
    ]
    return "\n".join(lines)


def edges(runs: Sequence[Run]) -> str:
    """Whether a chosen value is the least or the largest that its setting was tried with; nothing is below 0."""
    offered: dict[Place, list[Run]] = {}
    for run in runs:
        if "test" not in run:
            offered.setdefault((run["features"], run["method"], run["rank"]), []).append(run)
    at = []
    for place, (first, *_) in by_setting(runs).items():
        rates, decays = ([run[name] for run in offered[place]] for name in ("rate", "decay"))
        if first["rate"] in (min(rates), max(rates)) or first["decay"] in {min(decays), max(decays)} - {0}:
            at.append("{} {} r={}".format(*place))
    if not at:
        return f"No chosen value of the {len(offered)} settings is at an edge of those that it was tried with."
    return f"At an edge of what they were tried with are {len(at)} of {len(offered)} settings: {', '.join(at)}."
