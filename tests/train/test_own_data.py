"""Runs on the user's own data: every kind of it, through every command."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import own_files
import pytest
import tiny
import torch
from own_runs import METRICS, SETTINGS, aurora, train
from transformers import AutoConfig

from aurora_lora.train import load_run
from aurora_lora.train.predicting import predict

LABELS = {
    "classification": ["negative", "positive"],
    "multi-label": ["good", "bad"],
    "images": ["blue", "green", "red"],
}


def test_classes_of_unequal_size(here: Path) -> None:
    """An epoch is chosen by the rare class, too, and the most frequent one is the least that a model should beat."""
    (path,) = here.glob("reviews.csv")
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    texts = [line.rpartition(",")[0] for line in lines]
    for name, rows in (("train", texts[:40]), ("test", texts[40:])):
        labels = ["rare" if place % 5 == 0 else "usual" for place in range(len(rows))]
        made = [header, *(f"{text},{label}" for text, label in zip(rows, labels, strict=True))]
        Path(f"{name}.csv").write_text("\n".join(made) + "\n", encoding="utf-8")
    more = ("task.data=train.csv", "task.test_data=test.csv", "training.select_by=macro_f1")
    done = train("classification", "run", *more)
    assert done.exit_code == 0, done.output
    epochs = re.findall(r"epoch (\d) of 2, validation macro_f1 (0\.\d{4}),", done.stderr)
    assert [epoch for epoch, _ in epochs] == ["1", "2"]
    assert "of 2, by validation macro_f1;" in done.stdout
    assert re.search(r"uniform guessing +50.0", done.stdout)
    assert re.search(r"the most frequent class +80.0 +44.4", done.stdout)
    result = json.loads(Path("run/result.json").read_text())
    best = max(result["epochs"], key=lambda entry: entry["validation"]["macro_f1"])
    assert result["metric"]["selected_by"]["value"] == best["validation"]["macro_f1"]
    # 8 of 10 are right; the F1 of `usual` is 16/18, that of the other 0
    assert result["metric"]["most_frequent"] == {"test": pytest.approx({"accuracy": 0.8, "macro_f1": 8 / 18})}
    assert result["metric"]["chance"]["test"]["accuracy"] == 0.5
    assert aurora("report", "run", "--html", "page.html").exit_code == 0
    assert "the most frequent class" in Path("page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", METRICS)
def test_every_kind_through_every_command(kind: str, here: Path) -> None:
    done = train(kind, "run")
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[0] == "aurora: examples: 40 train, 5 validation, 5 test"
    result = json.loads(Path("run/result.json").read_text())
    data = own_files.OVERRIDES[kind][0].removeprefix("task.data=")
    assert result["task"] == f"{kind} of {data}"
    assert result["data"]["files"].keys() == {data}
    assert result.get("labels", []) == LABELS.get(kind, [])
    scores = result["metric"]["by_form"]["calibrated"]
    assert sorted(scores) == sorted(METRICS[kind])
    assert all(value is not None for value in scores.values())

    evaluated = json.loads(aurora("evaluate", "run", "--json").stdout)
    for form, scores in result["metric"]["by_form"].items():
        assert evaluated["by_form"][form] == pytest.approx(scores, abs=1e-6)
    assert aurora("sigma", "run").exit_code == 0
    gap = aurora("gap", "run", "--examples", "4")
    assert gap.exit_code == 0, gap.output
    asked = ["pictures/red/0.png"] if kind == "images" else ["the film was good", "very bad"]
    for command in (["merge", "run", "-o", "merged"], ["export", "run", "-o", "lora"], ["report", "run"]):
        made = aurora(*command)
        assert made.exit_code == 0, made.output
    answers, merged = (json.loads(aurora("predict", folder, *asked, "--json").stdout) for folder in ("run", "merged"))
    assert len(answers) == len(asked)
    for one, other in zip(answers, merged, strict=True):
        assert one.keys() == other.keys()
        assert one.get("label") == other.get("label")
        assert one.get("labels") == other.get("labels")
    assert aurora("predict", "merged", *asked).exit_code == 0
    if kind in LABELS:
        assert list(AutoConfig.from_pretrained("merged").id2label.values()) == LABELS[kind]


def test_texts_that_are_cut_and_duplicates_are_said(here: Path) -> None:
    with Path("reviews.csv").open("a") as file:
        file.write(f"{'the ' * 40},positive\n" + Path("reviews.csv").read_text().splitlines()[1] + "\n")
    done = train("classification", "run", "task.max_length=16")
    lines = done.stderr.splitlines()
    assert lines[0] == "aurora: examples: 40 train, 6 validation, 6 test"
    assert lines[1] == "aurora: 2 labels: 'negative' 25, 'positive' 27"
    assert lines[2] == "aurora: duplicates: 1; the same example is never in two splits"
    assert any(line.startswith("aurora: 1 of ") and "longer than 16 tokens" in line for line in lines[3:5])
    cut = json.loads(Path("run/data.json").read_text())["cut"]
    assert sum(count for count, _ in cut["texts"].values()) == 1


def test_a_file_that_changed(here: Path) -> None:
    train("classification", "run")
    with Path("reviews.csv").open("a") as file:
        file.write("a new one,positive\n")
    for done in (*(aurora(command, "run") for command in ("evaluate", "gap", "sigma")), train("classification", "run")):
        assert done.exit_code == 2
        assert done.stderr.splitlines()[-1].startswith("reviews.csv has changed since this run began")
    assert aurora("predict", "run", "a film").exit_code == 0  # needs no data
    Path("reviews.csv").unlink()
    assert train("classification", "run").exit_code == 0  # is finished, and needs none


def test_a_file_that_changed_before_the_run_goes_on(here: Path) -> None:
    stopped = {"make_callbacks": lambda: [tiny.Stop(7)]}
    from aurora_lora.lab.experiments.recipes import load_any
    from aurora_lora.train import train as run_recipe

    changes = ["model=bert", *own_files.OVERRIDES["classification"], *SETTINGS]
    with pytest.raises(KeyboardInterrupt):
        run_recipe(load_any("classification", changes), "run", **stopped)
    before = Path("reviews.csv").read_bytes()
    Path("reviews.csv").write_bytes(before.replace(b"positive", b"negative", 1))
    done = train("classification", "run")
    assert done.exit_code == 2
    assert "reviews.csv has changed since this run began" in done.stderr
    Path("reviews.csv").write_bytes(before)
    assert train("classification", "run").exit_code == 0


def test_pairs_of_texts(here: Path) -> None:
    rows = [
        dict(zip(("review", "stars"), line.rsplit(",", 1), strict=True))
        for line in Path("reviews.csv").read_text().splitlines()[1:]
    ]
    own_files._csv(
        Path("pairs.csv"), [{"first": row["review"], "second": "a film", "label": row["stars"]} for row in rows]
    )
    done = aurora(
        "train",
        "classification",
        "model=bert",
        "task.data=pairs.csv",
        "task.text=[first, second]",
        *SETTINGS,
        "-o",
        "run",
    )
    assert done.exit_code == 0, done.output
    assert load_run("run").task.text_columns == ("text", "text_b")
    done = aurora("predict", "run", "pairs.csv", "--output", "answers.jsonl")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(rows) == own_files.ROWS
    assert {row["second"] for row in rows} == {"a film"}
    done = aurora("predict", "run", "a film")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "the model takes pairs of texts (first, second), from the rows of a file" in done.stderr


def answered(run: str, file: str, *more: str) -> list[dict[str, Any]]:
    done = aurora("predict", run, file, "--output", "answers.jsonl", "--overwrite", *more)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]


def test_images_to_predict_are_read_as_the_training_data(here: Path) -> None:
    """A folder by class, the bytes of Parquet, and a file of paths, by the run and by the merged model."""
    train("images", "run", "training.epochs=1")
    aurora("merge", "run", "-o", "merged")
    paths = [str(path) for path in sorted(Path("pictures").rglob("*.png"))]
    read = [{"image": Path(path).read_bytes(), "name": path} for path in paths]
    datasets.Dataset.from_list(read).to_parquet("raw.parquet")
    images = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    images.to_parquet("images.parquet")  # with their bytes
    own_files._csv(Path("paths.csv"), [{"image": path} for path in paths])
    told = predict("run", paths)
    for run, file in [("run", "pictures"), ("run", "raw.parquet"), ("run", "paths.csv"), ("merged", "images.parquet")]:
        rows = answered(run, file)
        assert [row.get("predicted_label", row["label"]) for row in rows] == [one["label"] for one in told]
        if file == "pictures":  # whose own labels are the folders' names
            assert [row["label"] for row in rows] == [Path(path).parent.name for path in paths]
        assert [row["probability"] for row in rows] == pytest.approx([one["probability"] for one in told], abs=1e-6)
        if file == "raw.parquet":
            assert [(row["image"], row["name"]) for row in rows] == list(enumerate(paths, start=1))
        else:
            assert [Path(row["image"]).name for row in rows] == [Path(path).name for path in paths]
    datasets.Dataset.from_list([*read, {"image": b"no image", "name": ""}]).to_parquet("raw.parquet")
    done = aurora("predict", "run", "raw.parquet", "-o", "no.jsonl")
    assert (done.exit_code, done.stderr) == (2, "raw.parquet, row 51: the image is no image that can be read\n")


def test_what_is_written_is_json_and_never_the_file_that_is_read(here: Path) -> None:
    train("classification", "run")
    rows = [{"review": "a good film", "price": price} for price in (1.5, float("nan"), None)]
    datasets.Dataset.from_list(rows).to_parquet("asked.parquet")
    assert [row["price"] for row in answered("run", "asked.parquet")] == [1.5, None, None]
    before = Path("reviews.csv").read_bytes()
    done = aurora("predict", "run", "reviews.csv", "--output", here / "reviews.csv")
    assert done.exit_code == 2
    assert "--output: " in done.stderr
    assert "is the file that is read" in done.stderr
    Path("there.jsonl").write_text("kept")
    done = aurora("predict", "run", "asked.parquet", "--output", "there.jsonl")
    message = "there.jsonl is there already: choose another file, or --overwrite replaces it\n"
    assert (done.exit_code, done.stderr) == (2, message)
    assert Path("there.jsonl").read_text() == "kept"
    assert Path("reviews.csv").read_bytes() == before


def test_no_column_is_written_over(here: Path) -> None:
    train("classification", "run")
    row = {"review": "a good film", "label": "x", "predicted_label": "y", "predicted_label_2": "z"}
    datasets.Dataset.from_list([row]).to_parquet("asked.parquet")
    (found,) = answered("run", "asked.parquet")
    assert found.items() >= row.items()
    assert found["predicted_label_3"] in LABELS["classification"]


def test_a_file_to_predict_is_read_as_the_training_data(here: Path) -> None:
    text = Path("reviews.csv").read_text().replace("film", "caf\xe9")
    Path("reviews.csv").write_text(text, encoding="cp1252")
    train("classification", "run", "task.encoding=cp1252")
    read = [row["review"] for row in answered("run", "reviews.csv")]
    assert read == [line.rsplit(",", 1)[0] for line in text.splitlines()[1:]]
    Path("other.csv").write_text(text, encoding="utf-16")
    done = aurora("predict", "run", "other.csv", "--output", "other.jsonl")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert [row["review"] for row in answered("run", "other.csv", "--encoding", "utf-16")] == read


def test_a_row_to_predict_without_a_text_is_refused_as_in_training(here: Path) -> None:
    train("choices", "run", "training.epochs=1")
    rows: list[dict[str, Any]] = [{"question": "a film", "options": ["fine", "bad"]} for _ in range(20)]
    for value in (None, " "):
        rows[17]["question"] = value
        own_files._jsonl(Path("asked.jsonl"), rows)
        done = aurora("predict", "run", "asked.jsonl", "--output", "answers.jsonl")
        assert (done.exit_code, done.stderr) == (2, "asked.jsonl, line 18: 'question' is empty\n")
        assert not Path("answers.jsonl").exists()


def test_texts_to_predict_are_cut_as_in_training(here: Path) -> None:
    train("classification", "run", "task.max_length=16")
    aurora("merge", "run", "-o", "merged")
    long, cut = "the film was good and " * 30, " ".join(("the film was good and " * 30).split()[:14])
    for folder in ("run", "merged"):
        done = aurora("predict", folder, long, cut, "--json")
        one, other = json.loads(done.stdout)
        assert (one["cut_at"], "cut_at" in other) == (16, False)
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)
        assert done.stderr == "aurora: 1 of 2 texts are longer than 16 tokens and are cut\n"
    own_files._jsonl(Path("asked.jsonl"), [{"review": long}, {"review": cut}])
    assert [row.get("cut_at") for row in answered("run", "asked.jsonl")] == [16, None]


@pytest.mark.parametrize("form", ["cloze", "instruction"])
def test_questions_are_answered_among_their_own_options(form: str, here: Path) -> None:
    """With the scores of the evaluation: the test file is what is predicted."""
    rows = [json.loads(line) for line in Path("questions.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["question"] = row["question"] + " film" * (number % 3)
        row["options"] = [["fine", "bad"], ["bad", "", "fine"], ["bad", "dull", "fine"]][number % 3]
    own_files._jsonl(Path("test.jsonl"), [{**row, "id": n} for n, row in enumerate(rows)])
    done = train("choices", "run", "task.test_data=test.jsonl", f"task.prompt={form}", "training.learning_rate=1e-2")
    assert done.exit_code == 0, done.output
    scores = json.loads(aurora("evaluate", "run", "--split", "test", "--json").stdout)["by_form"]["calibrated"]
    aurora("merge", "run", "-o", "merged")
    for folder in ("run", "merged"):
        said = answered(folder, "test.jsonl")
        assert [row["id"] for row in said] == list(range(len(rows)))
        right, nll = 0, 0.0
        for row in said:
            assert row["predicted_answer"] == row["options"][row["index"]]
            there = {option: score for option, score in zip(row["options"], row["scores"], strict=True) if option}
            assert there[row["predicted_answer"]] == max(there.values())
            assert all(score is None for option, score in zip(row["options"], row["scores"], strict=True) if not option)
            right += row["predicted_answer"] == row["answer"]
            likely = torch.tensor(list(there.values())).log_softmax(0)
            nll -= float(likely[list(there).index(row["answer"])]) / len(said)
        assert right / len(said) == pytest.approx(scores["accuracy"])
        assert nll == pytest.approx(scores["nll"], abs=1e-4)
    renamed = [{"asked": row["question"], "one": "fine", "two": "bad"} for row in rows[:3]]
    own_files._jsonl(Path("renamed.jsonl"), renamed)
    said = answered("run", "renamed.jsonl", "--column", "asked", "--column", "one", "--column", "two")
    assert all(row["answer"] == (row["one"], row["two"])[row["index"]] for row in said)
    own_files._jsonl(Path("alone.jsonl"), [{"question": "the film"}])
    done = aurora("predict", "run", "alone.jsonl", "--output", "alone_answers.jsonl")
    assert done.stderr == "alone.jsonl has no column 'options' (it has 'question'): --column names it\n"


STUDY = """
name: mine
base:
  model: bert
  task: {name: classification, data: nothing.csv, text: review, label: stars}
  training: {epochs: 1, batch_size: 8, threads: 1}
tuning: {budget: 1, space: {training.learning_rate: [1e-2]}}
seeds: [0, 1]
settings:
  - {name: LoRA, method: {name: lora, r: 2}}
  - {name: AuroRA, method: {name: aurora, r: 2}}
"""


@pytest.mark.slow
def test_a_study_of_own_data(here: Path) -> None:
    Path("study.yaml").write_text(STUDY)
    assert "'nothing.csv' is no file" in aurora("sweep", "study.yaml", "-o", "study").output
    done = aurora("sweep", "study.yaml", "base.task.data=reviews.csv", "-o", "mine", "--json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert not summary["failed"]
    assert all(len(setting["seeds"]) == 2 for setting in summary["settings"])
    assert "AuroRA" in aurora("report", "mine").stdout
    page = aurora("report", "mine", "--html", "page.html")
    assert page.exit_code == 0, page.output
    assert "classification of reviews.csv" in Path("page.html").read_text()


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no such file": (["task.data=reviws.csv"], "'reviws.csv' is no file"),
    "no such column": (["task.text=revew"], "task.text: reviews.csv has no column 'revew' (it has 'review', 'stars')"),
    "the label as a text": (
        ["task.text=[review, stars]"],
        "classification: task.text: 'stars' is the column of task.label as well: the model would read what it is to",
    ),
    "too many": (["task.train_size=48"], "task.train_size: 48 is more than the 40 rows that there are"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, here: Path) -> None:
    changes, message = MISTAKES[mistake]
    done = train("classification", "run", *changes)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


@pytest.mark.parametrize(
    ("model", "changes"),
    [("minilm-l6", ["task.text=revew"]), ("vit-fashion-mnist", []), ("bert", ["task.max_length=1"])],
)
def test_a_mistake_in_the_data_comes_before_the_model_and_leaves_no_folder(
    model: str, changes: list[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: Any) -> Any:
        raise AssertionError("a model is fetched")

    monkeypatch.setattr("aurora_lora.data.models.fetch", fetch)
    monkeypatch.setattr("aurora_lora.train.run.pretrain", fetch)
    monkeypatch.setattr("aurora_lora.data.models.cache_dir", lambda: here / "cache")
    file = "none.csv" if model.startswith("vit") else "reviews.csv"
    done = train("classification", "runs/mine", *changes, f"model={model}", f"task.data={file}")
    assert done.exit_code == 2, done.output
    assert (changes or [file])[0].split("=")[0] in done.stderr
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("kind", "changes", "shared"),
    [
        ("classification", ["task.text=label"], "task.text: 'label' is the column of task.label"),
        ("choices", ["task.question=answer"], "task.question: 'answer' is the column of task.answer"),
    ],
)
def test_a_column_that_is_both_read_and_learned(kind: str, changes: list[str], shared: str, here: Path) -> None:
    done = aurora("train", kind, "task.data=reviews.csv", *changes, "-o", "run")
    assert (done.exit_code, done.stderr) == (
        2,
        f"{kind}: {shared} as well: the model would read what it is to answer\n",
    )


def test_the_answer_may_be_in_the_column_of_an_option(here: Path) -> None:
    """All options are read, the right one among them."""
    rows = [{"question": f"film {n}", "right": f"good {n}", "wrong": f"bad {n}"} for n in range(40)]
    own_files._jsonl(Path("questions.jsonl"), rows)
    done = train("choices", "run", "task.options=[right, wrong]", "task.answer=right", "--dry-run")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("kind", METRICS)
def test_init(kind: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it prints, with the data filled in, is the recipe that the bare name stands for."""
    from aurora_lora.lab.experiments.recipes import load_any

    printed = aurora("init", kind)
    assert printed.exit_code == 0
    Path("mine.yaml").write_text(printed.stdout)
    with pytest.raises(Exception, match=r"mine\.yaml: task\.data: this field must be given"):
        load_any("mine.yaml")
    Path("mine.yaml").write_text(printed.stdout.replace("  data:", "  data: reviews.csv"))
    assert load_any("mine.yaml") == load_any(kind, ["task.data=reviews.csv"])


def test_a_correlation_needs_two_examples(here: Path) -> None:
    rows = [f"{' '.join(tiny.PLAIN[i % 3 :][:4])} {i},{i / 7:.2f}" for i in range(10)]
    (here / "ten.csv").write_text("\n".join(["text,label", *rows]))
    done = aurora("train", "regression", "model=bert", "task.data=ten.csv", *SETTINGS, "-o", "run")
    assert done.exit_code == 0, done.output
    assert "examples: 6 train, 2 validation, 2 test" in done.stderr
    done = train("regression", "one", "task.validation_size=1")
    assert done.exit_code == 2
    least = "example(s), and regression is scored on 2 or more"
    assert f"ratings.jsonl: the validation split has 1 {least}" in done.stderr
