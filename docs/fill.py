"""Puts the tables and figures of docs/ in their places, from the results that commands have written.

PYTHONPATH=. python docs/fill.py
"""

import json
from collections.abc import Mapping
from pathlib import Path

from aurora_lora.data import TASKS
from aurora_lora.errors import UserError
from aurora_lora.files import slug, write_text
from aurora_lora.lab.experiments.study import load_study
from aurora_lora.lab.report.figures import about, save
from aurora_lora.lab.report.measured import gap_figure, sigma_figure, trajectories_figure
from aurora_lora.lab.report.page import figures_of
from aurora_lora.lab.report.runs import Section, load_results, load_sections
from aurora_lora.lab.report.study import convergence_note
from aurora_lora.train.recipe import load_recipe
from make.calibration import calibration_table, cost_table, forms_figure, forms_table
from make.chat import chat_parts
from make.conformance import conformance_tables
from make.frozen_features import counts, differences_table, headline, scores_table, skip_table
from make.method_options import aurora_fields, method_options
from make.performance import parts
from make.quantised_merges import (
    compact_table,
    cost_of_merges,
    merges_by_format,
    merges_table,
    rounding_tables,
    stored_table,
)
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
    small_sets_table,
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
from theory.report import theory_tables

ROOT = Path(__file__).parent.parent
DOCS, FIGURES, RESULTS = ROOT / "docs", ROOT / "docs" / "figures", ROOT / "results"
IMAGES = ("table3", "table4", "table5")
"""The paper's tables of images; the others are of language."""


def main() -> None:
    put("peft", {"aurora fields": aurora_fields()})
    put("methods", {"options": method_options()})
    put("recipe", recipe_fields())
    for group in dict.fromkeys(task.group for task in TASKS.values()):
        put("tasks", {f"tasks {group}": tasks_table(task for task in TASKS.values() if task.group == group)})
    put("your-data", {"small sets": small_sets_table(read_all("small-sets/*.json"))})
    put("chat", chat_parts(read("chat/siqa.json")))
    put("trainers", {"qlora": qlora_table(read("qlora/smollm2.json"))})
    put("versions", {"versions": versions_table(read("versions.json"))})
    put("reliability", reliability_tables(read("reliability/fuzz.json")))
    put("conformance", conformance_tables(read("conformance.json")))
    put("performance", parts(RESULTS / "bench"))
    deploy()
    quantised()
    theory()
    ranks()
    studies()
    evidence()
    figures()
    for record in read_all("reproduce/*.json"):
        page = "paper-images" if record["suite"] in IMAGES else "paper-language"
        put(f"studies/{page}", {f"{record['suite']} {record['scale']}": reproduced_table(record)})


# ---------------------------------------------------------------- what is read, and where it is put


def read(path: str) -> dict:
    """A record in results/."""
    return json.loads((RESULTS / path).read_text())


def read_all(pattern: str) -> list[dict]:
    """The records in results/ whose paths match."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(pattern))]


def read_runs(folder: str) -> list[dict]:
    """The runs of a folder of results/, a line each."""
    return [json.loads(line) for line in (RESULTS / folder / "runs.jsonl").read_text().splitlines()]


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


def subject(recipe: str) -> str:
    """What a figure of a recipe's runs is about."""
    plan = load_recipe(recipe)
    return f"{plan.task.name}, {plan.model}"


# ---------------------------------------------------------------- pages of several tables


def deploy() -> None:
    results, curve = load_results([RESULTS / "forms"]), read("calibration/curve.json")
    of = f"{results[0]['task']}, {results[0]['model']}"
    put("deploy", {"forms": forms_table(results), "curve": calibration_table(curve)})
    put("deploy", {"cost": cost_table(read_all("calibration/cost-*.json"))})
    put("deploy", {"causal-lm": causal_lm_table(read_all("causal-lm/*.json"))})
    save(about(forms_figure(results), of), FIGURES / "forms")


def quantised() -> None:
    merges, stored = read_all("quantized/*bit.json"), read_all("gguf/*.json")
    put("quantised", {"merges": merges_table(merges), "rounding": rounding_tables(read("quantized/rounding.json"))})
    put("quantised", {"cost of merges": cost_of_merges(read("quantized/cost.json")), "stored": stored_table(stored)})
    put("quantised", {"compact": compact_table(read("quantized/input_statistics.json"))})
    save(merges_by_format(merges, stored), FIGURES / "merges-by-format")


def theory() -> None:
    record, runs = read("theory/theory.json"), read_runs("frozen-features")
    put("theory", {name: f"{rows.title}:\n\n{rows.markdown()}" for name, rows in theory_tables(record).items()})
    texts = {"answer": headline, "scores": scores_table, "differences": differences_table}
    texts |= {"skip": skip_table, "verdicts": counts}
    put("theory", {f"frozen {name}": made(runs) for name, made in texts.items()})


def ranks() -> None:
    record = read("rank/ranks.json")
    put("ranks", {"scores": rank_scores_table(read_runs("rank-scores")), "rank": ranks_shown(record)})
    put("ranks", {"cost": cost_of_probe(read("probe/cost.json"))})


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
            shown.append(
                f"![{kind.title}](../figures/{name}.svg)\n\n{kind.title}. {kind.below(section.runs['seed'].nunique())}"
            )
    return shown


def evidence() -> None:
    found = {one["study"]["name"]: one for one in read_all("studies/*/study.json")}
    put("evidence", {f"answers {case}": answered(found, case) for case in CASES})
    without = without_seed(found, ("ranks-short", "ranks-converged"), 0)
    default = default_at_the_same_rank(found)
    put("evidence", {"default": default, "rates": beyond_the_best(found), "seed 0": without})
    put("evidence", {"fewer weights": fewer_weights(found)})
    save(main_answers(found), FIGURES / "worth")


def figures() -> None:
    of, updates = subject("figure2"), read("figures/updates.json")
    save(about(sigma_figure(read("figures/sigma.json")), of), FIGURES / "sigma")
    save(about(gap_figure(*read_all("figures/gap-*.json")), of), FIGURES / "gap")
    save(about(trajectories_figure(updates), of), FIGURES / "updates")
    shown = "![Principal components of the weight updates over the epochs](figures/updates.svg)"
    put("figures", {"updates": f"{shown}\n\n{lengths_table(updates)}"})


if __name__ == "__main__":
    main()
