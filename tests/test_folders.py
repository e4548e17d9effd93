"""Writing whole folders, or nothing."""

import os
from pathlib import Path
from typing import Any

import pytest

from aurora_lora import files
from aurora_lora.errors import UserError


def write(folder: Path, text: str) -> None:
    with files.new_folder(folder) as partial:
        (partial / "file").write_text(text, encoding="utf-8")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_new_folder_replaces_an_earlier_one(tmp_path: Path) -> None:
    folder = tmp_path / "there" / "folder"
    write(folder, "first")
    (folder / "other").touch()
    write(folder, "second")
    assert names(folder) == {"file"}
    assert (folder / "file").read_text() == "second"
    assert names(folder.parent) == {"folder"}


def test_an_interrupted_write_leaves_the_earlier_folder(tmp_path: Path) -> None:
    write(tmp_path / "folder", "first")
    with pytest.raises(UnicodeEncodeError):
        write(tmp_path / "folder", "\ud800")  # half a character, which UTF-8 refuses
    assert (tmp_path / "folder" / "file").read_text() == "first"
    assert names(tmp_path) == {"folder"}


@pytest.mark.parametrize("empty", [False, True])
def test_a_replacement_that_was_killed_is_finished(tmp_path: Path, empty: bool) -> None:
    """Between its two renames, and also where an empty folder was made at the place since."""
    for ending in (files.TRASH, files.PARTIAL):
        write(tmp_path / f".folder{ending}", ending)
    if empty:
        (tmp_path / "folder").mkdir()
    files.settle(tmp_path / "folder")
    assert names(tmp_path) == {"folder"}
    assert (tmp_path / "folder" / "file").read_text() == files.PARTIAL


def finished(folder: Path, text: str) -> None:
    """Three entries."""
    with files.new_folder(folder) as partial:
        (partial / "sub").mkdir()
        for name in ("a", "b", "sub/z"):
            (partial / name).write_text(text, encoding="utf-8")


def held(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def whole(text: str) -> dict[str, str]:
    return dict.fromkeys(("a", "b", "sub/z"), text)


def test_a_folder_that_cannot_be_renamed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mounted volume, and the folder that people are in."""
    for folder in (tmp_path / "volume", tmp_path / "here"):
        folder.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path / "volume")
    monkeypatch.chdir(tmp_path / "here")
    for folder in (tmp_path / "volume", Path()):
        with pytest.raises(UserError, match=r"and cannot be replaced: name one in it$"):
            files.check_new_folder(folder)
        with pytest.raises(UserError, match=r"and cannot be replaced: name one in it$"):
            finished(folder, "first")
        assert names(folder) == set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_kill_on_the_way_leaves_a_whole_folder(tmp_path: Path) -> None:
    """At whatever change of the disk: what is there is whole, and something is after `settle`."""
    folder = tmp_path / "volume"
    calls = {name: getattr(os, name) for name in ("rename", "replace", "mkdir", "unlink", "rmdir", "fsync")}
    seen, call, killed = set(), 0, True
    while killed:
        call += 1
        finished(folder, "first")
        if (child := os.fork()) == 0:
            left = [call]

            def counted(name: str, left: list[int] = left) -> Any:
                def run(*args: Any, **kwargs: Any) -> Any:
                    left[0] -= 1
                    if left[0] == 0:
                        os._exit(9)
                    return calls[name](*args, **kwargs)

                return run

            for name in calls:
                setattr(os, name, counted(name))
            finished(folder, "second")
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        there = folder.exists()
        if there:
            assert held(folder) in (whole("first"), whole("second"))
        if call % 2 and there:
            files.clear_leftovers(folder)
        else:
            files.settle(folder)
        assert held(folder) in (whole("first"), whole("second"))
        assert names(folder) == {"a", "b", "sub"}
        assert names(tmp_path) == {"volume"}
        seen.add((held(folder)["a"], there))
    assert seen == {("first", True), ("second", False), ("second", True)}


def test_a_linked_folder_stays_linked(tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    real.mkdir(parents=True)
    (real / "other").touch()
    link.symlink_to(real)
    for text in ("first", "second"):
        write(link, text)
        assert link.is_symlink()
        assert names(real) == {"file"}
        assert (real / "file").read_text() == text
    assert names(tmp_path) == {"disk", "link"}
    assert names(real.parent) == {"real"}


def test_a_link_is_removed_but_not_what_it_leads_to(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    write(real, "first")
    link.symlink_to(real)
    files.remove(link)
    assert names(tmp_path) == {"real"}
    assert (real / "file").read_text() == "first"
    files.remove(tmp_path / "nothing")


def test_what_others_call_their_leftovers_stays(tmp_path: Path) -> None:
    mine = {".thesis.partial", ".thesis.trash", ".real.partial", ".real.trash", "aurora-lora-partial"}
    for name in mine:
        (tmp_path / name).write_text("years of work")
    for text in ("first", "second"):
        write(tmp_path / "real", text)
    files.remove(tmp_path / "real")
    files.clear_leftovers(tmp_path)
    assert names(tmp_path) == mine


def test_a_folder_with_leftovers_alone_is_free(tmp_path: Path) -> None:
    """A killed probe of whether it can be written is in nobody's way, and no file of the user's."""
    (tmp_path / f".writable.x{files.PARTIAL}").touch()
    assert not files.is_occupied(tmp_path)
    assert files.others(tmp_path, ()) == []
    (tmp_path / "mine").touch()
    assert files.is_occupied(tmp_path)
    assert files.others(tmp_path, ()) == ["mine"]
