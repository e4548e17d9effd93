"""Puts the tables and figures of docs/ in their places, from the results that commands have written.

PYTHONPATH=. python docs/fill.py
"""

import json
from collections.abc import Mapping
from pathlib import Path

from aurora_lora.data import TASKS
from aurora_lora.errors import UserError
from aurora_lora.files import slug, write_text
from aurora_lora.lab.experiments.recipes import find
from aurora_lora.lab.experiments.study import load_study
from aurora_lora.lab.report.figures import about, save
from aurora_lora.lab.report.measured import gap_figure, ranks_figure, sigma_figure, trajectories_figure
from aurora_lora.lab.report.page import figures_of
from aurora_lora.lab.report.runs import Section, load_results, load_sections
from aurora_lora.lab.report.study import convergence_note
from aurora_lora.train.recipe import name_of, task_name
from make.calibration import calibration_curve, calibration_table, cost_table, forms_figure, forms_table
from make.chat import chat_parts
from make.conformance import conformance_tables
from make.frozen_features import by_rank, counts, differences_table, headline, scores_table, skip_table
from make.method_options import aurora_fields, method_options
from make.performance import parts
from make.quantised_merges import cost_of_merges, merges_by_bits, merges_table, rounding_tables
from make.ranks import cost_of_probe, ranks_shown
from make.ranks import scores_table as rank_scores_table
from make.recipe_fields import recipe_fields
from make.reliability import reliability_tables
from make.tables import (
    causal_lm_table,
    lengths_table,
    qlora_table,
    reproduced_table,
    settings_left,
    study_page,
    tasks_table,
    versions_table,
)
from make.worth import (
    CASES,
    SETTLED,
    answered,
    beyond_the_best,
    by_epoch,
    default_at_the_same_rank,
    fewer_weights,
    main_answers,
    without_seed,
)
from theory.report import theory_figures, theory_tables

ROOT = Path(__file__).parent.parent
DOCS, FIGURES, RESULTS = ROOT / "docs", ROOT / "docs" / "figures", ROOT / "results"
IMAGES = ("table3", "table4", "table5")
"""The paper's tables of images; the others are of language."""


def main() -> None:
    peft()
    methods()
    recipe()
    tasks()
    deploy()
    chat()
    trainers()
    quantised()
    theory()
    ranks()
    versions()
    reliability()
    conformance()
    studies()
    evidence()
    worth()
    figures()
    paper()
    performance()


# ---------------------------------------------------------------- what is read, and where it is put


def read(pattern: str) -> list[dict]:
    """The records in results/ whose paths match; none where a command has written none."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(pattern))]


def read_runs(folder: str) -> list[dict]:
    """Those of a folder of results/, a line each; none where a command has written none."""
    path = RESULTS / folder / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summaries() -> dict[str, dict]:
    """Those of the studies, by name."""
    return {one["study"]["name"]: one for one in read("studies/*/study.json")}


def put(page: str, texts: Mapping[str, str]) -> None:
    """Texts in their places on a page, by name."""
    path = DOCS / f"{page}.md"
    document = path.read_text(encoding="utf-8")
    for name, text in texts.items():
        before, start, rest = document.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end {name} -->")
        assert end, f"{path} has no place '{name}'"
        document = f"{before}{start}\n{text.strip()}\n\n{end}{after}"
    write_text(path, document)


def subject(recipe: dict) -> str:
    """What a figure is about."""
    return f"{task_name(recipe)}, {name_of('model', recipe)}"


# ---------------------------------------------------------------- the pages


def peft() -> None:
    put("peft", {"aurora fields": aurora_fields()})


def methods() -> None:
    put("methods", {"options": method_options()})


def recipe() -> None:
    put("recipe", recipe_fields())


def tasks() -> None:
    for group in dict.fromkeys(task.group for task in TASKS.values()):
        of_group = (task for task in TASKS.values() if task.group == group)
        put("tasks", {f"tasks {group}": tasks_table(of_group)})


def deploy() -> None:
    results = load_results([RESULTS / "forms"])
    put("deploy", {"forms": forms_table(results)})
    subject_of_forms = f"{results[0]['task']}, {results[0]['model']}"
    save(about(forms_figure(results), subject_of_forms), FIGURES / "forms")
    for curve in read("calibration/curve.json"):
        put("deploy", {"curve": calibration_table(curve)})
        trained = [run["dynamic"]["accuracy"] for run in curve["runs"]]
        drawn = calibration_curve(curve["records"], {"accuracy": sum(trained) / len(trained)})
        save(about(drawn, subject_of_forms), FIGURES / "calibration-inputs")
    if costs := read("calibration/cost-*.json"):
        put("deploy", {"cost": cost_table(costs)})
    if language := read("causal-lm/*.json"):
        put("deploy", {"causal-lm": causal_lm_table(language)})


def chat() -> None:
    for result in read("chat/siqa.json"):
        put("chat", chat_parts(result))


def trainers() -> None:
    for distances in read("qlora/smollm2.json"):
        put("trainers", {"qlora": qlora_table(distances)})


def quantised() -> None:
    if merges := read("quantized/*bit.json"):
        put("quantised", {"merges": merges_table(merges)})
        save(merges_by_bits(merges), FIGURES / "quantised-merges")
    for record in read("quantized/rounding.json"):
        put("quantised", {"rounding": rounding_tables(record)})
    for record in read("quantized/cost.json"):
        put("quantised", {"cost of merges": cost_of_merges(record)})


def theory() -> None:
    for record in read("theory/theory.json"):
        tables = theory_tables(record)
        put("theory", {name: f"{rows.title}:\n\n{rows.markdown()}" for name, rows in tables.items()})
        for name, figure in theory_figures(record).items():
            save(figure, FIGURES / name)
    if runs := read_runs("frozen-features"):
        texts = {
            "answer": headline,
            "scores": scores_table,
            "differences": differences_table,
            "skip": skip_table,
            "verdicts": counts,
        }
        put("theory", {f"frozen {name}": made(runs) for name, made in texts.items()})
        save(by_rank(runs), FIGURES / "frozen-features")


def ranks() -> None:
    if runs := read_runs("rank-scores"):
        put("ranks", {"scores": rank_scores_table(runs)})
    for record in read("rank/ranks.json"):
        save(about(ranks_figure(record), subject(find("demo", "recipe").values())), FIGURES / "ranks")
        put("ranks", {"rank": ranks_shown(record)})
    for record in read("probe/cost.json"):
        put("ranks", {"cost": cost_of_probe(record)})


def versions() -> None:
    for records in read("versions.json"):
        put("versions", {"versions": versions_table(records)})


def reliability() -> None:
    for record in read("reliability/fuzz.json"):
        put("reliability", reliability_tables(record))


def conformance() -> None:
    for record in read("conformance.json"):
        put("conformance", conformance_tables(record))


def studies() -> None:
    """A page for each study."""
    written: set[str] = set()
    for section in load_sections(sorted((RESULTS / "studies").glob("*/study.json"))):
        assert section.study is not None
        if len(section.study["study"]["seeds"]) == 1:
            continue  # it only chooses the learning rates of other recipes
        planned = load_study(ROOT / "recipes" / "studies" / f"{section.title}.yaml")
        left = settings_left(section.study, [setting.name for setting in planned.settings])
        drawn = study_figures(section, written)
        shown = [
            study_page(section.study),
            convergence_note(section.scores),
            left,
            *(["## Figures"] if drawn else []),
            *drawn,
        ]
        put(f"studies/{section.title}", {section.title: "\n\n".join(filter(None, shown))})
        if section.title == "ranks-converged":
            put("studies/ranks-converged", {"by epoch": by_epoch(section.scores, SETTLED)})
    for old in FIGURES.glob("study-*"):
        if old.stem not in written:
            old.unlink()  # a figure that no longer applies


def study_figures(section: Section, written: set[str]) -> list[str]:
    """The figures of a study, written into docs/figures, as Markdown; their names are added to `written`."""
    shown = []
    for kind, made in figures_of(section):
        for one in [] if isinstance(made, UserError) else made:
            name = "-".join(filter(None, ("study", section.slug, kind.name, slug(one.of))))
            save(one.figure, FIGURES / name)
            written.add(name)
            shown.append(f"![{kind.title}](../figures/{name}.svg)\n\n{kind.title}. {kind.note}")
    return shown


def evidence() -> None:
    found = summaries()
    put("evidence", {f"answers {case}": answered(found, case) for case in CASES})
    put(
        "evidence",
        {
            "default": default_at_the_same_rank(found),
            "rates": beyond_the_best(found),
            "seed 0": without_seed(found, ("ranks-short", "ranks-converged"), 0),
        },
    )


def worth() -> None:
    found = summaries()
    put("worth", {"fewer weights": fewer_weights(found)})
    save(main_answers(found), FIGURES / "worth")


def figures() -> None:
    of = subject(find("figure2", "recipe").values())
    for record in read("figures/sigma.json"):
        save(about(sigma_figure(record), of), FIGURES / "sigma")
    if gaps := read("figures/gap-*.json"):
        save(about(gap_figure(*gaps), of), FIGURES / "gap")
    for record in read("figures/updates.json"):
        save(about(trajectories_figure(record), of), FIGURES / "updates")
        shown = "![Principal components of the weight updates over the epochs](figures/updates.svg)"
        put("figures", {"updates": f"{shown}\n\n{lengths_table(record)}"})


def paper() -> None:
    """Two pages, of the paper's tables."""
    for record in read("reproduce/*.json"):
        page = "paper-images" if record["suite"] in IMAGES else "paper-language"
        put(f"studies/{page}", {f"{record['suite']} {record['scale']}": reproduced_table(record)})


def performance() -> None:
    put("performance", parts(RESULTS / "bench", FIGURES))


if __name__ == "__main__":
    main()
