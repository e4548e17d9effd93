"""Each table and figure of the paper at the hub's scale, end to end, as a user runs it, on a small hub of our own."""

from __future__ import annotations

import json
from pathlib import Path

import hub_copy
import hub_data
import hub_models
import hub_server
import pytest
from reproduced import SMALL, Aurora, reproduce

pytestmark = pytest.mark.slow
TEXTS = (*SMALL, "task.validation_size=8")
IMAGES = (*SMALL, "task.validation_size=4", "training.workers=0")
# so low a rate that the model writes what it wrote before
QUESTIONS = (*SMALL, "task.validation_size=2", "training.learning_rate=2e-7")
IMAGE = "a [V] dog"
SUBJECT = (
    "training.steps=1",
    "training.precision=fp32",
    "training.threads=1",
    "task.resolution=16",
    "validation.inference_steps=1",
    f'validation.prompts=["{IMAGE}"]',
    "validation.noise_samples=2",
    "calibration.examples=2",
)
FIXTURES = {"siqa": "social_i_qa", "arc-e": "ai2_arc", "arc-c": "ai2_arc", "obqa": "openbookqa"}


def written(folder: Path) -> dict[str, int]:
    """When each result was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("result.json")}


# ---------------------------------------------------------------- tables


def test_table_1(aurora: Aurora, runs: Path) -> None:
    """Every method on one task, and one method on every task."""
    only = ["base-*-rte", "large-adapter-*-rte", "large-aurora-paper-rte", "base-aurora-paper-*"]
    results = reproduce(aurora, runs, "table1", only, *TEXTS)
    assert len({result["method"] for result in results.values()}) == 13
    assert {result["task"] for result in results.values()} == {"cola", "sst2", "mrpc", "stsb", "qnli", "rte"}
    for name, result in results.items():
        assert result["model"] == f"FacebookAI/roberta-{'large' if '/large' in name else 'base'}"


def test_table_2(aurora: Aurora, runs: Path) -> None:
    """Every method, every test set: right are the questions whose answer is the one that the model always writes."""
    results = reproduce(aurora, runs, "table2", ["*"], *QUESTIONS)
    expected = hub_copy.read("expected_prompts.json")
    assert len(results) == 5
    for result in results.values():
        shares = {}
        for name, forms in result["metric"]["by_test_set"].items():
            answers = hub_data.rows_of(FIXTURES.get(name, name), "test", [key for _, key in expected[name]])
            shares[name] = sum(answer in hub_models.ANSWER for answer in answers) / len(answers)
            assert {scores["accuracy_generated"] for scores in forms.values()} == {shares[name]}
        assert len(shares) == 8
        assert len(set(shares.values())) > 5


def test_table_7_takes_a_run_from_table_2(aurora: Aurora, runs: Path) -> None:
    reproduce(aurora, runs, "table2", ["aurora-paper"], *QUESTIONS)
    before = written(runs / "table2")
    reproduce(aurora, runs, "table7", ["aurora-paper-s", "table2/aurora-paper"], *QUESTIONS)
    assert written(runs / "table2") == before


def test_table_3(aurora: Aurora, runs: Path) -> None:
    """Every method on one task, and one method on every task; dark and bright images are told apart in some."""
    only = ["base-*-dtd", "large-aurora-paper-dtd", "base-aurora-paper-*"]
    results = reproduce(aurora, runs, "table3", only, *IMAGES)
    assert len({result["method"] for result in results.values()}) == 6
    assert len({result["task"] for result in results.values()}) == 8
    assert len({result["metric"]["by_form"]["calibrated"]["nll"] for n, result in results.items() if "paper" in n}) > 7


@pytest.mark.parametrize(("suite", "data"), [("table4", "eurosat"), ("table5", "fgvc")])
def test_tables_4_and_5_take_runs_from_table_3(aurora: Aurora, runs: Path, suite: str, data: str) -> None:
    reproduce(aurora, runs, "table3", [f"base-aurora-paper-{data}"], *IMAGES)
    before = written(runs / "table3")
    assert len(reproduce(aurora, runs, suite, [f"*-{data}"], *IMAGES)) == 3
    assert written(runs / "table3") == before


# ---------------------------------------------------------------- figures


def test_figure_4(aurora: Aurora, runs: Path) -> None:
    scores = (f'scores.prompts=["{IMAGE}"]', "scores.images_per_prompt=1")
    assert len(reproduce(aurora, runs, "figure4", ["dog-*"], *SUBJECT, *scores)) == 3
    smoke = runs / "smoke"
    done = aurora("train", "figure4/smoke", *SUBJECT, "-o", smoke)
    assert done["status"] == 0, done["stderr"]
    assert (smoke / "grid.png").exists()


def test_figure_5(aurora: Aurora, runs: Path) -> None:
    results = reproduce(aurora, runs, "figure5", ["*-r2", "*-r16"], *QUESTIONS, "task.test_size=2")
    assert len(results) == 6


def test_figures_1_and_2(aurora: Aurora, runs: Path, tmp_path: Path) -> None:
    """Scores against parameters, of what Table 1 has run; the trajectory of the updates, of two methods."""
    pytest.importorskip("matplotlib")
    reproduce(aurora, runs, "table1", ["base-lora-rte", "base-fourierft-rte"], *TEXTS)
    made = aurora("report", runs / "table1", "--figures", tmp_path / "figure1")
    assert made["status"] == 0, made["stderr"]
    assert list((tmp_path / "figure1").rglob("scores.svg"))
    for method in ("lora", "aurora"):
        options = rf"method={{name: {method}, r: 2, target_modules: '.*\.(query|value|q_proj|v_proj)'}}"
        task = "task={name: cifar10, train_size: 16, validation_size: 4, test_size: 4}"
        model = "model=google/vit-base-patch16-224-in21k"
        small = [model, options, task, *SMALL[1:4], "training.epochs=2", "training.precision=fp32"]
        done = aurora("train", "figure2", *small, "-o", runs / "figure2" / method)
        assert done["status"] == 0, done["stderr"]
    made = aurora("report", runs / "figure2", "--figures", tmp_path / "figure2")
    assert made["status"] == 0, made["stderr"]
    assert json.loads((tmp_path / "figure2" / "updates.json").read_text())


# ---------------------------------------------------------------- where runs run


def test_two_at_a_time(aurora: Aurora, runs: Path) -> None:
    reproduce(aurora, runs, "table1", ["base-lora-stsb"], *TEXTS, "--jobs", "2", seeds=(0, 1))


def test_runs_without_network(aurora: Aurora, runs: Path, hub: hub_server.Hub) -> None:
    """The nodes of a cluster often see none: what was downloaded before is enough."""
    reproduce(aurora, runs, "table5", ["*-sigmoid-fgvc"], *IMAGES)
    asked = len(hub.asked)
    reproduce(aurora, runs, "table5", ["*-sigmoid-fgvc"], *IMAGES, "--jobs", "2", seeds=(1, 2), HF_HUB_OFFLINE="1")
    assert hub.asked[asked:] == []


# ---------------------------------------------------------------- the hub


def test_only_what_is_needed_was_downloaded(aurora: Aurora, runs: Path, hub: hub_server.Hub) -> None:
    """The weights come in many forms and precisions; each file is downloaded once, whatever has been run of it."""
    reproduce(aurora, runs, "table2", ["lora"], *QUESTIONS)
    downloads = [request for request in hub.asked if request.startswith("GET /") and "/resolve/" in request]
    assert len(downloads) == len(set(downloads))
    needless = {f"/{name}" for names in hub_models.NEEDLESS.values() for name in names}
    assert not [request for request in downloads if request.endswith(tuple(needless))]
    sdxl = [request for request in downloads if "stable-diffusion" in request and request.endswith(".safetensors")]
    assert all(request.endswith(".fp16.safetensors") for request in sdxl)
    assert hub.unanswered == []
