"""Puts the tables and figures of docs/ in their places, from the results that commands have written.

python docs/fill.py
"""

import json
from pathlib import Path

from aurora_lora.errors import UserError
from aurora_lora.lab.experiments.recipes import find
from aurora_lora.lab.experiments.study import load_study
from aurora_lora.lab.report.catalogue import figures_of
from aurora_lora.lab.report.convergence import convergence_note
from aurora_lora.lab.report.figures import about, save
from aurora_lora.lab.report.forms_figure import forms_figure
from aurora_lora.lab.report.gap_figure import gap_figure
from aurora_lora.lab.report.ranks_figure import ranks_figure
from aurora_lora.lab.report.results import load_results
from aurora_lora.lab.report.sections import Section, load_sections
from aurora_lora.lab.report.sigma_figure import sigma_figure
from aurora_lora.lab.report.tables import forms_table, insert
from aurora_lora.lab.report.theory import theory_tables
from aurora_lora.lab.report.theory_figures import theory_figures
from aurora_lora.lab.report.trajectory import trajectories_figure
from aurora_lora.tasks import TASKS
from aurora_lora.training.reading import name_of, task_name
from make.calibration import calibration_curve, calibration_table, cost_table
from make.cases import CASES
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
    SETTLED,
    answered,
    beyond_the_best,
    by_epoch,
    default_at_the_same_rank,
    fewer_weights,
    main_answers,
    without_seed,
)

ROOT = Path(__file__).parent.parent
PAGE, FIGURES, RESULTS = ROOT / "docs" / "deploy.md", ROOT / "docs" / "figures", ROOT / "results"
STUDIES = ROOT / "docs" / "studies"
"""A page for each study, and two for the paper's tables."""
IMAGES = ("table3", "table4", "table5")


def read(folder: Path, pattern: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]


def figures(section: Section, written: set[str]) -> list[str]:
    """The figures of a study, written into docs/figures, as Markdown; their names are added to `written`."""
    shown = []
    for kind, made in figures_of(section):
        for one in [] if isinstance(made, UserError) else made:
            name = "-".join(filter(None, ("study", section.slug, kind.name, one.slug)))
            save(one.figure, FIGURES / name)
            written.add(name)
            shown.append(f"![{kind.title}](../figures/{name}.svg)\n\n{kind.title}. {kind.note}")
    return shown


def main() -> None:
    insert(ROOT / "docs" / "peft.md", "aurora fields", aurora_fields())
    insert(ROOT / "docs" / "methods.md", "options", method_options())
    for name, text in recipe_fields().items():
        insert(ROOT / "docs" / "recipe.md", name, text)
    results = load_results([RESULTS / "forms"])
    insert(PAGE, "forms", forms_table(results))
    save(forms_figure(results), FIGURES / "forms")
    for curve in read(RESULTS / "calibration", "curve.json"):
        insert(PAGE, "curve", calibration_table(curve))
        trained = [run["dynamic"]["accuracy"] for run in curve["runs"]]
        drawn = calibration_curve(curve["records"], {"accuracy": sum(trained) / len(trained)})
        save(about(drawn, f"{results[0]['task']}, {results[0]['model']}"), FIGURES / "calibration-inputs")
    if costs := read(RESULTS / "calibration", "cost-*.json"):
        insert(PAGE, "cost", cost_table(costs))
    for result in read(RESULTS / "chat", "siqa.json"):
        for name, text in chat_parts(result).items():
            insert(ROOT / "docs" / "chat.md", name, text)
    if language := read(RESULTS / "causal-lm", "*.json"):
        insert(PAGE, "causal-lm", causal_lm_table(language))
    for group in dict.fromkeys(task.group for task in TASKS.values()):
        insert(
            ROOT / "docs" / "tasks.md",
            f"tasks {group}",
            tasks_table(task for task in TASKS.values() if task.group == group),
        )
    for distances in read(RESULTS / "qlora", "smollm2.json"):
        insert(ROOT / "docs" / "trainers.md", "qlora", qlora_table(distances))
    if merges := read(RESULTS / "quantized", "*bit.json"):
        insert(ROOT / "docs" / "quantised.md", "merges", merges_table(merges))
        save(merges_by_bits(merges), FIGURES / "quantised-merges")
    for record in read(RESULTS / "quantized", "rounding.json"):
        insert(ROOT / "docs" / "quantised.md", "rounding", rounding_tables(record))
    for record in read(RESULTS / "quantized", "cost.json"):
        insert(ROOT / "docs" / "quantised.md", "cost of merges", cost_of_merges(record))
    for record in read(RESULTS / "theory", "theory.json"):
        for name, rows in theory_tables(record).items():
            insert(ROOT / "docs" / "theory.md", name, f"{rows.title}:\n\n{rows.markdown()}")
        for name, figure in theory_figures(record).items():
            save(figure, FIGURES / name)
    for path in (RESULTS / "frozen-features").glob("runs.jsonl"):
        runs = [json.loads(line) for line in path.read_text().splitlines()]
        texts = {
            "answer": headline,
            "scores": scores_table,
            "differences": differences_table,
            "skip": skip_table,
            "verdicts": counts,
        }
        for name, made in texts.items():
            insert(ROOT / "docs" / "theory.md", f"frozen {name}", made(runs))
        save(by_rank(runs), FIGURES / "frozen-features")
    for path in (RESULTS / "rank-scores").glob("runs.jsonl"):
        runs = [json.loads(line) for line in path.read_text().splitlines()]
        insert(ROOT / "docs" / "ranks.md", "scores", rank_scores_table(runs))
    for record in read(RESULTS / "rank", "ranks.json"):
        recipe = find("demo", "recipe").values()
        save(about(ranks_figure(record), f"{task_name(recipe)}, {name_of('model', recipe)}"), FIGURES / "ranks")
        insert(ROOT / "docs" / "ranks.md", "rank", ranks_shown(record))
    for record in read(RESULTS / "probe", "cost.json"):
        insert(ROOT / "docs" / "ranks.md", "cost", cost_of_probe(record))
    for records in read(RESULTS, "versions.json"):
        insert(ROOT / "docs" / "versions.md", "versions", versions_table(records))
    for record in read(RESULTS / "reliability", "fuzz.json"):
        for name, text in reliability_tables(record).items():
            insert(ROOT / "docs" / "reliability.md", name, text)
    for record in read(RESULTS, "conformance.json"):
        for name, text in conformance_tables(record).items():
            insert(ROOT / "docs" / "conformance.md", name, text)
    written: set[str] = set()
    for section in load_sections(sorted((RESULTS / "studies").glob("*/study.json"))):
        assert section.study is not None
        if len(section.study["study"]["seeds"]) == 1:
            continue  # it only chooses the learning rates of other recipes
        planned = load_study(ROOT / "recipes" / "studies" / f"{section.title}.yaml")
        left = settings_left(section.study, [setting.name for setting in planned.settings])
        drawn = figures(section, written)
        shown = [
            study_page(section.study),
            convergence_note(section.groups),
            left,
            *(["## Figures"] if drawn else []),
            *drawn,
        ]
        insert(STUDIES / f"{section.title}.md", section.title, "\n\n".join(filter(None, shown)))
        if section.title == "ranks-converged":
            insert(STUDIES / "ranks-converged.md", "by epoch", by_epoch(section.groups, SETTLED))
    for old in FIGURES.glob("study-*"):
        if old.stem not in written:
            old.unlink()  # a figure that no longer applies
    summaries = {one["study"]["name"]: one for one in read(RESULTS / "studies", "*/study.json")}
    for case in CASES:
        insert(ROOT / "docs" / "evidence.md", f"answers {case}", answered(summaries, case))
    insert(ROOT / "docs" / "worth.md", "fewer weights", fewer_weights(summaries))
    insert(ROOT / "docs" / "evidence.md", "default", default_at_the_same_rank(summaries))
    save(main_answers(summaries), FIGURES / "worth")
    insert(ROOT / "docs" / "evidence.md", "rates", beyond_the_best(summaries))
    insert(ROOT / "docs" / "evidence.md", "seed 0", without_seed(summaries, ("ranks-short", "ranks-converged"), 0))
    recipe = find("figure2", "recipe").values()
    subject = f"{task_name(recipe)}, {name_of('model', recipe)}"
    for record in read(RESULTS / "figures", "sigma.json"):
        save(about(sigma_figure(record), subject), FIGURES / "sigma")
    if gaps := read(RESULTS / "figures", "gap-*.json"):
        save(about(gap_figure(*gaps), subject), FIGURES / "gap")
    for record in read(RESULTS / "figures", "updates.json"):
        save(about(trajectories_figure(record), subject), FIGURES / "updates")
        shown = "![Principal components of the weight updates over the epochs](figures/updates.svg)"
        insert(ROOT / "docs" / "figures.md", "updates", f"{shown}\n\n{lengths_table(record)}")
    for record in read(RESULTS / "reproduce", "*.json"):
        page = "paper-images" if record["suite"] in IMAGES else "paper-language"
        insert(STUDIES / f"{page}.md", f"{record['suite']} {record['scale']}", reproduced_table(record))
    for name, text in parts(RESULTS / "bench", FIGURES).items():
        insert(ROOT / "docs" / "performance.md", name, text)


if __name__ == "__main__":
    main()
