"""A finished run scored on new examples: as if they had been its test data."""

import json
import shutil
from pathlib import Path

import chats
import own_files
import pytest
from own_runs import METRICS, aurora, train

from aurora_lora.errors import UserError
from aurora_lora.train import load_recipe, load_run, recipe_files
from aurora_lora.train.measuring import evaluate_file
from aurora_lora.train.run import train as train_recipe


def _contents(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def _cut(kind: str) -> tuple[str, list[Path]]:
    """Take ten examples from the data of a kind into data of their own; gives its name, and the data's paths."""
    data = Path(own_files.OVERRIDES[kind][0].removeprefix("task.data="))
    new = Path(f"new{data.suffix}")
    if data.is_dir():
        for path in sorted(data.rglob("*.png"))[::5]:
            (new / path.parent.name).mkdir(parents=True, exist_ok=True)
            path.rename(new / path.parent.name / path.name)
    else:
        lines = data.read_text().splitlines(keepends=True)
        head = lines[:1] if data.suffix in (".csv", ".tsv") else []
        rows = lines[len(head) :]
        new.write_text("".join([*head, *rows[:10]]))
        data.write_text("".join([*head, *rows[10:]]))
    return str(new), [data, new]


@pytest.mark.slow
@pytest.mark.parametrize("kind", METRICS)
def test_as_the_test_data_of_the_run(kind: str, here: Path) -> None:
    """The same scores, whether or not the run's own data are there; and nothing is written."""
    new, (data, _) = _cut(kind)
    done = train(kind, "run", f"task.test_data={new}")
    assert done.exit_code == 0, done.output
    expected = json.loads(Path("run/result.json").read_text())["metric"]["by_form"]
    moved = shutil.move(new, f"other{Path(new).suffix}")
    before = _contents("run")
    done = aurora("evaluate", "run", "--data", moved, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["data"], found["rows"], found["examples"]) == (moved, 10, 10)
    for form, scores in expected.items():
        assert found["by_form"][form] == pytest.approx(scores, rel=1e-6, abs=1e-6)
    assert json.loads(aurora("evaluate", "run", "--data", data, "--form", "static", "--json").stdout)["rows"] == 40
    assert _contents("run") == before


def test_conversations(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    model = chats.save_model(tmp_path / "model")
    for name, seed in (("chats", 0), ("new", 1)):
        rows = [chats.row(turns, "messages") for turns in chats.conversations(40, seed)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    new = str(tmp_path / "new.jsonl")
    values = chats.recipe(model, tmp_path / "chats.jsonl", test_data=new, packing=True)
    (tmp_path / "recipe.yaml").write_text(recipe_files.dump(values))
    run = load_run(train_recipe(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run").folder)
    scored = evaluate_file(run, new)
    examples = run.result["metric"]["examples"]["test"]
    assert scored.examples == examples == 40
    for form, scores in run.result["metric"]["by_form"].items():
        assert scored.by_form[form] == pytest.approx(scores, rel=1e-6, abs=1e-6)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(chats.row(chats.conversations(1)[0], "prompt")) + "\n")
    with pytest.raises(UserError, match=r"other\.jsonl has conversations as 'prompt', the training data as 'messages'"):
        evaluate_file(run, str(other))


@pytest.fixture
def run(here: Path) -> None:
    assert train("classification", "run", "task.max_length=16").exit_code == 0


def test_what_is_refused(run: None) -> None:
    Path("label.csv").write_text("review,stars\na film,positive\na plot,awful\n")
    Path("latin.csv").write_bytes("review,stars\na fílm,positive\n".encode("cp1252"))
    for more, message in (
        (
            ("label.csv",),
            "label.csv, line 3: the label 'awful' is none that the run has learned "
            "(its labels: 'negative', 'positive')",
        ),
        (("label.csv", "--split", "test"), "--split goes without --data: all examples of FILE are scored"),
    ):
        done = aurora("evaluate", "run", "--data", *more)
        assert (done.exit_code, done.stderr.splitlines()[-1]) == (2, message)
    assert "--encoding" in aurora("evaluate", "run", "--data", "latin.csv").stderr
    assert aurora("evaluate", "run", "--data", "latin.csv", "--encoding", "cp1252").exit_code == 0
    done = aurora("evaluate", "run", "--encoding", "cp1252")
    assert (done.exit_code, done.stderr) == (2, "--encoding goes with --data FILE\n")
