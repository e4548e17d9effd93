"""Reading folders: what they can hold, what is left out of them, and what is refused."""

import gzip
import zipfile
from pathlib import Path

import pytest
from datasets import Dataset
from own_rows import REVIEWS, write_csv
from PIL import Image

from aurora_lora.data.own.source import OwnData, open_data
from aurora_lora.errors import UserError


def test_a_folder_of_csv_files_is_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    for name in ("train", "test"):
        (tmp_path / "odd" / f"{name}.csv").write_text(f"text;label\n007;NA\n{name};1e3\n;None\n", encoding="latin-1")
    pieces = open_data(OwnData("odd", encoding="latin-1"))
    assert {name: [tuple(row.values()) for row in piece.data] for name, piece in pieces.items()} == {
        name: [("007", "NA"), (name, "1e3"), ("", "None")] for name in ("train", "test")
    }
    (tmp_path / "odd" / "test.csv").write_text("label;text\n1;a\n")
    with pytest.raises(UserError, match=r"odd: train\.csv has another header or separator than test\.csv: "):
        open_data(OwnData("odd"))


@pytest.mark.parametrize("suffixes", [(".csv", ".jsonl"), (".csv", ".csv", ".parquet"), (".jsonl", ".csv.gz")], ids=str)
def test_a_folder_of_two_formats_is_refused(suffixes: tuple[str, ...], tmp_path: Path) -> None:
    """`datasets` would read those of the commonest alone."""
    (tmp_path / "mixed").mkdir()
    for number, suffix in enumerate(suffixes):
        (tmp_path / "mixed" / f"part{number}{suffix}").write_text("text,label\n007,NA\n")
    last = [suffix.rpartition(".")[2] for suffix in sorted(set(suffixes), key=lambda one: one.rpartition(".")[2])]
    with pytest.raises(UserError, match=rf"^mixed has \.{last[0]} and \.{last[1]} files: .*task\.data=FILE"):
        open_data(OwnData("mixed"))


@pytest.mark.parametrize("beside", ["README.md", "LICENSE", "notes.txt", "logo.png", ".hidden.jsonl", "config.json"])
@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".tab", ".jsonl"])
def test_what_is_no_data_changes_nothing_in_a_folder(suffix: str, beside: str, tmp_path: Path) -> None:
    (tmp_path / "odd [1]").mkdir()
    row = '{"text": "007", "label": "NA"}' if suffix == ".jsonl" else "text{}label\n007{}NA"
    row = row.replace("{}", "\t" if suffix == ".tab" else ",")
    (tmp_path / "odd [1]" / f"data{suffix}").write_text(f"{row}\n")
    (tmp_path / "odd [1]" / beside).write_text("a line\nand another\n")
    pieces = open_data(OwnData("odd [1]"))
    assert {name: list(piece.data) for name, piece in pieces.items()} == {"train": [{"text": "007", "label": "NA"}]}


def test_no_file_of_a_folder_is_left_out(tmp_path: Path) -> None:
    """Where names tell splits, `datasets` passes over those that tell none."""
    (tmp_path / "named").mkdir()
    for name in ("train.csv", "test.csv"):
        write_csv(tmp_path / "named" / name)
    assert set(open_data(OwnData("named"))) == {"train", "test"}
    write_csv(tmp_path / "named" / "more.csv")
    with pytest.raises(UserError, match=r"named: the name of more\.csv tells no split"):
        open_data(OwnData("named"))


def test_no_text_or_packed_file_of_a_folder_is_left_out(tmp_path: Path) -> None:
    for suffix in (".txt", ".jsonl.gz", ".zip"):
        (tmp_path / f"named{suffix}").mkdir()
        for name in ("my test 1", "other"):
            (tmp_path / f"named{suffix}" / f"{name}{suffix}").write_bytes(b"a text")
        with pytest.raises(UserError, match=rf": the name of other\{suffix} tells no split"):
            open_data(OwnData(f"named{suffix}"))


def test_a_packed_csv_file_of_a_folder_is_read_as_it_is(tmp_path: Path) -> None:
    """Unpacked by `datasets` alone, it would be guessed what its columns are."""
    (tmp_path / "odd").mkdir()
    for name in ("train", "test"):
        with gzip.open(tmp_path / "odd" / f"{name}.csv.gz", "wt", encoding="latin-1") as file:
            file.write(f"text;label\n007;é\n{name};1e3\n;None\n")
    pieces = open_data(OwnData("odd", encoding="latin-1"))
    assert {name: [tuple(row.values()) for row in piece.data] for name, piece in pieces.items()} == {
        name: [("007", "é"), (name, "1e3"), ("", "None")] for name in ("train", "test")
    }
    with pytest.raises(UserError, match=r"test\.csv\.gz, line 2: no UTF-8 text \(byte 0xe9\)"):
        open_data(OwnData("odd"))
    whole = (tmp_path / "odd" / "test.csv.gz").read_bytes()
    (tmp_path / "odd" / "test.csv.gz").write_bytes(whole[:-12])
    with pytest.raises(UserError, match=r"test\.csv\.gz: .*end-of-stream"):
        open_data(OwnData("odd", encoding="latin-1"))
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "train.zip", "w") as packed:
        packed.writestr("train.csv", "text,label\n007,1e3\n")
    with pytest.raises(UserError, match=r"train\.zip holds a CSV file: unpack it, or pack it as \.csv\.gz"):
        open_data(OwnData("zipped"))


@pytest.mark.parametrize("where", ["photos [1]", "photos [1]/inside"])
def test_folders_with_brackets_in_their_path(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all/cat/1", "all/dog/2", "split/train/cat/1", "split/train/dog/2", "split/test/dog/3"):
        (tmp_path / where / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / where / f"{name}.png")
    write_csv(tmp_path / where / "rows.csv")
    (tmp_path / where / "texts").mkdir()
    (tmp_path / where / "texts" / "a.txt").write_text("one\ntwo\n")
    (tmp_path / where / "card").mkdir()
    (tmp_path / where / "card" / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: a.csv\n---\n"
    )
    for base in (tmp_path / where, Path()):
        monkeypatch.chdir(tmp_path if base != Path() else tmp_path / where)
        assert open_data(OwnData(str(base / "all")))["train"].data["label"][:] == [0, 1]
        split = open_data(OwnData(str(base / "split")))
        assert {name: len(piece.data) for name, piece in split.items()} == {"train": 2, "test": 1}
        assert open_data(OwnData(str(base / "rows.csv")))["train"].data.to_list() == REVIEWS
        assert open_data(OwnData(str(base / "texts")))["train"].data["text"][:] == ["one", "two"]
    with pytest.raises(UserError, match=r"card has a README\.md with `configs`, and \*, \? or \[ in its path: rename"):
        open_data(OwnData(str(tmp_path / where / "card")))


def test_a_config_of_a_folder_that_tells_none(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    write_csv(tmp_path / "plain" / "train.csv")
    with pytest.raises(UserError, match=r"task\.config: 'one': plain has no README\.md with `configs`"):
        open_data(OwnData("plain", config="one"))


def test_a_card_of_a_folder_says_which_files_are_what(tmp_path: Path) -> None:
    (tmp_path / "card").mkdir()
    for name, text in (("a.csv", "text,label\nb,1\n"), ("other.jsonl", '{"text": "c"}\n')):
        (tmp_path / "card" / name).write_text(text)
    (tmp_path / "card" / "README.md").write_text("---\nconfigs:\n- config_name: one\n  data_files: a.csv\n---\n")
    assert open_data(OwnData("card"))["train"].data["text"][:] == ["b"]


@pytest.mark.parametrize("form", ["torch", "numpy"])
def test_a_format_that_is_saved_with_a_data_set_changes_nothing(form: str, tmp_path: Path) -> None:
    rows = [{"text": f"film {n}", "label": n % 2, "input_ids": [n, n]} for n in range(4)]
    data = Dataset.from_list(rows)
    data.set_format(form, columns=["input_ids", "label"])
    data.save_to_disk(tmp_path / "saved")
    (piece,) = open_data(OwnData("saved")).values()
    assert list(piece.rows(["text"])) == [{"text": row["text"]} for row in rows]
    assert list(piece.rows(["text", "label"])) == [{"text": row["text"], "label": row["label"]} for row in rows]


def test_a_folder_that_is_a_link_is_not_left_out(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        write_csv(tmp_path / split / "rows.csv")
    (tmp_path / "data").mkdir()
    (tmp_path / "test").rename(tmp_path / "data" / "test")
    (tmp_path / "data" / "train").symlink_to(tmp_path / "train")
    with pytest.raises(UserError, match=r"data/train is a link to a folder, which is not followed"):
        open_data(OwnData("data"))
    (tmp_path / "data" / "train").unlink()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").touch()
    (tmp_path / "data" / "images").symlink_to(tmp_path / "pictures")  # of which a table may have the paths
    (tmp_path / "data" / "latest").symlink_to("test")
    (tmp_path / "data" / ".cache").symlink_to(tmp_path / "train")
    (tmp_path / "link").symlink_to("data")
    assert [*open_data(OwnData("link"))] == ["train"]


def test_files_that_are_links_are_read(tmp_path: Path) -> None:
    """As in the cache of the hub."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        write_csv(tmp_path / "blobs" / name[::-1])
        (tmp_path / "data" / f"{name}.csv").symlink_to(f"../blobs/{name[::-1]}")
    assert [*open_data(OwnData("data"))] == ["train", "test"]


def test_a_file_that_is_called_like_a_cache_is_one_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("cache-one.csv", "other.csv"):
        write_csv(tmp_path / "data" / name)
    assert len(open_data(OwnData("data"))["train"].data) == 2 * len(REVIEWS)


@pytest.mark.parametrize("encoding", [None, "utf-8", "cp1252", "utf-16"])
def test_encodings_of_a_folder_of_texts(encoding: str | None) -> None:
    Path("texts").mkdir()
    text = "Käse\nBrot\n".encode("utf-8-sig" if encoding in (None, "utf-8") else encoding)
    Path("texts/a.txt").write_bytes(text)
    assert open_data(OwnData("texts", encoding=encoding))["train"].data["text"][:] == ["Käse", "Brot"]
    if encoding == "cp1252":
        with pytest.raises(UserError, match=r"a\.txt, line 1: no UTF-8 text .*task\.encoding=cp1252"):
            open_data(OwnData("texts"))
    Path("texts/a.txt").unlink()
    Path("texts/a.txt.gz").write_bytes(gzip.compress(text))
    if encoding in ("cp1252", "utf-16"):
        with pytest.raises(UserError, match=rf"encoding: '{encoding}': what is in texts/a\.txt\.gz is read as UTF-8"):
            open_data(OwnData("texts", encoding=encoding))


@pytest.mark.parametrize("suffix", [".zip", ".zst"])
def test_an_encoding_of_what_datasets_unpacks_is_refused(suffix: str) -> None:
    Path("texts").mkdir()
    with zipfile.ZipFile(f"texts/a.jsonl{suffix}", "w") as file:
        file.writestr("a.jsonl", '{"text": "Käse"}')
    with pytest.raises(
        UserError, match=rf"task\.encoding: 'cp1252': what is in texts/a\.jsonl\{suffix} is read as UTF-8"
    ):
        open_data(OwnData("texts", encoding="cp1252"))
    if suffix == ".zip":
        assert open_data(OwnData("texts", encoding="utf-8"))["train"].data["text"][:] == ["Käse"]
