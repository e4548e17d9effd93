"""The command line: what it prints where, and its exit codes. Runs in this process, on a tiny model."""

import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent / "train"))

import tiny

from aurora_lora import __version__, cli
from aurora_lora.cli import common
from aurora_lora.errors import ArgumentError
from aurora_lora.train import recipe_files
from aurora_lora.train import run as run_module

Invoke = Callable[..., Any]
LONG = "a" * 300


@pytest.fixture
def aurora() -> Invoke:
    """`aurora("list", "tasks")` gives exit code, stdout and stderr."""
    return lambda *args: CliRunner().invoke(cli.app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny.register()
    folder = tmp_path_factory.mktemp("cli")
    path = folder / "recipe.yaml"
    values = tiny.recipe(tiny.save_model(folder / "model"), reference={"method": "linear-probe"})
    path.write_text(recipe_files.dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run: its folder, and what the command printed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, CliRunner().invoke(cli.app, ["train", str(recipe), "--output", str(folder)])


def test_train_prints_a_table(finished: Any) -> None:
    folder, done = finished
    assert done.exit_code == 0, done.output
    for row in ("trained (dynamic)", "static (the paper's merge)", "calibrated merge, deployed", "linear probe"):
        assert row in done.stdout
    for text in ("accuracy", "log-likelihood", "parameters: adapter 336", "head 34", str(folder / "adapter")):
        assert text in done.stdout
    table = [line for line in done.stdout.splitlines() if not line.startswith("  ")]  # paths are never broken
    assert max(map(len, table)) <= 80
    lines = done.stderr.splitlines()
    assert len(lines) == 6  # three epochs, and three of the linear probe: nothing else
    assert lines[0].startswith("aurora: epoch 1 of 3, validation accuracy ")


def test_train_again_shows_the_result(aurora: Invoke, recipe: Path, finished: Any) -> None:
    folder, done = finished
    again = aurora("train", recipe, "--output", folder)
    assert again.exit_code == 0
    assert again.stdout == done.stdout
    assert "finished: nothing to train" in again.stderr


def test_a_run_that_was_killed_in_its_reference_goes_on_with_that(
    aurora: Invoke, recipe: Path, finished: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    shutil.rmtree(folder / "reference")
    done = aurora("train", recipe, "-o", folder)
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["linear-probe"] * 3


def test_train_json(aurora: Invoke, recipe: Path, finished: Any) -> None:
    folder, _ = finished
    done = aurora("train", recipe, "-o", folder, "--json")
    printed = json.loads(done.stdout)
    assert printed["result"] == json.loads((folder / "result.json").read_text())
    assert printed["reference"]["method"] == "linear-probe"
    assert str(folder / "adapter") in printed["written"]


def test_evaluate(aurora: Invoke, finished: Any) -> None:
    folder, _ = finished
    result = json.loads((folder / "result.json").read_text())
    assert json.loads(aurora("evaluate", folder, "--json").stdout)["by_form"] == result["metric"]["by_form"]
    done = aurora("evaluate", folder, "--form", "static", "--split", "validation")
    assert done.exit_code == 0
    assert "tiny-sentiment: validation" in done.stdout
    assert "static" in done.stdout
    assert "dynamic" not in done.stdout


def test_merge_and_predict(aurora: Invoke, finished: Any, tmp_path: Path) -> None:
    folder, _ = finished
    output = tmp_path / "merged"
    done = aurora("merge", folder, "--form", "calibrated", "--output", output)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"wrote {output}")
    shown = aurora("predict", output, "a warm film", "a dull plot")
    assert shown.exit_code == 0
    assert len(shown.stdout.splitlines()) == 2
    assert "a warm film" in shown.stdout
    answers = json.loads(aurora("predict", output, "a warm film", "--json").stdout)
    assert answers[0]["label"] in ("negative", "positive")
    assert 0.5 <= answers[0]["probability"] <= 1


def test_a_merged_model_has_a_card(aurora: Invoke, finished: Any, tmp_path: Path) -> None:
    for more in ((), ("--dtype", "bfloat16", "--overwrite")):
        assert aurora("merge", str(finished[0]), "--output", str(tmp_path / "merged"), *more).exit_code == 0
        text = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
        assert "library_name: transformers" in text
        assert "base_model:finetune:" in text
        assert "## Scores" in text
        assert ("Its weights are in bfloat16" in text) == bool(more)


def test_brackets_in_texts_and_paths_are_no_markup(aurora: Invoke, recipe: Path, finished: Any, tmp_path: Path) -> None:
    folder = tmp_path / "[red]run[/]"
    shutil.copytree(finished[0], folder)
    again = aurora("train", recipe, "-o", folder)
    assert again.exit_code == 0, again.output
    assert f"{folder} holds this run" in again.stderr
    assert f"  {folder / 'result.json'}\n" in again.stdout
    done = aurora("predict", folder, "great film [/sarcasm] :smile:")
    assert done.exit_code == 0, done.output
    assert "great film [/sarcasm] :smile:" in done.stdout


def test_list(aurora: Invoke) -> None:
    names = {
        "tasks": "movie-sentiment",
        "methods": "aurora",
        "models": "minilm-l6",
        "recipes": "demo",
        "suites": "table1 --scale hub",
        "studies": "movie-sentiment",
    }
    for what, name in names.items():
        rows = json.loads(aurora("list", what, "--json").stdout)
        shown = aurora("list", what, *(["--all"] if what == "recipes" else []))
        assert shown.exit_code == 0
        for row in rows:
            assert {"name", "description"} <= row.keys()
            assert row["name"] in shown.stdout
        assert name in [row["name"] for row in rows]


def test_list_recipes_has_the_ten_that_a_person_starts_from(aurora: Invoke) -> None:
    *rows, _, more = aurora("list", "recipes").stdout.splitlines()
    names = [row.split()[0] for row in rows if not row.endswith(("`", ":"))]
    every = [row["name"] for row in json.loads(aurora("list", "recipes", "--json").stdout)]
    assert len(names) == 10
    assert set(names) <= set(every)
    assert more.startswith(f"{len(every) - 10} more, ")
    assert "`aurora list recipes --all`" in more
    assert max(map(len, (*rows, more))) <= 80


def test_list_one(aurora: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = aurora("list", "recipe", "table1/base-lora-rte")
    assert (printed.exit_code, printed.stderr) == (0, "")
    record = json.loads(aurora("list", "recipe", "table1/base-lora-rte", "--json").stdout)
    assert recipe_files.parse(printed.stdout, "printed") == record["recipe"]
    assert record["command"] == "aurora train table1/base-lora-rte --output runs/hub/table1/base-lora-rte"
    file = Path(__file__).parents[1] / "recipes" / "studies" / "digits.yaml"
    assert aurora("list", "study", "digits").stdout == file.read_text()


def test_gap(aurora: Invoke, finished: Any, tmp_path: Path) -> None:
    folder, _ = finished
    result = json.loads((folder / "result.json").read_text())
    done = aurora("gap", folder, "--output", tmp_path)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    assert {path.name for path in tmp_path.iterdir()} == {"gap.json", "gap.png", "gap.svg"}
    gap = json.loads(aurora("gap", folder, "-o", tmp_path, "--json").stdout)
    for entry in gap["end_to_end"]:  # the very scores of the run
        assert entry["metric"] == pytest.approx(result["metric"]["by_form"][entry["form"]], abs=1e-6)
    few = json.loads(aurora("gap", folder, "-o", tmp_path, "--examples", "7", "--split", "train", "--json").stdout)
    assert few["predictions"] == 7


def test_export(aurora: Invoke, finished: Any, tmp_path: Path) -> None:
    folder, _ = finished
    output = tmp_path / "lora"
    done = aurora("export", folder, "--output", output)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"wrote {output}: a plain LoRA adapter, calibrated form, float32\n"
    held = "classifier.bias too: PEFT loads that, vLLM, llama.cpp and most others do not: `aurora merge` for them"
    assert done.stderr.endswith(f"it holds {held}\n")
    config = json.loads((output / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"]) == ("LORA", "SEQ_CLS")
    again = aurora("export", folder, "--form", "static", "--dtype", "bfloat16", "-o", output)
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)
    assert "--overwrite" in again.stderr
    as_json = aurora("export", folder, "-o", output, "--overwrite", "--form", "static", "--json")
    assert (as_json.exit_code, json.loads(as_json.stdout)["form"]) == (0, "static")


def test_export_over_the_lora_of_the_run(aurora: Invoke, finished: Any, tmp_path: Path) -> None:
    """Its card, which the training wrote, tells of the new form; what others have added there stops it."""
    folder = shutil.copytree(finished[0], tmp_path / "run")
    lora = folder / "lora"
    files, card = sorted(path.name for path in lora.iterdir()), lora / "README.md"
    assert "computes exactly the calibrated form" in card.read_text()
    done = aurora("export", folder, "-o", lora, "--form", "static", "--overwrite")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in lora.iterdir()) == files
    first = card.read_text()
    assert "computes exactly the static form" in first
    assert aurora("export", folder, "-o", lora, "--overwrite").exit_code == 0
    assert card.read_bytes() == (finished[0] / "lora" / "README.md").read_bytes()
    (lora / "notes.txt").write_text("mine")
    refused = aurora("export", folder, "-o", lora, "--overwrite")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "holds notes.txt, which no LoRA export wrote: move it away" in refused.stderr
    (lora / "notes.txt").unlink()
    for text in ("mine", "---\nlicense: mit\n---\nmine", "---\n: [\n---\n", "---\ntags: aurora\n---\n"):
        card.write_text(text)
        refused = aurora("export", folder, "-o", lora, "--overwrite")
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert "holds README.md, which no LoRA export wrote" in refused.stderr
        assert card.read_text() == text


def test_sigma(aurora: Invoke, finished: Any, tmp_path: Path) -> None:
    folder, _ = finished
    done = aurora("sigma", folder, "--examples", "8", "--output", tmp_path / "sigma", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert (record["run"], record["examples"], len(record["layers"])) == (str(folder), 8, 4)
    assert [Path(path).name for path in record.pop("written")] == ["sigma.json", "sigma.png", "sigma.svg"]
    assert json.loads((tmp_path / "sigma" / "sigma.json").read_text()) == record


def test_report_figures_and_page(aurora: Invoke, finished: Any, tmp_path: Path) -> None:
    folder, _ = finished
    done = aurora("report", folder, "--figures", tmp_path / "figures", "--html", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "figures").iterdir()} >= {"scores.svg", "curves.png"}
    assert "no ranks: score against rank needs runs of one method at two ranks at least" in done.stdout
    assert "Learning curves" in (tmp_path / "page.html").read_text()


def test_the_first_screen_has_each_command_on_a_line(aurora: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = aurora("--help").stdout.splitlines()
    assert len(lines) <= 30
    assert [line.strip("╭─╮ ") for line in lines if line.startswith("╭")] == list(cli.GROUPS)
    rows = [line for line in lines if line.startswith("│")]
    assert len(rows) == sum(map(len, cli.GROUPS.values())) <= 16


def test_version_and_help(aurora: Invoke) -> None:
    assert aurora("--version").stdout == f"aurora-lora {__version__}\n"
    for command in ("train", "evaluate", "gap", "merge", "export", "report", "predict", "list"):
        assert command in aurora("--help").stdout
        assert aurora(command, "--help").exit_code == 0


# ---------------------------------------------------------------- mistakes: one line, exit code 2


MISTAKES: list[tuple[list[str], str]] = [
    (["train", "none.yaml", "-o", "run"], "none.yaml cannot be read: No such file or directory"),
    (["train", "RECIPE", "training.epoch=1", "-o", "run"], "unknown field; did you mean 'epochs'?"),
    (["train", "RECIPE", "seed=1", "-o", "RUN"], "they differ in seed (there 0, here 1)"),
    (["train", "RECIPE", "-o", "/proc/run"], "cannot write /proc/run"),
    (["evaluate", "none"], "none is not the folder of a run"),
    (["evaluate", "RUN/adapter"], "it has no recipe.yaml; it holds an adapter: PEFT loads it"),
    (["merge", "RUN/adapter", "-o", "merged"], "--model BASE is the GGUF file or folder to merge it into"),
    (["evaluate", "RUN", "--form", "calibratd"], "--form calibratd is not one of the aurora run in "),
    (["evaluate", "RUN", "--split", "dev"], "split 'dev' is not one of train, validation, test"),
    (["merge", "RUN", "-o", "RUN/adapter"], "already holds something that `aurora merge` did not write"),
    (
        ["merge", "RUN", "--form", "dynamic", "-o", "merged"],
        "is no linear map, and cannot be merged or exported (allowed: 'static', 'calibrated')",
    ),
    (["gap", "RUN", "--split", "dev"], "split 'dev' is not one of train, validation, test"),
    (["gap", "RUN", "--examples", "0"], "examples must be at least 1, got 0"),
    (["gap", "RUN/reference"], "is a run of linear-probe: only adapters of PEFT have a merge to measure"),
    (["export", "RUN/reference", "-o", "lora"], "is a run of linear-probe: only AuroRA runs are exported as LoRA"),
    (["sigma", "RUN/reference"], "is a run of linear-probe: only AuroRA runs have forms to compare"),
    (
        ["export", "RUN", "-o", "lora", "--dtype", "bf16"],
        "--dtype: 'bf16' is not allowed: it must be one of float32, bfloat16, float16\n",
    ),
    (
        ["merge", "RUN", "-o", "merged", "--dtype", "bfloat16", "--quantization", "nf4"],
        "--dtype 'bfloat16' does not go with --quantization: what is not quantised stays in float32\n",
    ),
    (["export", "RUN", "-o", "lora", "--form", "dynamic"], "(allowed: 'static', 'calibrated')"),
    (["export", "RUN", "-o", "RUN/adapter", "--overwrite", "--form", "merged"], "--form merged is not one of"),
    (["report", "none"], "none holds no result.json"),
    (["report", "RUN", "--title", "Runs"], "--title goes with --html FILE.html"),
    (["predict", "none", "text"], "none is neither the folder of a run"),
    (["predict", "RUN", "text", "--column", "said"], "--column, --encoding, --split and --overwrite go with FILE"),
    (["train", "RUN/result.json", "-o", "run"], "result.json: this is the result of a run, not a recipe: recipe."),
    (["predict", "RUN", "a film", " "], "'text 2' is empty"),
    (["predict", "RUN", "caf\udce9"], r"'text 1' is 'caf\udce9', which is no UTF-8"),
    (["list", "task"], "did you mean 'tasks'?"),
    (["list", "recipe"], "`aurora list recipe NAME` prints one; which?"),
    (["list", "recipe", "table1/base-lora-rt"], "did you mean 'table1/base-lora-rte'?"),
    (["list", "study", "digit"], "'digit' is no file, and an unknown study; did you mean 'digits'?"),
    (["list", "recipes", "demo"], "`aurora list recipes` takes no name"),
    (["train", "demoo", "-o", "run"], "'demoo' is no file, and an unknown recipe; did you mean 'demo'?"),
    (["sweep", "demo", "-o", "run"], "'demo' is a recipe, not a study: aurora train demo"),
    (["trian"], "No such command 'trian'."),
    (["train"], "Missing argument 'RECIPE'"),
    (["train", "RECIPE"], "Missing option '--output'"),
    (["train", "RECIPE", "--otput", "run"], "No such option: --otput"),
    (
        ["train", "RECIPE", "method.target_modules=[query,valu]", "-o", "run"],
        "'valu' is an unknown module; did",
    ),
    (["train", "RECIPE", "method.modules_to_save=[nope]", "-o", "run"], "modules_to_save: 'nope' is an unknown"),
    (["train", "RECIPE", "-o", LONG], "File name too long"),
    (["train", LONG, "-o", "run"], "is no file, and an unknown recipe (see `aurora list recipes`)"),
    (["report", "RUN", "--figures", "/proc/figures"], "cannot write /proc/figures"),
    (["report", "RUN", "--html", "/proc/page.html"], "cannot write /proc/page.html"),
]


def test_mistakes(aurora: Invoke, recipe: Path, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for args, message in MISTAKES:
        done = aurora(*(arg.replace("RECIPE", str(recipe)).replace("RUN", str(finished[0])) for arg in args))
        said = (args, done.output)
        assert done.exit_code == 2, said
        assert done.stdout == "", said
        assert len(done.stderr.splitlines()) == 1, said
        assert message in done.stderr, said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_an_output_that_is_full() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "aurora_lora.cli", "list", "tasks"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("No space left on device")
    assert "Traceback" not in done.stderr


def test_adapter_that_is_damaged(aurora: Invoke, finished: Any, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished[0], copy)
    weights = copy / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    done = aurora("predict", copy, "text")
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr == f"{weights} is damaged: it is not what the run wrote\n"


def test_ctrl_c(aurora: Invoke, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "train", interrupt)
    done = aurora("train", recipe, "-o", tmp_path / "run")
    assert done.exit_code == 130
    assert done.stderr == "interrupted: the same command resumes where it was\n"


def test_arguments_are_called_as_the_options_are(
    aurora: Invoke, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ArgumentError("`inference_steps`: 0 is not allowed; `of_layer` too, but not `aurora gap`")

    monkeypatch.setattr(run_module, "train", refuse)
    done = aurora("train", recipe, "-o", tmp_path / "run")
    assert (done.exit_code, done.stderr) == (
        2,
        "--steps: 0 is not allowed; --of-layer too, but not `aurora gap`\n",
    )


def test_missing_extra(aurora: Invoke, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'datasets'", name="datasets")

    monkeypatch.setattr(run_module, "train", missing)
    done = aurora("train", recipe, "-o", tmp_path / "run")
    assert done.exit_code == 2
    assert done.stderr == "the Python package 'datasets' is missing: pip install 'aurora-lora[train]' installs it\n"


def test_other_processes_print_nothing(aurora: Invoke, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.state.is_initialized", lambda: False)  # not joined yet
    monkeypatch.setenv("RANK", "1")
    done = aurora("train", "none.yaml", "-o", "run")
    assert done.exit_code == 2
    assert done.output == ""


def test_leaves_the_distributed_run() -> None:
    """Its threads are not left to the end of the process, which they could abort; the wrapper with more goes first."""
    left: list[Any] = []

    def command() -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        model = DistributedDataParallel(torch.nn.Linear(2, 2))
        model.itself = model  # as a trainer and its callbacks have each other
        weakref.finalize(model, lambda: left.append(dist.is_initialized()))

    common.plain_errors(command)()
    assert not dist.is_initialized()
    assert left == [True]
