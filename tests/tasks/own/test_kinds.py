"""The kinds of own data: what each makes of its columns, and its mistakes as one line with the row."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset
from own_rows import ALL, QUESTION, TEXT, labelled, load, save_images, write_rows
from PIL import Image as Pillow
from pyarrow import parquet

from aurora_lora.errors import UserError
from aurora_lora.tasks import vision
from aurora_lora.tasks.own.image_column import image_file
from aurora_lora.tasks.own.kinds import OWN
from aurora_lora.tasks.own.source import OwnData
from aurora_lora.tasks.task import SplitSizes


def test_two_text_columns_and_columns_called_label_and_text() -> None:
    rows = [{"label": f"first {n}", "text": f"second {n}", "stars": n % 2} for n in range(20)]
    splits = load("classification", rows, {"text": ("label", "text"), "label": ("stars",)})
    assert splits["train"].column_names == ["text", "text_b", "label"]
    assert {(row["text"].split()[0], row["text_b"].split()[0]) for row in splits["train"]} == {("first", "second")}


def test_texts_that_differ_in_case_and_punctuation_are_the_same() -> None:
    splits = load("classification", [*labelled(["a", "b"] * 10), {"text": "TEXT 3!", "label": "a"}])
    assert splits.record["repeated"] == 1


DIFFER: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]] = {
    "classification": (
        labelled(["a", "b"] * 10),
        [{"text": "Text 3!", "label": "b"}],
        [{"text": "Text 3!", "label": "a"}],
    ),
    "regression": (labelled([1, 2] * 10), [{"text": "text 3", "label": 2}], [{"text": "text 3", "label": 2.5}]),
    "multi-label": (
        labelled([["a", "b"], ["b"]] * 10),
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
        record = load(kind, [*rows, *more], columns).record
        assert (record["repeated"], record["contradict"]) == (1, count)


def test_the_same_image_in_two_classes_is_counted() -> None:
    save_images(Path("pictures"))
    Path("pictures/blue/again.png").write_bytes(Path("pictures/red/0.png").read_bytes())
    record = load("images", "pictures", {"image": ("image",), "label": ("label",)}).record
    assert (record["repeated"], record["contradict"]) == (1, 1)


def test_each_of_several_labels_stays_in_training() -> None:
    rows = labelled([["rare", "a"]] * 2 + [["a"], ["b"]] * 19)
    for seed in range(10):
        splits = load("multi-label", rows, sizes=SplitSizes(None, 12, 12), seed=seed)
        assert splits.record["untrained"] == 0
        assert 2 in {one for row in splits["train"]["label"] for one in row}


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
    splits = load(
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
        load("choices", "rows.parquet", QUESTION)


def test_a_declared_number_beside_letters_counts_nothing() -> None:
    """Some questions of a data set have options A to D, others 1 to 4: from 0 or from 1, nobody tells."""
    rows = [{"question": f"question {n}?", "options": list("wxyz"), "answer": n % 4} for n in range(20)]
    rows[7]["answer"] = 4
    data = Dataset.from_list(rows).cast_column("answer", ClassLabel(names=[*"ABCD", *"1234"]))
    data.to_parquet("rows.parquet")
    with pytest.raises(UserError, match=r"row 8: the answer '1' is none of the options: .* A to D$"):
        load("choices", "rows.parquet", QUESTION)


def test_the_same_question_with_its_options_in_another_order_is_the_same() -> None:
    rows = [{"question": f"question {n % 10}?", "options": ["a", "b"][:: (-1) ** n], "answer": 0} for n in range(20)]
    assert load("choices", rows, QUESTION).record["repeated"] == 10


def test_images_by_class() -> None:
    save_images(Path("pictures"))
    (Path("pictures") / "red" / "again.png").write_bytes((Path("pictures") / "red" / "0.png").read_bytes())
    splits = load("images", "pictures", {"image": ("image",), "label": ("label",)})
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
        splits = load("images", "pictures", columns, SplitSizes(2, 12, 12), seed)
        assert splits.record["untrained"] == 1
        assert 2 in load("images", "pictures", columns, SplitSizes(None, 12, 12), seed)["train"]["label"]


def test_images_in_folders_of_splits() -> None:
    save_images(Path("pictures/train"))
    save_images(Path("pictures/test"), 6)
    splits = load("images", "pictures", {"image": ("image",), "label": ("label",)})
    assert splits.record["examples"] == {"train": 21, "validation": 3, "test": 6}
    assert splits.record["left_out"] == 6


@pytest.mark.parametrize("folder", ["cat", "."])
def test_images_in_one_folder(folder: str) -> None:
    save_images(Path("all"), 1)
    Path("pictures", folder).mkdir(parents=True)
    Path("all/red/0.png").rename(Path("pictures", folder, "0.png"))
    name = "pictures" if folder == "." else folder
    with pytest.raises(UserError, match=rf"pictures has images in one folder only, '{name}', and each class needs its"):
        load("images", "pictures", {"image": ("image",), "label": ("label",)})


@pytest.mark.parametrize(
    ("folder", "stray"),
    [("", "stray.png"), ("", "red/more/stray.png"), ("train", "train/stray.png"), ("train", "test/stray.png")],
)
def test_an_image_in_no_folder_of_a_class(folder: str, stray: str) -> None:
    save_images(Path("pictures", folder), 6)
    Path("pictures", stray).parent.mkdir(parents=True, exist_ok=True)
    Pillow.new("RGB", (8, 8), (99, 99, 99)).save(Path("pictures", stray))
    for data in ("pictures", str(Path("pictures").absolute())):
        with pytest.raises(
            UserError, match=rf"^pictures/{stray} is not in the folder of a class, as the others are: move"
        ):
            load("images", data, {"image": ("image",), "label": ("label",)})


COLUMNS_OF_IMAGES = {"image": ("image",), "label": ("label",)}


def _table(path: str, folder: str = "img") -> list[str]:
    """A table of images in a folder beside it, by their paths from there; gives the paths."""
    save_images(Path(path).parent / folder)
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
    splits = load("images", "data/labels.csv", COLUMNS_OF_IMAGES)
    assert _shades(splits) == expected
    for path in paths:  # others of the same names, in the working directory
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", (8, 8), (100 + int(Path(path).stem),) * 3).save(path)
    again = load("images", "data/labels.csv", COLUMNS_OF_IMAGES)
    assert _shades(again) == expected
    assert again.record == splits.record
    Path("data/img").rename("data/gone")
    there = _shades(load("images", "data/labels.csv", COLUMNS_OF_IMAGES))
    assert there == {100 + shade: name for shade, name in expected.items()}
    Path(paths[3]).unlink()
    here = Path.cwd() / paths[3]
    with pytest.raises(UserError) as error:
        load("images", "data/labels.csv", COLUMNS_OF_IMAGES)
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
        load("images", "data", COLUMNS_OF_IMAGES)
    expected = _shades(load("images", "data/labels.csv", COLUMNS_OF_IMAGES))
    assert len(expected) == 30
    table.write_text(table.read_text().replace("image,", "file_name,"))
    table.rename("data/metadata.csv")
    assert _shades(load("images", "data", COLUMNS_OF_IMAGES)) == expected


VECTORS = r"task\.label: 'label' has a list of 3 times 0 or 1 in each row, which looks like a vector .*lists of names"
MISTAKES: dict[str, tuple[str, list[dict[str, Any]], str]] = {
    "no text": ("classification", [*labelled(["a", "b"] * 5), {"text": " ", "label": "a"}], r"row 11: 'text' is empty"),
    "no text either": ("classification", [*labelled(["a", "b"] * 5), {"label": "a"}], r"row 11: 'text' is empty"),
    "a number": (
        "classification",
        [{"text": 5, "label": n % 2} for n in range(9)],
        r"row 1: 'text' is 5, which is no text",
    ),
    "no label": ("classification", labelled(["a", "b", None] * 5), r"row 3: it has no label"),
    "fractions": ("classification", labelled([1.5, 2.5] * 5), r"row 1: the label 1\.5 .*is this regression\?"),
    "no number for a class": (
        "classification",
        labelled([1.0, 0.0] * 5 + [float("nan")]),
        r"row 11: its label is nan, which is none$",
    ),
    "one class": (
        "classification",
        labelled(["a"] * 9),
        r"rows\.jsonl has one label only, 'a': there is nothing to tell",
    ),
    "one example": (
        "classification",
        labelled(["a", "b"] * 5 + ["c"]),
        r"rows\.jsonl, row 11: the label 'c' has one example, and training and testing need one each: add examples",
    ),
    "many": (
        "classification",
        labelled(list(range(9))),
        r"row 1: the label '0' has one example \(as have 8 more\).*regr",
    ),
    "no number": ("regression", labelled([1, 2, 3, "four"]), r"row 4: the label 'four' is no number"),
    "no number either": ("regression", labelled([1, 2, 3, "1_000"]), r"row 4: the label '1_000' is no number"),
    "switches": (
        "regression",
        labelled([True, False] * 5),
        r"row 1: the label True is no number: is this classification\?",
    ),
    "one number": (
        "regression",
        labelled([1.5] * 9),
        r"rows\.jsonl has one label only, 1\.5: there is nothing to tell",
    ),
    "one switch": (
        "multi-label",
        labelled([0, "1", True] * 5),
        r"task\.label: 'label' has 0 or 1 in each row: one label is a matter of classification",
    ),
    "vectors": ("multi-label", labelled([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]] * 5), VECTORS),
    "vectors of switches": ("multi-label", labelled([[True, False, True], None, [False, False, False]] * 5), VECTORS),
    "vectors as texts": ("multi-label", labelled(["[0, 1, 1]", "1, 0, 0"] * 5), VECTORS),
    "half a list": (
        "multi-label",
        labelled(["a", "['a', 'b'"] * 5),
        r"row 2: the labels .* look like a list",
    ),
    "two in one": ("multi-label", labelled(["a", "['a', 'b' 'c']"] * 5), r"row 2: the labels .* look like a list"),
    "a database's": ("multi-label", labelled(["a", "{a,b}"] * 5), r"row 2: the labels '{a,b}' look like a list"),
    "nan": ("regression", labelled([1, 2, 3, "nan"]), r"row 4: the label 'nan' is not finite"),
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
        load(kind, rows, QUESTION if kind == "choices" else TEXT)
    assert "\n" not in str(raised.value)


def test_texts_of_a_parquet_file_that_are_no_text() -> None:
    offsets = b"".join(n.to_bytes(4, "little") for n in range(31))
    texts = pa.Array.from_buffers(pa.string(), 30, [None, pa.py_buffer(offsets), pa.py_buffer(b"\xff" * 30)])
    parquet.write_table(pa.table({"text": texts, "label": [0, 1] * 15}), "rows.parquet")
    with pytest.raises(UserError, match=r"rows\.parquet has text that is no UTF-8: .* byte 0xff"):
        load("classification", "rows.parquet")


def test_a_file_that_is_no_image() -> None:
    save_images(Path("pictures"))
    Path("pictures/red/broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"pictures, row \d+: .*broken\.png is no image that can be read"):
        load("images", "pictures", {"image": ("image",), "label": ("label",)})


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_an_image_that_is_cut_off(suffix: str) -> None:
    save_images(Path("pictures"))
    path = Path("pictures/red/broken").with_suffix(suffix)
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    load("images", "pictures", {"image": ("image",), "label": ("label",)})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"pictures, row \d+: .*broken\{suffix} is no image that can be read: .*trunc"):
        load("images", "pictures", {"image": ("image",), "label": ("label",)})


def test_whole_images_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take as long as an epoch."""
    monkeypatch.setattr(vision, "rgb", None)
    for suffix in ("png", "jpeg"):
        file = io.BytesIO()
        Pillow.new("RGB", (8, 8)).save(file, suffix)
        assert image_file(file.getvalue(), "image") == file.getvalue()


def test_an_image_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    save_images(Path("pictures"))
    Pillow.new("1", (30, 30)).save("pictures/red/huge.png")
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"row \d+: .*huge\.png is no image that can be read: .* decompression bomb"):
        load("images", "pictures", {"image": ("image",), "label": ("label",)})


def test_pixels_that_have_other_numbers() -> None:
    save_images(Path("pictures"))
    Pillow.fromarray(np.full((8, 8), 0.5, np.float32)).save("pictures/red/float.tiff")
    with pytest.raises(UserError, match=r"float\.tiff is no image .*numbers \(0\.5 to 0\.5, with decimals\)"):
        load("images", "pictures", {"image": ("image",), "label": ("label",)})


def test_a_table_of_images_without_labels() -> None:
    Path("images.csv").write_text("image\na.png\nb.png\n")
    with pytest.raises(UserError, match=r"task\.label: images\.csv has no column 'label' \(it has 'image'\)"):
        load("images", "images.csv", {"image": ("image",), "label": ("label",)})


@pytest.mark.parametrize("kind", [kind.name for kind in OWN.values() if kind.columns])
def test_a_column_that_is_not_there(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_rows("rows.jsonl", [{"txt": "a", "n": 1}])
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
    splits = load("chat", rows(here, 30), {}, test_data=rows(there, 10))
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
    assert load("chat", rows, {}).record["repeated"] == 0
