"""Opening data: what is a file, a folder or a data set of the hub, and which of it is which split."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from own_rows import ALL, QUESTION, TEXT, load
from pyarrow import parquet

from aurora_lora.data.own import source
from aurora_lora.data.own.kinds import OWN
from aurora_lora.data.own.source import OwnData, open_data, open_file, open_test
from aurora_lora.errors import ArgumentError, UserError

ROWS = [{"review": f"film {n}", "stars": str(n % 3)} for n in range(12)]


def _csv(path: Path) -> None:
    Dataset.from_list(ROWS).to_csv(path)


def _cards(folder: Path) -> None:
    (folder / "owner" / "name").mkdir(parents=True)
    for split, rows in (("train", ROWS[:8]), ("dev", ROWS[8:])):
        path = folder / "owner" / "name" / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_field_that_nothing_uses_is_refused(tmp_path: Path) -> None:
    _csv(tmp_path / "rows.csv")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"^task\.config: 'x' goes with a data set of the hub, not with a file"):
        open_data(OwnData("rows.csv", config="x"))
    with pytest.raises(UserError, match=r"^task\.revision: 'x' goes with a data set of the hub, not with a file"):
        open_data(OwnData("rows.csv", test_data="saved", revision="x"))
    with pytest.raises(
        UserError, match="no data set of the hub"
    ):  # where any of them may have a use for it, it is open
        open_data(OwnData("rows.csv", test_data="none", revision="x"))


def test_files_for_the_splits(tmp_path: Path) -> None:
    for name in ("one.csv", "two.csv"):
        _csv(tmp_path / name)
    (tmp_path / "three.jsonl").write_text("\n".join(map(json.dumps, ROWS[:2])), encoding="utf-8")
    pieces = open_data(OwnData("one.csv", validation_data="two.csv", test_data="three.jsonl"))
    assert {name: (piece.name, len(piece.data)) for name, piece in pieces.items()} == {
        "train": ("one.csv", 12),
        "validation": ("two.csv", 12),
        "test": ("three.jsonl", 2),
    }
    assert set(pieces.files) == {"one.csv", "two.csv", "three.jsonl"}


@pytest.mark.parametrize("where", ["folder", "copy of the hub"])
def test_named_splits(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cards(tmp_path / "copies")
    monkeypatch.setenv("AURORA_LORA_DATA", str(tmp_path / "copies"))
    data = "copies/owner/name" if where == "folder" else "owner/name"
    pieces = open_data(OwnData(data))
    assert {name: len(piece.data) for name, piece in pieces.items()} == {"train": 8, "validation": 4}
    assert pieces["validation"].name == f"{data}, validation"
    swapped = open_data(OwnData(data, train_split="validation", validation_split="train"))
    assert {name: len(piece.data) for name, piece in swapped.items()} == {"train": 4, "validation": 8}
    with pytest.raises(UserError, match=r"task\.test_split: .* has no split 'exam' \(it has train, validation\)"):
        open_data(OwnData(data, test_split="exam"))
    with pytest.raises(UserError, match=r"task\.\w+_split: .*, train is another split already"):
        open_data(OwnData(data, test_split="train"))


def test_a_split_found_by_its_name_gives_way_to_one_that_is_asked_for(tmp_path: Path) -> None:
    """As where the test split has no labels: the test takes the validation split, and training gives a new one."""
    for split, count in (("train", 8), ("dev", 3), ("test", 2)):
        Dataset.from_list(ROWS[:count]).to_csv(tmp_path / "data" / f"{split}.csv")

    def sizes(**splits: str) -> dict[str, int]:
        return {name: len(piece.data) for name, piece in open_data(OwnData("data", **splits)).items()}

    assert sizes() == {"train": 8, "validation": 3, "test": 2}
    assert sizes(test_split="validation") == {"train": 8, "test": 3}
    assert sizes(validation_split="test") == {"train": 8, "validation": 2}
    assert sizes(train_split="test") == {"train": 2, "validation": 3}
    assert sizes(validation_split="test", test_split="validation") == {"train": 8, "validation": 2, "test": 3}
    for splits in ({"test_split": "train"}, {"test_split": "validation", "validation_split": "validation"}):
        with pytest.raises(UserError, match=r"task\.\w+_split: .* is another split already"):
            sizes(**splits)


@pytest.mark.parametrize("kind", ["classification", "regression", "choices"])
def test_a_test_split_without_labels(kind: str, tmp_path: Path) -> None:
    if kind == "choices":
        rows = [{"question": f"which of {n}?", "options": ["a", "b"], "answer": "ab"[n % 2]} for n in range(30)]
    else:
        rows = [{"text": f"text {n}", "label": n % 2} for n in range(30)]
    columns = QUESTION if kind == "choices" else TEXT
    *_, answer = rows[0]
    none: Any = "" if kind == "choices" else -1 if kind == "classification" else None
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    for split, some in (("train", rows[:20]), ("validation", rows[20:25]), ("test", rows[25:])):
        some = [{**row, answer: none} for row in some] if split == "test" else some
        table = Dataset.from_list(some, features=features if kind == "classification" else None)
        table.to_parquet(tmp_path / "data" / f"{split}.parquet")

    def load_with(**splits: str) -> Any:
        return OWN[kind].load(OwnData("data", **splits), columns, ALL, 0)

    with pytest.raises(UserError, match=r"^data, test, row 1: it has no \w+; task\.test_split takes another split$"):
        load_with()
    splits = load_with(test_split="validation")
    assert {name: len(split) for name, split in splits.items()} == {"train": 18, "validation": 2, "test": 5}


def test_the_split_to_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name; of a data set of the hub, in the configuration that the run was trained on, of what it names alone."""
    folder = tmp_path / "copies" / "owner" / "name"
    folder.mkdir(parents=True)
    files = ("short-train", 4), ("short-test", 3), ("long-test", 2)
    for name, count in files:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:count]))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: short\n  data_files:\n"
        "  - {split: train, path: short-train.jsonl}\n  - {split: test, path: short-test.jsonl}\n"
        "- config_name: long\n  data_files:\n"
        "  - {split: dev, path: long-test.jsonl}\n  - {split: test, path: long-test.jsonl}\n---\n"
    )
    monkeypatch.setenv("AURORA_LORA_DATA", str(tmp_path / "copies"))
    own = OwnData("owner/name", config="short")
    assert len(open_file("owner/name", own=own).data) == 4
    for same in ("copies/owner/name/", "./copies/owner/name"):
        assert len(open_file(same, own=OwnData("copies/owner/name", config="short")).data) == 4
    assert len(open_file("owner/name", own=own, split="test").data) == 3
    with pytest.raises(ArgumentError, match=r"^`split`: owner/name has no split 'exam' \(it has train, test\)"):
        open_file("owner/name", own=own, split="exam")
    with pytest.raises(ArgumentError, match=r"^`split`: owner/name has no split 'train' \(it has dev, test\)"):
        open_file("owner/name", own=OwnData("owner/name", config="long"))
    with pytest.raises(
        ArgumentError, match=r"it has several configurations, of which task\.config names one: 'short', "
    ):
        open_file("owner/name", own=OwnData("other/name", config="short"))
    with pytest.raises(ArgumentError, match=r"^'none' is no file, no folder"):
        open_file("none", own=own)


def test_configuration_and_revision_are_those_of_what_a_run_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Hub:
        def __init__(self, repo: str, config: str | None, revision: str | None) -> None:
            asked.append((repo, config, revision))

        def load_all(self) -> tuple[DatasetDict, str]:
            return DatasetDict({"train": Dataset.from_list(ROWS)}), "commit"

        def copy(self) -> None:
            return None

    monkeypatch.setattr(source, "HubData", Hub)
    own = OwnData("owner/name", config="short", revision="v2")
    open_file("owner/name", own=own)
    open_file("other/name", own=own)
    open_test(own, "owner/name")
    open_test(own, "other/name")
    assert asked == [
        ("owner/name", "short", "v2"),
        ("other/name", None, None),
        ("owner/name", "short", "v2"),
        ("other/name", "short", None),
    ]


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    _csv(tmp_path / "reviews.csv")
    piece = open_data(OwnData("reviews.csv"))["train"]
    piece.need("review", "text")
    for wrong in ("reviw", "REVIEW"):
        with pytest.raises(UserError) as raised:
            piece.need(wrong, "text")
        assert str(raised.value) == (
            f"task.text: reviews.csv has no column '{wrong}' (it has 'review', 'stars'; did you mean 'review'?)"
        )


@pytest.mark.parametrize(("given", "hint"), [("imdb", ""), ("revews.csv", "reviews.csv"), ("table", "table.parquet")])
def test_a_file_that_is_not_there(given: str, hint: str, tmp_path: Path) -> None:
    """A name is suggested where it is near."""
    for name in ("im13b", "reviews.csv", "table.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(UserError) as raised:
        open_data(OwnData(given))
    assert str(raised.value) == (
        f"task.data: '{given}' is no file, no folder and no data set of the hub (owner/name)"
        + (f"; did you mean '{hint}'?" if hint else "")
    )


def test_texts_of_a_parquet_file_that_are_no_text() -> None:
    offsets = b"".join(n.to_bytes(4, "little") for n in range(31))
    texts = pa.Array.from_buffers(pa.string(), 30, [None, pa.py_buffer(offsets), pa.py_buffer(b"\xff" * 30)])
    parquet.write_table(pa.table({"text": texts, "label": [0, 1] * 15}), "rows.parquet")
    with pytest.raises(UserError, match=r"rows\.parquet has text in another encoding .* byte 0xff"):
        load("classification", "rows.parquet")


def test_few_images_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand photos in a table can be gigabytes."""
    images = [{"bytes": bytes([n]), "path": None} for n in range(50)]
    rows = Dataset.from_dict({"image": images, "label": list(range(50))}).cast_column("image", Image())
    rows.to_parquet(tmp_path / "rows.parquet")
    piece = open_data(OwnData("rows.parquet"))["train"]
    own, sizes = Dataset.iter, []

    def read(data: Dataset, batch_size: int) -> Any:
        sizes.append(batch_size)
        return own(data, batch_size)

    monkeypatch.setattr(Dataset, "iter", read)
    assert [row["image"]["bytes"][0] for row in piece.rows(["image", "label"])] == list(range(50))
    assert [row["label"] for row in piece.rows(["label"])] == list(range(50))
    assert sizes == [16, 1000]
