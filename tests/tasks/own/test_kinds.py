"""The kinds of own data: what each makes of its columns, and its mistakes as one line with the row."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, LargeList, List, Value
from PIL import Image as Pillow
from pyarrow import parquet

from aurora_lora.errors import UserError
from aurora_lora.tasks import vision
from aurora_lora.tasks.own.image_column import image_file
from aurora_lora.tasks.own.kinds import OWN
from aurora_lora.tasks.own.source import OwnData
from aurora_lora.tasks.task import SplitSizes

ALL = SplitSizes(None, None, None)
TEXT = {"text": ("text",), "label": ("label",)}
QUESTION = {"question": ("question",), "options": ("options",), "answer": ("answer",)}


def _write(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def _load(
    kind: str,
    rows: list[dict[str, Any]] | str,
    columns: Any = TEXT,
    sizes: SplitSizes = ALL,
    seed: int = 0,
    **more: Any,
) -> Any:
    data = rows if isinstance(rows, str) else _write("rows.jsonl", rows)
    source = {
        name: _write(f"{name}.jsonl", more.pop(name)) for name in ("validation_data", "test_data") if name in more
    }
    return OWN[kind].load(OwnData(data, **source), columns, sizes, seed, **more)


def _rows(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text {n}", "label": label} for n, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["bad", "good", " fine "], ["bad", "fine", "good"]),
        ([2, 10, 1], ["1", "2", "10"]),
        (["2", "10", "-1"], ["-1", "2", "10"]),
        ([True, False], ["False", "True"]),
        ([1.0, 2.0], ["1", "2"]),
    ],
)
def test_classes(labels: list[Any], names: list[str]) -> None:
    splits = _load("classification", _rows(labels * 10))
    assert splits["train"].features["label"].names == names
    for split in splits.values():
        for row in split:
            n = int(row["text"].split()[1])
            assert names[row["label"]] == str(labels[n % len(labels)]).strip().removesuffix(".0")


def test_how_many_rows_have_each_class() -> None:
    rows = _rows(["good", "bad", "bad", "godo", "godo"] * 4)
    splits = _load("classification", rows, test_data=[{"text": "another", "label": "good"}])
    assert splits.record["classes"] == {"bad": 8, "godo": 8, "good": 5}
    assert list(splits.record["classes"]) == splits["train"].features["label"].names
    assert _load("multi-label", _rows([["a", "b"], [], ["b"]] * 5)).record["classes"] == {"a": 5, "b": 10}
    assert "classes" not in _load("regression", _rows([1, 2, 3] * 5)).record


def test_classes_that_the_data_declares_keep_their_order() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["zero", "one ", "never"])})
    Dataset.from_list(_rows([0, 1] * 10), features=features).to_parquet("rows.parquet")
    splits = _load("classification", "rows.parquet")
    assert splits["train"].features["label"].names == ["zero", "one", "never"]
    assert splits.record["classes"] == {"zero": 10, "one": 10, "never": 0}
    assert all(row["label"] == int(row["text"].split()[1]) % 2 for row in splits["train"])
    Dataset.from_list(_rows([0, 1] * 10 + [-1]), features=features).to_parquet("rows.parquet")
    with pytest.raises(UserError, match=r"rows\.parquet, row 21: it has no label"):
        _load("classification", "rows.parquet")


@pytest.mark.parametrize("label", [List, LargeList, lambda one: one], ids=["list", "large list", "one"])
def test_several_labels_that_the_data_declares(label: Callable[[Any], Any]) -> None:
    several = not isinstance(label(None), type(None))
    given: list[Any] = [[1, 0], [], [1]] if several else [1, 0, 1]
    features = Features({"text": Value("string"), "label": label(ClassLabel(names=["urgent", "billing", "never"]))})
    Dataset.from_list(_rows(given * 10), features=features).to_parquet("rows.parquet")
    splits = _load("multi-label", "rows.parquet")
    assert splits["train"].features["label"].feature.names == ["urgent", "billing", "never"]
    for row in splits["train"]:
        expected = given[int(row["text"].split()[1]) % 3]
        assert row["label"] == (expected if several else [expected])


def test_vectors_in_a_parquet_file() -> None:
    Dataset.from_list(_rows([[0, 1], [1, 0]] * 10)).to_parquet("rows.parquet")
    with pytest.raises(UserError, match=r"'label' has a list of 2 times 0 or 1 in each row, which looks like a vector"):
        _load("multi-label", "rows.parquet")


@pytest.mark.parametrize("labels", [[[0], [1]], [[0, 1], [1]], [[0, 1], [2, 1]]], ids=str)
def test_labels_that_are_numbers_are_no_vectors(labels: list[list[int]]) -> None:
    names = sorted({str(one) for some in labels for one in some})
    assert list(_load("multi-label", _rows(labels * 10)).record["classes"]) == names


def test_two_text_columns_and_columns_called_label_and_text() -> None:
    rows = [{"label": f"first {n}", "text": f"second {n}", "stars": n % 2} for n in range(20)]
    splits = _load("classification", rows, {"text": ("label", "text"), "label": ("stars",)})
    assert splits["train"].column_names == ["text", "text_b", "label"]
    assert {(row["text"].split()[0], row["text_b"].split()[0]) for row in splits["train"]} == {("first", "second")}


def test_texts_that_differ_in_case_and_punctuation_are_the_same() -> None:
    splits = _load("classification", [*_rows(["a", "b"] * 10), {"text": "TEXT 3!", "label": "a"}])
    assert splits.record["repeated"] == 1


DIFFER: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]] = {
    "classification": (
        _rows(["a", "b"] * 10),
        [{"text": "Text 3!", "label": "b"}],
        [{"text": "Text 3!", "label": "a"}],
    ),
    "regression": (_rows([1, 2] * 10), [{"text": "text 3", "label": 2}], [{"text": "text 3", "label": 2.5}]),
    "multi-label": (
        _rows([["a", "b"], ["b"]] * 10),
        [{"text": "text 2", "label": ["b", "a"]}],
        [{"text": "text 2", "label": ["a"]}],
    ),
    "choices": (
        [{"question": f"{n}", "options": ["yes", "no"], "answer": n % 2} for n in range(20)],
        [{"question": "3", "options": ["No", "yes"], "answer": "No"}],
        [{"question": "3", "options": ["No", "yes"], "answer": "B"}],
    ),
}


@pytest.mark.parametrize("kind", DIFFER)
def test_the_same_example_with_another_label_is_counted(kind: str) -> None:
    rows, same, other = DIFFER[kind]
    columns = QUESTION if kind == "choices" else TEXT
    for more, count in ((same, 0), (other, 1)):
        record = _load(kind, [*rows, *more], columns).record
        assert (record["repeated"], record["contradict"]) == (1, count)


def test_the_same_image_in_two_classes_is_counted() -> None:
    _images(Path("pictures"))
    Path("pictures/blue/again.png").write_bytes(Path("pictures/red/0.png").read_bytes())
    record = _load("images", "pictures", {"image": ("image",), "label": ("label",)}).record
    assert (record["repeated"], record["contradict"]) == (1, 1)


def test_numbers() -> None:
    splits = _load("regression", _rows([0, "1.5", -2, "1e2"] * 5))
    expected = [0, 1.5, -2, 100]
    assert all(row["label"] == expected[int(row["text"].split()[1]) % 4] for row in splits["train"])


@pytest.mark.parametrize(
    ("labels", "columns"),
    [
        ([["a", "b"], [], ["c"]], None),
        (["a, b", "", "c"], None),
        (["b;a", None, "c"], None),
        (['["a", "b"]', "[]", '["c"]'], None),
        (["['a', 'b']", "[]", "['c']"], None),  # as pandas writes them
        (["['b' 'a']", "[]", "['c']"], None),  # and those of NumPy
        (["['a'\n 'b']", "()", "('c',)"], None),
        (["{'b', 'a'}", "set()", "{'c'}"], None),
        ([(1, 1, 0), (0, 0, 0), (0, 0, 1)], ("a", "b", "c")),
        ([("true", "Yes", "no"), (False, False, False), ("0", "0", "1.0")], ("a", "b", "c")),
    ],
)
def test_several_labels(labels: list[Any], columns: tuple[str, ...] | None) -> None:
    rows = [{"text": f"text {n}"} for n in range(15)]
    for n, row in enumerate(rows):
        row |= {"label": labels[n % 3]} if columns is None else dict(zip(columns, map(str, labels[n % 3]), strict=True))
    splits = _load("multi-label", rows, {"text": ("text",), "label": columns or ("label",)})
    assert splits["train"].features["label"].feature.names == ["a", "b", "c"]
    for row in splits["train"]:
        assert set(row["label"]) == ({0, 1}, set(), {2})[int(row["text"].split()[1]) % 3]


def test_each_of_several_labels_stays_in_training() -> None:
    rows = _rows([["rare", "a"]] * 2 + [["a"], ["b"]] * 19)
    for seed in range(10):
        splits = _load("multi-label", rows, sizes=SplitSizes(None, 12, 12), seed=seed)
        assert splits.record["untrained"] == 0
        assert 2 in {one for row in splits["train"]["label"] for one in row}


CHOICES: dict[str, tuple[dict[str, Any], Any]] = {
    "text": ({"options": ["warm", "cold"], "answer": "cold"}, QUESTION),
    "letter": ({"options": ["warm", "cold"], "answer": "B"}, QUESTION),
    "number": ({"options": ["warm", "cold"], "answer": 1}, QUESTION),
    "as JSON": ({"options": '["warm", "cold"]', "answer": "1"}, QUESTION),
    "as on the hub": ({"options": {"text": ["warm", "cold"], "label": ["1", "2"]}, "answer": "2"}, QUESTION),
    "what the data call it behind a blank one": (
        {"options": {"text": ["warm", None, "cold"], "label": ["p", "q", "r"]}, "answer": "r"},
        QUESTION,
    ),
    "columns": ({"x": "warm", "y": "cold", "answer": "y"}, {**QUESTION, "options": ("x", "y")}),
    "a column that is empty": (
        {"x": "warm", "y": "cold", "z": None, "answer": "B"},
        {**QUESTION, "options": ("x", "y", "z")},
    ),
    "the letter behind an empty column": (
        {"w": "warm", "x": None, "y": "cold", "answer": "C"},
        {**QUESTION, "options": ("w", "x", "y")},
    ),
    "the number behind an empty column": (
        {"w": "warm", "x": None, "y": "cold", "answer": 2},
        {**QUESTION, "options": ("w", "x", "y")},
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_choices(case: str) -> None:
    row, columns = CHOICES[case]
    rows = [{"question": f"question {n}?", **row} for n in range(20)]
    example = _load("choices", rows, columns)["test"][0]
    assert example["prompt"].startswith("Question: question ")
    assert example["prompt"].endswith("?\nAnswer:")
    assert (example["choices"], example["label"]) == ([" warm", " cold"], 1)
    numbered = _load("choices", rows, columns, form="instruction")["test"][0]
    assert numbered["choices"] == ["the correct answer is answer1", "the correct answer is answer2"]
    assert "Answer1: warm Answer2: cold" in numbered["prompt"]


@pytest.mark.parametrize(
    ("options", "answer", "right"),
    [
        (["8", "2", "24"], 2, "24"),
        (["8", "2", "24"], "2", "2"),
        ([8, 2, 24], 2, "2"),
        ([8.0, 2.0, 2.5], 2, "2"),
        ('["8", "2", "24"]', 2, "24"),
        ("[8, 2, 24]", 2, "2"),
        ({"text": [8, 2, 24]}, 2, "2"),
    ],
)
def test_a_whole_number_counts_options_unless_they_are_numbers(options: Any, answer: Any, right: str) -> None:
    rows = [{"question": f"question {n}?", "options": options, "answer": answer} for n in range(20)]
    example = _load("choices", rows, QUESTION)["test"][0]
    assert example["choices"][example["label"]].strip() == right


@pytest.mark.parametrize(
    ("names", "options", "right"),
    [
        (["no", "yes"], ["yes", "no"], ["no", "yes"]),
        (["y", "x"], ["yes", "no"], ["no", "yes"]),  # columns; of a list, letters
        (["0", "1"], ["yes", "no"], ["yes", "no"]),
        (["1", "0"], ["yes", "no"], ["no", "yes"]),
        (["8", "2"], ["2", "8"], ["8", "2"]),
        (["0", "1"], ["1", "0"], ["1", "0"]),  # as any whole number, it counts options
        (["1", "2"], ["yes", "no"], ["yes", "no"]),  # from 1
        (["first", "second"], ["yes", "no"], ["yes", "no"]),
        (["1", "2", "3"], ["yes", "no", "maybe"], ["yes", "no"]),  # from 1, and 3 is never right
    ],
)
@pytest.mark.parametrize("listed", [True, False], ids=["list", "columns"])
def test_an_answer_that_the_data_declares_is_its_name(
    listed: bool, names: list[str], options: list[str], right: list[str]
) -> None:
    if listed and names == ["y", "x"]:
        names = ["B", "A"]
    given = {"options": options} if listed else dict(zip("xyz", options, strict=False))
    rows = [{"question": f"question {n}?", **given, "answer": n % 3 // 2} for n in range(20)]
    Dataset.from_list(rows).cast_column("answer", ClassLabel(names=names)).to_parquet("rows.parquet")
    splits = _load(
        "choices", "rows.parquet", {**QUESTION, "options": ("options",) if listed else tuple("xyz"[: len(options)])}
    )
    for row in (row for split in splits.values() for row in split):
        assert row["choices"][row["label"]].strip() == right[int(row["prompt"].split()[2].rstrip("?")) % 3 // 2]


def test_a_declared_answer_that_one_row_does_not_offer() -> None:
    """The place of its class would be another option."""
    rows = [{"question": f"question {n}?", "options": ["yes", "no"], "answer": 1 + n % 2} for n in range(20)]
    rows[7]["answer"] = 0
    data = Dataset.from_list(rows).cast_column("answer", ClassLabel(names=["maybe", "no", "yes"]))
    data.to_parquet("rows.parquet")
    with pytest.raises(UserError, match="row 8: the answer 'maybe' is none of the options"):
        _load("choices", "rows.parquet", QUESTION)


def test_a_declared_number_beside_letters_counts_nothing() -> None:
    """Some questions of a data set have options A to D, others 1 to 4: from 0 or from 1, nobody tells."""
    rows = [{"question": f"question {n}?", "options": list("wxyz"), "answer": n % 4} for n in range(20)]
    rows[7]["answer"] = 4
    data = Dataset.from_list(rows).cast_column("answer", ClassLabel(names=[*"ABCD", *"1234"]))
    data.to_parquet("rows.parquet")
    with pytest.raises(UserError, match=r"row 8: the answer '1' is none of the options: .* A to D$"):
        _load("choices", "rows.parquet", QUESTION)


def test_options_that_are_dates() -> None:
    rows = [
        {"question": f"when {n}?", "options": ["1999-01-01", "2001-05-05"], "answer": "2001-05-05"} for n in range(9)
    ]
    splits = _load("choices", rows, QUESTION)
    assert all((row["choices"], row["label"]) == ([" 1999-01-01", " 2001-05-05"], 1) for row in splits["train"])


def test_numbers_that_one_row_makes_decimals() -> None:
    """The column is then one of floats: the options and the answer are written as they were."""
    rows = [{"question": f"question {n}?", "options": [1, 2, 3, 4], "answer": 2} for n in range(20)]
    rows.append({"question": "and this?", "options": [0.5, 1.5], "answer": 1.5})
    seen = [row for split in _load("choices", rows, QUESTION).values() for row in split]
    right = {tuple(row["choices"]): row["choices"][row["label"]] for row in seen}
    assert right == {(" 1", " 2", " 3", " 4"): " 2", (" 0.5", " 1.5"): " 1.5"}
    rows[0]["answer"] = 7  # no place either
    with pytest.raises(UserError, match=r"row 1: the answer '7' is none of the options: .* one of them, A to D$"):
        _load("choices", rows, QUESTION)


def test_the_same_question_with_its_options_in_another_order_is_the_same() -> None:
    rows = [{"question": f"question {n % 10}?", "options": ["a", "b"][:: (-1) ** n], "answer": 0} for n in range(20)]
    assert _load("choices", rows, QUESTION).record["repeated"] == 10


def _images(folder: Path, count: int = 30) -> None:
    for n in range(count):
        path = folder / ("red", "green", "blue")[n % 3] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(np.full((8, 8, 3), n, np.uint8)).save(path)


def test_images_by_class() -> None:
    _images(Path("pictures"))
    (Path("pictures") / "red" / "again.png").write_bytes((Path("pictures") / "red" / "0.png").read_bytes())
    splits = _load("images", "pictures", {"image": ("image",), "label": ("label",)})
    assert splits.record["examples"] == {"train": 23, "validation": 4, "test": 4}
    assert splits.record["repeated"] == 1
    assert splits["train"].features["label"].names == ["blue", "green", "red"]
    assert all({0: 2, 1: 1, 2: 0}[np.asarray(row["image"])[0, 0, 0] % 3] == row["label"] for row in splits["train"])


def test_each_class_of_images_stays_in_training() -> None:
    for n in range(40):
        path = Path("pictures", "rare" if n < 2 else ("dog", "cat")[n % 2], f"{n}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("L", (4, 4), n).save(path)
    columns = {"image": ("image",), "label": ("label",)}
    for seed in range(10):
        splits = _load("images", "pictures", columns, SplitSizes(2, 12, 12), seed)
        assert splits.record["untrained"] == 1
        assert 2 in _load("images", "pictures", columns, SplitSizes(None, 12, 12), seed)["train"]["label"]


def test_images_in_folders_of_splits() -> None:
    _images(Path("pictures/train"))
    _images(Path("pictures/test"), 6)
    splits = _load("images", "pictures", {"image": ("image",), "label": ("label",)})
    assert splits.record["examples"] == {"train": 21, "validation": 3, "test": 6}
    assert splits.record["left_out"] == 6


@pytest.mark.parametrize("folder", ["cat", "."])
def test_images_in_one_folder(folder: str) -> None:
    _images(Path("all"), 1)
    Path("pictures", folder).mkdir(parents=True)
    Path("all/red/0.png").rename(Path("pictures", folder, "0.png"))
    name = "pictures" if folder == "." else folder
    with pytest.raises(UserError, match=rf"pictures has images in one folder only, '{name}', and each class needs its"):
        _load("images", "pictures", {"image": ("image",), "label": ("label",)})


@pytest.mark.parametrize(
    ("folder", "stray"),
    [("", "stray.png"), ("", "red/more/stray.png"), ("train", "train/stray.png"), ("train", "test/stray.png")],
)
def test_an_image_in_no_folder_of_a_class(folder: str, stray: str) -> None:
    _images(Path("pictures", folder), 6)
    Path("pictures", stray).parent.mkdir(parents=True, exist_ok=True)
    Pillow.new("RGB", (8, 8), (99, 99, 99)).save(Path("pictures", stray))
    for data in ("pictures", str(Path("pictures").absolute())):
        with pytest.raises(
            UserError, match=rf"^pictures/{stray} is not in the folder of a class, as the others are: move"
        ):
            _load("images", data, {"image": ("image",), "label": ("label",)})


COLUMNS_OF_IMAGES = {"image": ("image",), "label": ("label",)}


def _table(path: str, folder: str = "img") -> list[str]:
    """A table of images in a folder beside it, by their paths from there; gives the paths."""
    _images(Path(path).parent / folder)
    found = sorted((Path(path).parent / folder).rglob("*.png"))
    paths = [one.relative_to(Path(path).parent).as_posix() for one in found]
    Path(path).write_text("\n".join(["image,label", *(f"{one},{Path(one).parent.name}" for one in paths)]) + "\n")
    return paths


def _shades(splits: Any) -> dict[int, str]:
    names = splits["train"].features["label"].names
    return {int(np.asarray(row["image"])[0, 0, 0]): names[row["label"]] for split in splits.values() for row in split}


def test_paths_in_a_table_are_looked_for_beside_it_first() -> None:
    paths = _table("data/labels.csv")
    expected = {int(Path(path).stem): Path(path).parent.name for path in paths}
    splits = _load("images", "data/labels.csv", COLUMNS_OF_IMAGES)
    assert _shades(splits) == expected
    for path in paths:  # others of the same names, in the working directory
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", (8, 8), (100 + int(Path(path).stem),) * 3).save(path)
    again = _load("images", "data/labels.csv", COLUMNS_OF_IMAGES)
    assert _shades(again) == expected
    assert again.record == splits.record
    Path("data/img").rename("data/gone")
    there = _shades(_load("images", "data/labels.csv", COLUMNS_OF_IMAGES))
    assert there == {100 + shade: name for shade, name in expected.items()}
    Path(paths[3]).unlink()
    here = Path.cwd() / paths[3]
    with pytest.raises(UserError) as error:
        _load("images", "data/labels.csv", COLUMNS_OF_IMAGES)
    assert str(error.value) == (
        f"data/labels.csv, row 4: {paths[3]} is no file: neither data/{paths[3]} nor, in the working directory, {here}"
    )


def test_images_whose_labels_are_in_a_table_beside_them() -> None:
    paths = _table("data/labels.csv", folder="images")
    for path in paths:
        Path("data", path).rename(Path("data/images", Path(path).name))
    table = Path("data/labels.csv")
    for colour in ("red", "green", "blue"):
        table.write_text(table.read_text().replace(f"images/{colour}/", "images/"))
        Path("data/images", colour).rmdir()
    with pytest.raises(
        UserError, match=r"nothing to tell apart; .* task\.data=data/labels\.csv, .* data/metadata\.csv"
    ):
        _load("images", "data", COLUMNS_OF_IMAGES)
    expected = _shades(_load("images", "data/labels.csv", COLUMNS_OF_IMAGES))
    assert len(expected) == 30
    table.write_text(table.read_text().replace("image,", "file_name,"))
    table.rename("data/metadata.csv")
    assert _shades(_load("images", "data", COLUMNS_OF_IMAGES)) == expected


VECTORS = r"task\.label: 'label' has a list of 3 times 0 or 1 in each row, which looks like a vector .*lists of names"
MISTAKES: dict[str, tuple[str, list[dict[str, Any]], str]] = {
    "no text": ("classification", [*_rows(["a", "b"] * 5), {"text": " ", "label": "a"}], r"row 11: 'text' is empty"),
    "no text either": ("classification", [*_rows(["a", "b"] * 5), {"label": "a"}], r"row 11: 'text' is empty"),
    "a number": (
        "classification",
        [{"text": 5, "label": n % 2} for n in range(9)],
        r"row 1: 'text' is 5, which is no text",
    ),
    "no label": ("classification", _rows(["a", "b", None] * 5), r"row 3: it has no label"),
    "fractions": ("classification", _rows([1.5, 2.5] * 5), r"row 1: the label 1\.5 .*is this regression\?"),
    "no number for a class": (
        "classification",
        _rows([1.0, 0.0] * 5 + [float("nan")]),
        r"row 11: its label is nan, which is none$",
    ),
    "one class": ("classification", _rows(["a"] * 9), r"rows\.jsonl has one label only, 'a': there is nothing to tell"),
    "one example": (
        "classification",
        _rows(["a", "b"] * 5 + ["c"]),
        r"rows\.jsonl, row 11: the label 'c' has one example, and training and testing need one each: add examples",
    ),
    "many": ("classification", _rows(list(range(9))), r"row 1: the label '0' has one example \(as have 8 more\).*regr"),
    "no number": ("regression", _rows([1, 2, 3, "four"]), r"row 4: the label 'four' is no number"),
    "no number either": ("regression", _rows([1, 2, 3, "1_000"]), r"row 4: the label '1_000' is no number"),
    "switches": (
        "regression",
        _rows([True, False] * 5),
        r"row 1: the label True is no number: is this classification\?",
    ),
    "one number": ("regression", _rows([1.5] * 9), r"rows\.jsonl has one label only, 1\.5: there is nothing to tell"),
    "one switch": (
        "multi-label",
        _rows([0, "1", True] * 5),
        r"task\.label: 'label' has 0 or 1 in each row: one label is a matter of classification",
    ),
    "vectors": ("multi-label", _rows([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]] * 5), VECTORS),
    "vectors of switches": ("multi-label", _rows([[True, False, True], None, [False, False, False]] * 5), VECTORS),
    "vectors as texts": ("multi-label", _rows(["[0, 1, 1]", "1, 0, 0"] * 5), VECTORS),
    "half a list": (
        "multi-label",
        _rows(["a", "['a', 'b'"] * 5),
        r"row 2: the labels .* look like a list",
    ),
    "two in one": ("multi-label", _rows(["a", "['a', 'b' 'c']"] * 5), r"row 2: the labels .* look like a list"),
    "a database's": ("multi-label", _rows(["a", "{a,b}"] * 5), r"row 2: the labels '{a,b}' look like a list"),
    "nan": ("regression", _rows([1, 2, 3, "nan"]), r"row 4: the label 'nan' is not finite"),
    "one option": ("choices", [{"question": "q", "options": ["a"], "answer": 0}] * 9, r"row 1: there are 1 options"),
    "a blank option": (
        "choices",
        [{"question": "q", "options": {"text": ["a", None, "b"], "label": ["p", "q", "r"]}, "answer": "q"}] * 9,
        r"row 1: the answer 'q' is none of the options: it must be one of them, A to C",
    ),
    "no list": ("choices", [{"question": "q", "options": "a", "answer": 0}] * 9, r"row 1: the options are no list"),
    "no answer": (
        "choices",
        [{"question": "q", "options": ["yes", "no"], "answer": "2"}] * 9,
        r"row 1: the answer '2' is none of the options: it must be one of them, A to B, or 0 to 1",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str) -> None:
    kind, rows, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as raised:
        _load(kind, rows, QUESTION if kind == "choices" else TEXT)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["classification", "multi-label"])
def test_a_label_of_the_test_file_that_training_has_not(kind: str) -> None:
    with pytest.raises(
        UserError, match=r"test_data\.jsonl, row 3: the label 'c' is in no row of rows\.jsonl \(its labels: 'a', 'b'\)"
    ):
        _load(kind, _rows(["a", "b"] * 9), test_data=_rows(["a", "b", "c"]))
    _load(kind, _rows(["a", "b", "c"] * 9), test_data=[{"text": "new", "label": "c"}])


def test_a_declared_label_that_only_the_test_data_has() -> None:
    _images(Path("pictures/train"))
    _images(Path("pictures/test"), 3)
    Path("pictures/test/red").rename("pictures/test/bird")
    with pytest.raises(
        UserError, match=r"the label 'bird' is in no row of pictures, train \(its labels: 'blue', 'green', 'red'\)"
    ):
        _load("images", "pictures", {"image": ("image",), "label": ("label",)})


def test_texts_of_a_parquet_file_that_are_no_text() -> None:
    offsets = b"".join(n.to_bytes(4, "little") for n in range(31))
    texts = pa.Array.from_buffers(pa.string(), 30, [None, pa.py_buffer(offsets), pa.py_buffer(b"\xff" * 30)])
    parquet.write_table(pa.table({"text": texts, "label": [0, 1] * 15}), "rows.parquet")
    with pytest.raises(UserError, match=r"rows\.parquet has text that is no UTF-8: .* byte 0xff"):
        _load("classification", "rows.parquet")


def test_a_switch_that_is_none() -> None:
    rows = [{"text": f"t {n}", "a": n % 2, "b": n} for n in range(9)]
    with pytest.raises(UserError, match=r"row 3: 'b' is 2, which is neither 0 nor 1"):
        _load("multi-label", rows, {"text": ("text",), "label": ("a", "b")})


def test_a_file_that_is_no_image() -> None:
    _images(Path("pictures"))
    Path("pictures/red/broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"pictures, row \d+: .*broken\.png is no image that can be read"):
        _load("images", "pictures", {"image": ("image",), "label": ("label",)})


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_an_image_that_is_cut_off(suffix: str) -> None:
    _images(Path("pictures"))
    path = Path("pictures/red/broken").with_suffix(suffix)
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    _load("images", "pictures", {"image": ("image",), "label": ("label",)})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"pictures, row \d+: .*broken\{suffix} is no image that can be read: .*trunc"):
        _load("images", "pictures", {"image": ("image",), "label": ("label",)})


def test_whole_images_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take as long as an epoch."""
    monkeypatch.setattr(vision, "rgb", None)
    for suffix in ("png", "jpeg"):
        file = io.BytesIO()
        Pillow.new("RGB", (8, 8)).save(file, suffix)
        assert image_file(file.getvalue(), "image") == file.getvalue()


def test_an_image_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    _images(Path("pictures"))
    Pillow.new("1", (30, 30)).save("pictures/red/huge.png")
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"row \d+: .*huge\.png is no image that can be read: .* decompression bomb"):
        _load("images", "pictures", {"image": ("image",), "label": ("label",)})


def test_pixels_that_have_other_numbers() -> None:
    _images(Path("pictures"))
    Pillow.fromarray(np.full((8, 8), 0.5, np.float32)).save("pictures/red/float.tiff")
    with pytest.raises(UserError, match=r"float\.tiff is no image .*numbers \(0\.5 to 0\.5, with decimals\)"):
        _load("images", "pictures", {"image": ("image",), "label": ("label",)})


def test_a_table_of_images_without_labels() -> None:
    Path("images.csv").write_text("image\na.png\nb.png\n")
    with pytest.raises(UserError, match=r"task\.label: images\.csv has no column 'label' \(it has 'image'\)"):
        _load("images", "images.csv", {"image": ("image",), "label": ("label",)})


@pytest.mark.parametrize("kind", [kind.name for kind in OWN.values() if kind.columns])
def test_a_column_that_is_not_there(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _write("rows.jsonl", [{"txt": "a", "n": 1}])
    columns = OWN[kind].columns
    field = next(iter(columns))
    load: Callable[..., Any] = OWN[kind].load
    with pytest.raises(
        UserError, match=rf"task\.{field}: rows\.jsonl has no column '{columns[field][0]}' \(it has 'txt', 'n'"
    ):
        load(OwnData(data), columns, ALL, 0)


CALL = {"function": {"name": "look", "arguments": {"at": "x", "by": None}}, "type": "function"}
SAID: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fields in another order": (
        {"role": "assistant", "content": "It is {n}."},
        {"content": "It is {n}.", "role": "assistant"},
    ),
    "further fields": (
        {"role": "assistant", "content": "It is {n}."},
        {"role": "assistant", "content": "It is {n}.", "weight": 1, "name": "A", "tool_calls": None},
    ),
    "calls": (
        {"role": "assistant", "content": "It is {n}.", "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [dict(reversed(CALL.items()))], "content": "It is {n}."},
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_the_same_conversation_is_never_in_two_splits(case: str) -> None:
    """However its messages are written."""

    def rows(message: dict[str, Any], count: int) -> list[dict[str, Any]]:
        asked = {"role": "user", "content": "What is the number?"}
        texts = [json.dumps([asked, message]).replace("{n}", f"{n}") for n in range(count)]
        return [{"messages": json.loads(text)} for text in texts]

    here, there = SAID[case]
    splits = _load("chat", rows(here, 30), {}, test_data=rows(there, 10))
    said = {name: {row["messages"][1]["content"] for row in split} for name, split in splits.items()}
    assert len(said["test"]) == 10
    assert not said["test"] & (said["train"] | said["validation"])
    assert splits.record["repeated"] == 10


def test_other_calls_are_another_conversation() -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Look!"},
                {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": f"look{n}"}}]},
            ]
        }
        for n in range(30)
    ]
    assert _load("chat", rows, {}).record["repeated"] == 0
