"""PEFT's tests, of the version that is installed: its source distribution ships them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

PACKAGE = "peft_tests"
"""The tests import each other relatively; under this name they meet no other package."""


class SuiteError(Exception):
    """PEFT's tests cannot be had."""


def fetch(cache: Path) -> Path:
    """The folder that holds PEFT's tests as the package `peft_tests`; downloaded once per version.

    Raises:
        SuiteError: pip cannot download the source distribution, or it holds no tests.
    """
    release = version("peft")
    folder = cache / f"peft-{release}"
    if not (folder / PACKAGE / "__init__.py").exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            unpacked = Path(scratch) / "folder"
            unpack(download(release, Path(scratch)), unpacked / PACKAGE)
            shutil.rmtree(folder, ignore_errors=True)
            unpacked.rename(folder)
    return folder


def download(release: str, into: Path) -> Path:
    """The source distribution of a PEFT release.

    Raises:
        SuiteError: pip cannot download it.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "peft", "--dest", str(into), f"peft=={release}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archive = into / f"peft-{release}.tar.gz"
    if done.returncode or not archive.exists():
        said = (done.stderr or done.stdout).strip().splitlines() or ["pip said nothing"]
        raise SuiteError(
            f"the source distribution of peft {release}, which holds PEFT's tests, is not in the cache folder and "
            f"cannot be downloaded: {said[-1]}"
        )
    return archive


def unpack(archive: Path, package: Path) -> None:
    """Extract the test files, and nothing else.

    Raises:
        SuiteError: there are none.
    """
    package.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(member.name)
            if member.isfile() and path.parent.name == "tests" and len(path.parts) == 3 and path.suffix == ".py":
                source = tar.extractfile(member)
                assert source is not None
                (package / path.name).write_bytes(source.read())
    if not any(package.glob("test_*.py")):
        raise SuiteError(f"{archive.name} holds no tests")
    (package / "__init__.py").touch()
