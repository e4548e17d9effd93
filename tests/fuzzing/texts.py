"""Layers of values and texts: configurations, recipes with their overrides, studies, data files and folders."""

from __future__ import annotations

import json
import shutil
import warnings
from typing import Any

import torch
from datasets import Dataset
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn

from aurora_lora import AuroraConfig
from aurora_lora.data import SplitSizes
from aurora_lora.errors import UserError
from aurora_lora.lab.experiments.recipes import load_any
from aurora_lora.lab.experiments.study import Study, load_study
from aurora_lora.train import recipe_files
from aurora_lora.train.recipe import validate

from . import hostile
from .runner import Layer, SilentError, Verdict
from .world import World

# ---------------------------------------------------------------- configurations

SWITCHES = ("skip", "use_rslora", "calibrated", "fan_in_fan_out", "inference_mode")
CONFIG: dict[str, list[Any]] = (
    {"r": [1, 2, 5, 17], "alpha": [1, 0.5, -2.0, 0], "dropout": [0.0, 0.5], "train_form": ["dynamic", "static"]}
    | {"eval_form": [None, "calibrated", "static", "dynamic"], "init_weights": ["identity", "paper", True, False]}
    | {"fixed_activation": ["tanh", "relu", "sigmoid", "leaky_relu", None], "bias": ["none", "all", "aurora_only"]}
    | {"spline": ["channelwise", "summed", None], "spline_grid_size": [1, 5, 64], "spline_order": [0, 1, 3, 5]}
    | {"spline_range": [(-1, 1), [-2.0, 3.5], (0, 1e-3)], "task_type": ["SEQ_CLS", None]}
    | {"rank_pattern": [{"q": 3}, {r"layers\.0.*": 1}, {}], "alpha_pattern": [{"q": 3.5}, {}]}
    | {"target_parameters": [None, [], ["q.weight"]]}
    | {name: [True, False] for name in SWITCHES}
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.v = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.v(self.q(x))  # type: ignore[no-any-return]


class Small(nn.Module):
    """Embeddings, two blocks and a head: what a configuration is tried on."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"model_type": "small"}
        self.embed, self.layers, self.head = nn.Embedding(5, 6), nn.ModuleList([Block(), Block()]), nn.Linear(6, 2)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        x = self.embed(input_ids)
        for block in self.layers:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


def check_config(given: dict[str, Any]) -> Verdict:
    """A configuration keeps what it was given, comes back from a file as it was, and fits a model or says why not."""
    try:
        config = AuroraConfig(**given)
    except (ValueError, TypeError) as error:
        _one_line(error, is_python="unexpected keyword" in str(error) or "keywords must be strings" in str(error))
        return "refused"
    for name, value in given.items():
        kept = getattr(config, name)
        is_default = name == "init_weights" and value is True
        if name in CONFIG and not is_default and not hostile.same(value, kept):
            raise SilentError(f"{name}={value!r} was taken for {kept!r}")
    stored = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    again = AuroraConfig(**{name: stored[name] for name in CONFIG})
    for name in CONFIG:
        if getattr(again, name) != getattr(config, name):
            raise SilentError(f"{name}={getattr(config, name)!r} is {getattr(again, name)!r} after a file")
    if max([config.r, *config.rank_pattern.values()]) <= 64:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.manual_seed(0)
                model = get_peft_model(Small(), AuroraConfig(**{"target_modules": ["q"], **given}))  # type: ignore[arg-type]
        except (ValueError, IndexError) as error:  # PEFT's own for tokens that are not there
            _one_line(error, is_python=True)
            return "refused"
        if not torch.isfinite(model.eval()(torch.arange(4))).all():
            raise SilentError("the adapted model's output is not finite")
    return "accepted"


def _one_line(error: Exception, *, is_python: bool = False) -> None:
    """What a user reads: one line at least, and none that is empty."""
    lines = str(error).splitlines()
    if not lines or not all(map(str.strip, lines)) or (not is_python and max(map(len, lines)) > 5000):
        raise SilentError(f"an error says nothing: {str(error)!r}")


# ---------------------------------------------------------------- recipes and overrides


@st.composite
def yaml_texts(draw: st.DrawFn) -> str:
    """A text that was YAML before something happened to it."""
    value = draw(hostile.values)
    text = (
        recipe_files.dump(value) if hostile.is_plain_json(value) and draw(st.booleans()) else draw(st.text(max_size=40))
    )
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(hostile.WORDS)) + text[at + draw(st.integers(0, 3)) :]
    return text


METHODS = ("aurora", "aurora-paper", "lora", "dora", "vera", "fourierft", "adalora", "moslora", "milora")
RECIPE: dict[str, list[Any]] = (
    {"name": ["a", "2024-02-30"], "seed": [0, 7], "task": ["tiny-sentiment"], "task.teacher": [None, "run"]}
    | {"task.name": ["tiny-sentiment", "tiny-rating", "tiny-questions", "tiny-images"], "task.split_seed": [0, 3]}
    | {"task.train_size": [8, None], "task.validation_size": [8], "task.test_sets": [["test"], None]}
    | {"task.max_length": [8], "task.augment": ["shift", None], "method.name": list(METHODS)}
    | {"method": ["lora", "full", "linear-probe", {"name": "lora", "r": 2}], "method.layers_to_transform": [0, [0, 1]]}
    | {"method.r": [1, 4], "method.alpha": [4, 0.5], "method.lora_alpha": [4], "method.use_dora": [True]}
    | {"method.target_modules": [["query"], "all-linear", ".*query", None], "method.rank_pattern": [{"query": 2}]}
    | {"method.modules_to_save": [["classifier"]], "method.spline": ["summed", None]}
    | {"training": [{"epochs": 1}], "training.epochs": [1, 3], "training.batch_size": [4]}
    | {"training.learning_rate": [1e-3, 1], "training.weight_decay": [0, 0.1], "training.warmup_ratio": [0.0, 0.5]}
    | {"training.warmup_steps": [0, None], "training.eval_every": ["epoch", 3], "training.precision": ["fp32", "bf16"]}
    | {"training.threads": [1, None], "training.workers": [0], "training.save_updates": [True, False]}
    | {"calibration.examples": [16], "calibration.ridge": [0, 1e-4], "reference.learning_rate": [1e-2]}
    | {"reference": [None, {"method": "linear-probe"}], "reference.method": ["full"]}
)


@st.composite
def overrides(draw: st.DrawFn) -> list[tuple[str, str, Any]]:
    """Fields of a recipe with their texts, and the value of each where JSON, of which YAML is the larger, says it."""
    found = []
    for name, value in draw(hostile.fields(RECIPE)).items():
        if hostile.is_plain_json(value):
            found.append((name, json.dumps(value, ensure_ascii=draw(st.booleans())), ("value", value)))
        else:
            found.append((name, draw(st.one_of(st.sampled_from(hostile.WORDS), yaml_texts())), None))
    return found


def check_recipe(world: World, given: list[tuple[str, str, Any]]) -> Verdict:
    """A recipe that is accepted has the values that were given, and is the same after a file."""
    try:
        recipe = load_any(world.recipe, [f"{name}={text}" for name, text, _ in given])
    except UserError as error:
        _one_line(error)
        return "refused"
    resolved = recipe.resolved()
    for name, _, known in given:
        others = [f"{other}." for other, _, _ in given if other != name]
        if known is None or any(other.startswith(f"{name}.") or f"{name}.".startswith(other) for other in others):
            continue  # one overrides the other
        _kept(resolved, name, known[1])
    stored = recipe_files.parse(recipe_files.dump(resolved), "stored")
    if validate(stored, "stored").resolved() != resolved:
        raise SilentError("the recipe is another after a file")
    return "accepted"


def _kept(resolved: Any, name: str, value: Any) -> None:
    for part in name.split("."):
        if not isinstance(resolved, dict):
            return
        resolved = resolved.get(part)
    if value is None:
        return  # the default
    if isinstance(value, str) and isinstance(resolved, dict):
        value = {"name": value}  # a section by its name
    if isinstance(value, dict) and isinstance(resolved, dict):
        for key, inner in value.items():
            _kept(resolved, key, inner)
    elif not hostile.same(_as_texts(value, resolved), resolved):
        raise SilentError(f"{name}={value!r} was taken for {resolved!r}")


def _as_texts(value: Any, resolved: Any) -> Any:
    """What was given, with what is no text as it was typed where a field takes texts."""
    if isinstance(value, list) and isinstance(resolved, list) and len(value) == len(resolved):
        return [_as_texts(one, kept) for one, kept in zip(value, resolved, strict=True)]
    return json.dumps(value) if isinstance(resolved, str) and isinstance(value, int | float) else value


# ---------------------------------------------------------------- studies

SPACES = (
    {"training.learning_rate": [1e-3, 1e-2]},
    {"training.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}},
    {"training.warmup_ratio": [0.0, 0.1]},
)
STUDY: dict[str, list[Any]] = (
    {"name": ["study"], "base.task": ["tiny-sentiment"], "base.training": [{"epochs": 1}]}
    | {"tuning.budget": [2, 1], "tuning.sampler": ["grid", "random", "tpe"], "tuning.seed": [0]}
    | {"tuning.metric": ["accuracy", "nll", None], "tuning.space": list(SPACES), "seeds": [[0, 1], [3]]}
    | {"tuning.space.training.learning_rate": [[1e-3, 1e-2]]}
    | {"settings": [[{"name": "a", "method": "lora"}, {"name": "b", "method": "full"}]]}
    | {"questions": [[], [{"ask": "a?", "first": "LoRA", "second": "AuroRA"}]]}
)


def check_study(world: World, given: dict[str, Any]) -> Verdict:
    """A study that is accepted is the same after a file, and gives a recipe for each of its settings."""
    values = json.loads(json.dumps(world.study))
    for name, value in given.items():
        *sections, last = name.split(".")
        here = values
        for part in sections[:2]:
            here = here.setdefault(part, {}) if isinstance(here, dict) else {}
        if isinstance(here, dict):
            here[".".join([*sections[2:], last])] = value
    world.study_path.write_text(_text(values), encoding="utf-8", errors="surrogatepass")
    try:
        study = load_study(world.study_path)
    except UserError as error:
        _one_line(error)
        return "refused"
    again = Study.model_validate(json.loads(json.dumps(study.model_dump(mode="json"), allow_nan=False)))
    if again != study:
        raise SilentError("the study is another after a file")
    for name, value in given.items():
        if "." not in name and name in ("name", "seeds") and not hostile.same(value, study.model_dump()[name]):
            raise SilentError(f"{name}={value!r} was taken for {study.model_dump()[name]!r}")
    return "accepted"


def _text(values: Any) -> str:
    try:
        return recipe_files.dump(values)
    except Exception:  # what cannot be written as it is, is written somehow
        return repr(values)


# ---------------------------------------------------------------- data files

GOOD = [{"text": f"film {n}", "label": ("good", "bad")[n % 2]} for n in range(30)]
TEXT, LABEL = (st.sampled_from(meant) | hostile.scalars for meant in (("film 1", "Film  1", "dull"), ("good", "bad")))


@st.composite
def data_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """The ending of a file of labelled texts, and its bytes: some rows, and some places, are not as they should be."""
    ending = draw(st.sampled_from(("csv", "tsv", "jsonl", "json")))
    rows = GOOD + draw(st.lists(st.fixed_dictionaries({"text": TEXT, "label": LABEL}), max_size=3))
    if ending.startswith("json"):
        text = "\n".join(map(json.dumps, rows)) if ending == "jsonl" else json.dumps(rows)
    else:
        cells = [["text", "label"], *([str(row["text"]), str(row["label"])] for row in rows)]
        text = "\n".join(("," if ending == "csv" else "\t").join(row) for row in cells)
    data = text.encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(0, 1))):
        at, cut = (
            draw(st.integers(0, len(data))),
            draw(st.sampled_from((b"", b'"', b"\xff", b"\x00", b"\n,,,", b"\n\n"))),
        )
        data = data[:at] + cut + data[at + draw(st.integers(0, 2)) :]
    return ending, data


def check_data(world: World, ending: str, data: bytes) -> Verdict:
    """A file that is accepted gives texts of which none is in two splits."""
    path = world.folder / f"data.{ending}"
    path.write_bytes(data)
    try:
        recipe = load_any("classification", [f"task.data={path}", f"model={world.model}"])
        splits = recipe.task.definition.load_splits(SplitSizes(None, None, None), 0)
    except UserError as error:
        _one_line(error)
        return "refused"
    texts = [{" ".join(text.casefold().split()) for text in split["text"]} for split in splits.values()]
    if len(set.union(*texts)) != sum(map(len, texts)):
        raise SilentError("a text is in two splits")
    return "accepted"


# ---------------------------------------------------------------- conversations and folders

SAID = st.sampled_from(("hello", "It is 4.", "", " ")) | hostile.scalars
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(("user", "assistant", "system", "client")) | hostile.scalars, "content": SAID},
    optional={"from": SAID, "value": SAID, "tool_calls": hostile.values, "speaker": SAID},
)
TALK = st.lists(MESSAGE, max_size=3) | hostile.values
CHAT = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("messages", "conversations", "dialog"), TALK)
    | dict.fromkeys(("prompt", "completion", "question", "text", "instruction", "output", "system"), SAID | TALK)
    | {"tools": hostile.values, "chat_template_kwargs": hostile.values},
)
GOOD_CHAT = [
    {"messages": [{"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": f"It is {n + 1}."}]}
    for n in range(20)
]
NAMES = (
    *("task.prompt=question", "task.answer=text", "task.messages=dialog", "task.message_keys=[speaker, value]"),
    *("task.roles=[client, assistant]", "task.skip_bad_rows=true"),
)


def check_chat(world: World, rows: list[Any], good: bool, given: list[str]) -> Verdict:
    """Conversations that are accepted have an answer, or are texts."""
    path = world.folder / "chats.jsonl"
    lines = [json.dumps(row, ensure_ascii=True, default=str) for row in [*(GOOD_CHAT if good else ()), *rows]]
    path.write_text("\n".join(lines), encoding="utf-8")
    try:
        recipe = load_any("chat", [f"task.data={path}", f"model={world.model}", *given])
        splits = recipe.task.definition.load_splits(SplitSizes(None, None, None), 0)
    except UserError as error:
        _one_line(error)
        return "refused"
    for row in (row for split in splits.values() for row in split):
        messages = row.get("messages") or row.get("completion")
        answered = [one for one in messages if one["role"] == "assistant"] if isinstance(messages, list) else [row]
        if not answered:
            raise SilentError("a conversation without an answer")
    return "accepted"


FILES = {
    "train.csv": b"text,label\n" + b"".join(b"film %d,%d\n" % (n, n % 2) for n in range(30)),
    "test.csv": b"text,label\na last film,1\nanother,0\n",
    "train.jsonl": b"\n".join(b'{"text": "line %d", "label": "%d"}' % (n, n % 2) for n in range(30)),
    "README.md": b"---\nconfigs:\n- {config_name: a, data_files: train.csv}\n---\n",
    "out.md": b"---\nconfigs:\n- {config_name: a, data_files: ../secret.csv}\n---\n",
    "state.json": b'{"_data_files": [{"filename": "../secret.arrow"}], "_fingerprint": "a", "_format_type": null}',
    "dataset_info.json": b'{"features": {"text": {"dtype": "string", "_type": "Value"}}}',
    "dataset_dict.json": b'{"splits": ["../saved"]}',
    "0.png": b"\x89PNG\r\n\x1a\n",
}
PLACES = ("", "train/", "test/", "data/", "cat/", ".hidden/", "a b/")
FILE = st.tuples(
    st.sampled_from(PLACES),
    st.sampled_from(sorted(FILES)),
    st.sampled_from(("", "", "", "link", "cut", "zeros", "folder")),
)


def check_folder(world: World, files: list[tuple[str, str, str]]) -> Verdict:
    """A folder that is accepted gives no row of the files beside it."""
    folder = world.folder / "own"
    shutil.rmtree(folder, ignore_errors=True)
    data = folder / "data"
    data.mkdir(parents=True)
    secret = "text,label\n" + "".join(f"secret {n},{n % 2}\n" for n in range(30))
    (folder / "secret.csv").write_text(secret, encoding="utf-8")
    Dataset.from_csv(str(folder / "secret.csv")).save_to_disk(folder / "saved")
    shutil.copy(next((folder / "saved").glob("*.arrow")), folder / "secret.arrow")
    for place, name, how in files:
        path, content = data / place / name.replace("out.md", "README.md"), FILES[name]
        if path.exists() or path.is_symlink() or not (path.parent.is_dir() or not path.parent.exists()):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if how == "link":
            path.symlink_to(folder / "secret.csv")
        elif how == "folder":
            path.mkdir()
        else:
            path.write_bytes({"cut": content[: len(content) // 2], "zeros": bytes(len(content))}.get(how, content))
    try:
        recipe = load_any("classification", [f"task.data={data}", f"model={world.model}"])
        splits = recipe.task.definition.load_splits(SplitSizes(None, None, None), 0)
    except UserError as error:
        _one_line(error)
        return "refused"
    if any("secret" in text for split in splits.values() for text in split["text"]):
        raise SilentError("a row from outside the folder")
    return "accepted"


def layers(world: World) -> dict[str, Layer]:
    """The layers of this file."""
    return {
        "configurations": Layer(
            "fields of `AuroraConfig` but for modules and tokens, which PEFT reads itself, of every type and size",
            "keeps what was given, also through a file; the adapted model's output is finite",
            hostile.fields(CONFIG),
            check_config,
            full=6000,
            small=250,
        ),
        "recipes and overrides": Layer(
            "one to three fields of a recipe",
            "has the values given, as JSON has them, also through a file",
            overrides(),
            lambda given: check_recipe(world, given),
            full=8000,
            small=400,
        ),
        "studies": Layer(
            "one to three fields of a study",
            "is the same through a file, with a recipe for each setting",
            hostile.fields(STUDY),
            lambda given: check_study(world, given),
            full=1500,
            small=80,
        ),
        "data files": Layer(
            "CSV and JSON files of labelled texts, to which something happened",
            "gives splits that share no text",
            data_files(),
            lambda given: check_data(world, *given),
            full=1500,
            small=100,
        ),
        "chat data files": Layer(
            "conversations in any format, with other names, roles and values than they should have",
            "has an answer in each conversation",
            st.tuples(st.lists(CHAT, max_size=3), st.booleans(), st.lists(st.sampled_from(NAMES), max_size=3)),
            lambda given: check_chat(world, *given),
            full=600,
            small=20,
        ),
        "data folders": Layer(
            "files, links and folders in a folder of data",
            "gives no row from outside the folder",
            st.lists(FILE, min_size=1, max_size=4),
            lambda given: check_folder(world, given),
            full=600,
            small=20,
        ),
    }
