"""The README.md of a folder, which says what its data is."""

from pathlib import Path

import pytest

from aurora_lora.data.own.card_files import check_card_files
from aurora_lora.data.own.folder import read_folder
from aurora_lora.errors import UserError

OUTSIDE = (
    "../outside.csv",
    "data/../../outside.csv",
    "/etc/passwd",
    "C:\\\\data.csv",
    "..\\\\outside.csv",
    "http://127.0.0.1:9/x.csv",
    "hf://datasets/someone/data/x.csv",
    "zip://x.csv::data.zip",
)
FORMS = (
    "data_files: {}",
    "data_files: [a.csv, {}]",
    "data_files:\n  - {{split: train, path: a.csv}}\n  - {{split: test, path: [{}]}}",
    "data_files: {{train: a.csv, test: {}}}",
    "data_dir: {}",
)


def folder(tmp_path: Path, text: str, name: str = "README.md") -> Path:
    made = tmp_path / "data"
    made.mkdir(exist_ok=True)
    (made / "a.csv").write_text("text,label\nfine,1\n")
    (tmp_path / "outside.csv").write_text("text,label\nsecret,1\n")
    configs = "configs:\n- config_name: one\n  data_files: a.csv\n- config_name: two\n  " + text.replace("\n", "\n  ")
    (made / name).write_text(configs if name.endswith("yaml") else f"---\n{configs}\n---\n# Data\n")
    return made


@pytest.mark.parametrize("pattern", OUTSIDE)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_outside_is_refused(tmp_path: Path, form: str, pattern: str) -> None:
    for name in ("README.md", ".huggingface.yaml"):
        made = folder(tmp_path, form.format(f'"{pattern}"'), name)
        with pytest.raises(UserError, match="names data that is not in its folder") as refused:
            read_folder(made, "two", None)
        assert str(refused.value).startswith(str(made / name))
        (made / name).unlink()


@pytest.mark.parametrize("form", FORMS)
def test_what_is_inside_is_read(tmp_path: Path, form: str) -> None:
    check_card_files(folder(tmp_path, form.format("parts/*..csv")))


@pytest.mark.parametrize("text", ["", "---\n: [\n---\n", "---\nconfigs: 3\n---\n", "---\n- a\n---\n", "# Data"])
def test_what_says_nothing_is_not_its_matter(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    check_card_files(tmp_path)
