"""What a run keeps of each class, of its losses and of its mistakes, and what the report of a single run shows."""

import json
from pathlib import Path

import own_runs
import pytest
from sklearn.metrics import classification_report, confusion_matrix

from aurora_lora.data.metrics import class_scores
from aurora_lora.lab.report.page import figures_of
from aurora_lora.lab.report.runs import load_sections


@pytest.mark.parametrize(
    ("labels", "answers"), [(["a", "b", "b", "a", "a"], ["a", "b", "a", "never", "a"]), (["a", "b"], ["b", "a"])]
)
def test_each_class_is_scored_as_scikit_learn_does(labels: list[str], answers: list[str]) -> None:
    names = ["b", "a", "never"]
    found = class_scores(labels, answers, names)
    report = classification_report(labels, answers, labels=names, output_dict=True, zero_division=0)
    matrix = confusion_matrix(labels, answers, labels=names)
    assert list(found["by_class"]) == names
    for place, name in enumerate(names):
        theirs = [report[name][key] for key in ("precision", "recall", "f1-score", "support")]
        assert list(found["by_class"][name].values()) == theirs
        assert isinstance(found["by_class"][name]["examples"], int)
        assert [found["confusion"][name].get(answer, 0) for answer in names] == matrix[place].tolist()


@pytest.mark.parametrize("kind", ["classification", "images", "choices"])
def test_a_run_keeps_its_classes_and_mistakes(here: Path, kind: str) -> None:
    apart = ["method.init_weights=paper", "method.alpha=64"]  # whose forms give other probabilities
    done = own_runs.train(kind, "run", *(apart if kind == "classification" else []))
    assert done.exit_code == 0, done.output
    assert "run/mistakes.json" in done.output
    result, wrong = (json.loads((here / "run" / f"{name}.json").read_text()) for name in ("result", "mistakes"))
    matrix = result["confusion"]
    right = sum(row.get(name, 0) for name, row in matrix.items())
    count = sum(sum(row.values()) for row in matrix.values())
    scores = result["metric"]["by_form"]["calibrated"]
    assert count == result["metric"]["examples"]["test"]
    assert right / count == pytest.approx(scores["accuracy"])
    assert list(matrix) == list(result["by_class"]) == result.get("labels", ["fine", "bad"])
    if kind != "choices":
        f1 = [one["f1"] for one in result["by_class"].values() if one["examples"] or one["precision"]]
        assert sum(f1) / len(f1) == pytest.approx(scores["macro_f1"])
    assert (wrong["split"], wrong["wrong"]) == ("test", count - right)
    sure = [one["probability"] for one in wrong["examples"]]
    assert len(sure) == min(10, count - right) > 0
    assert sure == sorted(sure, reverse=True)
    for one in wrong["examples"]:  # the label, the answer and the probability are those of the file and of `predict`
        assert matrix[one["label"]][one["answer"]] > 0
        if kind == "classification":
            assert f"{one['example']},{one['label']}" in (here / "reviews.csv").read_text().splitlines()
            said = json.loads(own_runs.aurora("predict", "run", one["example"], "--json").stdout)[0]
            assert (said["label"], said["probability"]) == (one["answer"], pytest.approx(one["probability"], rel=1e-4))
        if kind == "images":
            assert one["example"].split("/")[:2] == ["pictures", one["label"]]
    shown = own_runs.aurora("report", "run").stdout
    assert "by class, calibrated form" in shown
    assert f"{len(sure)} of {count - right} wrong answers on test, the surest first" in " ".join(shown.split())
    assert wrong["examples"][0]["example"][:20] in shown


def test_the_report_of_a_single_run(here: Path) -> None:
    """The page has the matrix, too; labels and texts are no markup; a damaged file is one line; nothing is pushed."""
    assert own_runs.train("classification", "run").exit_code == 0
    path = here / "run" / "mistakes.json"
    wrong = json.loads(path.read_text())
    wrong["examples"][0]["example"] = "a <b> [red]\n" + 50 * "word "
    path.write_text(json.dumps(wrong))
    assert own_runs.aurora("report", "run", "--html", "page.html").exit_code == 0
    page = (here / "page.html").read_text()
    assert "Confusion: a row for each label, a column for each answer" in page
    assert "a &lt;b&gt; [red] word" in page
    shown = own_runs.aurora("report", "run").stdout
    assert "a <b> [red] word" in shown
    assert max(map(len, shown.splitlines())) <= 80
    pushed = own_runs.aurora("push", "run", "me/run", "--dry-run")
    assert pushed.exit_code == 0, pushed.output
    assert "mistakes" not in pushed.output
    path.write_text(json.dumps({**wrong, "wrong": "many"}))
    for command in (("report", "run"), ("report", "run", "--html", "page.html")):
        done = own_runs.aurora(*command)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert "mistakes.json: wrong: 'many' is not allowed" in done.stderr


def test_the_loss_curve_of_a_run(here: Path) -> None:
    """By step, also of a run of fewer evaluations than learning curves need; the ring is at the best checkpoint."""
    assert own_runs.train("classification", "run").exit_code == 0
    section = load_sections([here / "run"])[0]
    (result,) = section.results
    assert list(result["losses"]) == [str(step) for step in range(1, result["epochs"][-1]["step"] + 1)]
    half = [result["losses"][str(step)] for step in range(1, result["epochs"][0]["step"] + 1)]
    assert sum(half) / len(half) == pytest.approx(result["epochs"][0]["train_loss"])
    (made,) = next(made for kind, made in figures_of(section) if kind.name == "curves" and isinstance(made, list))
    (loss,), (scores, ring) = (ax.lines for ax in made.figure.axes)
    assert [*loss.get_xdata()] == [*map(int, result["losses"])]
    assert [*loss.get_ydata()] == [*result["losses"].values()]
    assert [*scores.get_xdata()] == [one["step"] for one in result["epochs"]]
    assert [*scores.get_ydata()] == [100 * one["validation"]["accuracy"] for one in result["epochs"]]
    assert ring.get_ydata() == [100 * result["metric"]["selected_by"]["value"]]
