"""Writing files whole, or not at all."""

import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from aurora_lora import files
from aurora_lora.errors import UserError


def test_a_linked_file_stays_linked(tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    real.parent.mkdir()
    link.symlink_to(real)
    for text in ("first", "second"):
        files.write_text(link, text)
        assert link.is_symlink()
        assert real.read_text() == text
    assert [path.name for path in real.parent.iterdir()] == ["real"]


def test_what_a_killed_process_left_of_a_file_goes(tmp_path: Path) -> None:
    """Not what another one is still writing."""
    writing = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = [f".a.json.{platform.node()}.{each.pid}{files.PARTIAL}" for each in (writing, ended)]
    for name in names:
        (tmp_path / name).touch()
    files.write_json(tmp_path / "a.json", 1)
    writing.communicate(b"\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([names[0], "a.json"])


@pytest.mark.parametrize(
    ("name", "is_path"),
    [
        *((name, False) for name in ("a", "a/b", "_a/b.c-d", "a/b.csv")),
        *((name, True) for name in ("/x", "./x", "../x", ".x/y", "~/x", "~x/y", "a/b/c", "a/b/", "owner\\name")),
        *((name, True) for name in ("", ".", "a b/c", "é/b", "a--b", "a//b", "a\0b", "x" * 300)),
        *((name, True) for name in ("folder", "here/file")),
    ],
)
def test_a_path_or_a_name_of_the_hub(name: str, is_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for there in ("folder", "here"):
        (tmp_path / there).mkdir()
    (tmp_path / "here" / "file").touch()
    assert files.is_path(name) == is_path


def test_what_json_has_no_number_for_is_null(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"a": [1.5, math.nan, (math.inf,)], "b": {"c": -math.inf, "d": "nan"}})
    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert found == {"a": [1.5, None, [None]], "b": {"c": None, "d": "nan"}}
    assert files.read_json(tmp_path / "a.json") == found


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.json", "No such file or directory"),
        (".", "Is a directory"),
        ("half.json", "Expecting value: line 1 column 7 (char 6)"),
        ("latin.json", "'utf-8' codec can't decode byte 0xe9 in position 4: invalid continuation byte"),
        ("a\0b", "embedded null byte"),
    ],
)
def test_what_cannot_be_read_is_named_once(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "half.json").write_text('{"a": ')
    (tmp_path / "latin.json").write_bytes('"café"'.encode("latin-1"))
    path = tmp_path / name
    with pytest.raises(UserError) as caught, files.reading(path):
        files.read_json(path)
    shown = repr(str(path)) if "\0" in name else path
    assert str(caught.value) == f"{shown} cannot be read: {reason}"


def _write_often(path: Path, failed: Any) -> None:
    try:
        for number in range(50):
            files.write_json(path, [number] * 1000)
    except UserError as error:
        failed.put(str(error))


def test_two_processes_may_write_one_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    failed = context.Queue()
    both = [context.Process(target=_write_often, args=(tmp_path / "study.json", failed)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert failed.empty()
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]
    assert json.loads((tmp_path / "study.json").read_text()) == [49] * 1000


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("AuroRA r=8, no F", "aurora-r=8-no-f"),
        ("LoRA+", "lora+"),
        ("head_learning_rate", "head-learning-rate"),
        ("AuroRA \N{GREEK SMALL LETTER ALPHA}=2", "aurora-\N{GREEK SMALL LETTER ALPHA}=2"),
        ("\u57fa\u7ebf", "\u57fa\u7ebf"),
        ("a\u0301", "\u00e1"),
        (" ../x ", "x"),
        ("?!", ""),
    ],
)
def test_names_as_those_of_files(name: str, slug: str) -> None:
    assert files.slug(name) == slug


@pytest.mark.skipif(os.name == "nt", reason="modes are those of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_files_are_as_open_as_the_process_makes_them(mask: int, tmp_path: Path) -> None:
    """Also those that a library makes for their owner alone, as safetensors does."""
    before = os.umask(mask)
    try:
        with files.new_file(tmp_path / "alone") as partial:
            save_file({"a": torch.zeros(1)}, partial)
        with files.new_folder(tmp_path / "folder") as folder:
            save_file({"a": torch.zeros(1)}, folder / "a")
            (folder / "deep").mkdir()
            (folder / "deep" / "program").touch(0o700)
            (folder / "deep" / "link").symlink_to("program")
        there = tmp_path / "there"
        there.touch()
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("alone", "folder/a", "folder/deep/program")]
    wanted = 0o666 & ~mask
    assert modes == [wanted, wanted, wanted | 0o700]


def test_json_that_is_nested_too_deeply_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 200_000 + "]" * 200_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(ValueError, match="NaN is no JSON"):
        files.parse_json("[NaN]", finite=True)
    assert math.isnan(files.parse_json("NaN"))
