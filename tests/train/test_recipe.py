"""Recipes: defaults, overrides, and one clear line for each mistake."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from aurora_lora.errors import UserError
from aurora_lora.train import Recipe, load_recipe, recipe_files
from aurora_lora.train.recipe_files import parse, recipes_folder

WriteRecipe = Callable[..., Path]
Refused = Callable[..., None]


def test_resolved_recipe_reads_back_as_itself(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(reference={"method": "linear-probe", "learning_rate": 1e-2}))
    again = tmp_path / "again.yaml"
    again.write_text(recipe_files.dump(recipe.resolved()))
    assert load_recipe(again) == recipe
    assert recipe.resolved()["method"]["alpha"] == 4
    assert recipe.resolved()["seed"] == 0


def test_a_recipe_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    demo = load_recipe("demo", "seed=3")
    assert (demo.name, demo.seed) == ("demo", 3)
    assert demo == load_recipe(recipes_folder() / "demo.yaml", ["seed=3"])
    assert load_recipe("classification", ["task.data=a.csv"]).task.name == "classification"
    Path("demo").write_text("- no recipe\n")
    assert load_recipe("demo", ["seed=3"]) == demo  # as the commands
    for path in ("./demo", Path("demo")):
        with pytest.raises(UserError, match=r"demo: a recipe is a mapping of fields"):
            load_recipe(path)
    with pytest.raises(UserError, match=r"^'demoo' is no file, and an unknown recipe; did you mean 'demo'"):
        load_recipe("demoo")
    with pytest.raises(UserError, match=r"^'table1/base-lora-rte' is no file, and an unknown recipe"):
        load_recipe("table1/base-lora-rte")


def test_a_recipe_in_python_reads_back_as_itself(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(reference="linear-probe"), ["model.quantization=nf4", "reference=null"])
    values = recipe.model_dump()
    assert list(values) == list(recipe.resolved())
    assert Recipe.model_validate(values) == Recipe(**values) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_the_model_is_a_name_or_a_section(write_recipe: WriteRecipe) -> None:
    plain = load_recipe(write_recipe())
    assert plain.resolved()["model"] == plain.model  # as recipes and results have always had it
    section = load_recipe(write_recipe(), ["model.quantization=nf4", "model.attention=eager"])
    assert section.resolved()["model"] == {"name": plain.model, "quantization": "nf4", "attention": "eager"}
    assert (section.model, section.unquantized.base.quantization) == (plain.model, None)
    assert load_recipe(write_recipe(), [f"model.name={plain.model}"]) == plain


@pytest.mark.parametrize("method", ["pissa"])
def test_a_quantised_base_is_for_adapters(write_recipe: WriteRecipe, method: str) -> None:
    with pytest.raises(UserError, match=f"model.quantization: '{method}' is not allowed: it must be an adapter"):
        load_recipe(write_recipe(method=method), ["model.quantization=int8"])


def test_overrides(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(
        write_recipe(),
        [
            "training.learning_rate=5e-3",
            "training.eval_every=7",
            "method.r=3",
            "method.target_modules=[key]",
            "calibration.examples=8",
            "seed=4",
            "reference.method.name=full",
            "reference.epochs=1",
        ],
    )
    assert recipe.training.learning_rate == 5e-3
    assert recipe.training.eval_every == 7
    assert recipe.method.options["r"] == 3
    assert recipe.method.options["target_modules"] == ["key"]
    assert recipe.seed == 4
    reference = recipe.reference_recipe()
    assert reference is not None
    assert (reference.method.name, reference.training.epochs, reference.reference) == ("full", 1, None)


def test_reference_has_its_own_learning_rate(write_recipe: WriteRecipe) -> None:
    training = {"learning_rate": 1e-3, "head_learning_rate": 2e-3}
    recipe = load_recipe(
        write_recipe(training=training, reference={"method": "linear-probe", "learning_rate": 1e-2})
    ).reference_recipe()
    assert recipe is not None
    assert recipe.training.learning_rate == 1e-2
    assert recipe.training.head_learning_rate is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learnig_rate=1", "training.learnig_rate: unknown field; did you mean 'learning_rate'?"),
        ("method.r=0", "method.r=0 is not allowed: it must be a whole number of 1 to 16384."),
        ("training.learning_rate=.nan", "training.learning_rate: nan is not allowed: it must be"),
        (
            "method.target_modules='('",
            "method.target_modules='(' is not allowed: it must be a valid list or",
        ),
    ],
)
def test_mistakes(write_recipe: WriteRecipe, refused: Refused, override: str, message: str) -> None:
    refused(write_recipe(), message, override)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("training.lr=1", "training.learning_rate"),
        ("learning_rate=1", "training.learning_rate"),
        ("training.seed=1", "seed"),
        ("lora_r=8", "method.r"),
        ("batch=8", "training.batch_size"),
        ("calibration.batch=8", "calibration.batch_size"),
        ("method.rank=8", "r"),
    ],
)
def test_a_field_by_the_name_or_the_place_that_it_has_elsewhere(given: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"unknown (field|option); did you mean '{re.escape(meant)}'\\?$"):
        load_recipe("chat", ["task.data=chats.jsonl", given])


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        (["method.name=lora", "method.r=8"], {"r": 8, "lora_alpha": 8}),
        (["method.r=2", "method.name=lora"], {"r": 2, "lora_alpha": 8}),
        (["method.name=aurora", "method.r=3"], {"r": 3, "alpha": 4}),
    ],
)
def test_another_method_begins_with_its_own_defaults_on_the_same_layers(
    overrides: list[str], options: dict[str, int]
) -> None:
    layers = load_recipe("chat", ["task.data=a.jsonl"]).method.options["target_modules"]
    found = load_recipe("chat", ["task.data=a.jsonl", *overrides]).method
    assert f"method.name={found.name}" in overrides
    assert found.options.items() >= {**options, "target_modules": layers}.items()
    assert load_recipe("chat", ["task.data=a.jsonl", "method.name=linear-probe"]).method.options == {}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "'training.epochs' is not of the form key=value"),
        (
            "method.target_modules.0=key",
            "'method.target_modules.0': target_modules is ['query', 'value'], which has no fields",
        ),
        ("seed=[1", "'seed=[1', line 1: "),
    ],
)
def test_mistaken_overrides(write_recipe: WriteRecipe, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(write_recipe(seed=3), [override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_yaml_is_read_by_its_version_1_2(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(), ["training.epochs=017", "name=on"])
    assert (recipe.training.epochs, recipe.name) == (17, "on")


def test_what_is_left_empty_or_alone(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(), ["training=null", "calibration=null", "training.report_to=tensorboard"])
    assert recipe.training.report_to == ("tensorboard",)
    assert recipe.training.epochs is None
    assert recipe.calibration.examples == 256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nmodel: [b\n", ", line 3: "),
        ("- a\n", ": a recipe is a mapping of fields"),
        ("name: !!python/object:os.system {}\n", ", line 1: could not determine a constructor"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_the_task_fills_in_what_is_not_given(write_recipe: WriteRecipe) -> None:
    sst2 = load_recipe(write_recipe(task="sst2"), ["task.train_size=100"]).resolved()["task"]
    assert (sst2["train_size"], sst2["validation_size"], sst2["test_size"]) == (100, None, None)
    assert (sst2["max_length"], sst2["test_sets"]) == (128, ["validation"])
    film = load_recipe(write_recipe(task={"name": "movie-rating", "test_size": 7})).task
    assert (film.train_size, film.validation_size, film.test_size, film.test_sets) == (None, 1000, 7, ("test",))
    assert load_recipe(write_recipe(task="mnli")).test_sets == ("matched", "mismatched")


def test_flash_attention_goes_with_16_bits(write_recipe: WriteRecipe) -> None:
    wanted = ["model.attention=flash_attention_2", "training.precision=bf16"]
    recipe = load_recipe(write_recipe(), wanted)
    assert recipe.in_precision("fp32").base.attention is None
    with pytest.raises(
        UserError, match=r"model\.attention: 'flash_attention_2' computes in 16 bits alone: set training"
    ):
        load_recipe(write_recipe(), wanted[:1])


def test_characters_as_json_escapes_them() -> None:
    assert parse(json.dumps({"a": "\U0001f600"}), "s") == {"a": "\U0001f600"}
    with pytest.raises(UserError, match="surrogates"):
        parse('"\\ud83d"', "s")
