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


def fetch(cache: Path) -> Path:
    """The folder that holds PEFT's tests as the package `peft_tests`; downloaded once per version.

    Raises:
        subprocess.CalledProcessError: pip, which says why, cannot download the source distribution.
    """
    release = version("peft")
    folder = cache / f"peft-{release}"
    if not (folder / PACKAGE / "__init__.py").exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*command, "--no-binary", "peft", "--dest", scratch, f"peft=={release}"], check=True)
            unpack(Path(scratch) / f"peft-{release}.tar.gz", Path(scratch) / "folder" / PACKAGE)
            shutil.rmtree(folder, ignore_errors=True)
            (Path(scratch) / "folder").rename(folder)
    return folder


def unpack(archive: Path, package: Path) -> None:
    """Extract the test files, and nothing else."""
    package.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(member.name)
            if member.isfile() and path.parent.name == "tests" and len(path.parts) == 3 and path.suffix == ".py":
                source = tar.extractfile(member)
                assert source is not None
                (package / path.name).write_bytes(source.read())
    (package / "__init__.py").touch()
