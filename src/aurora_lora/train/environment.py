"""What a run was computed with: versions, commit and device, as results record them."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def versions() -> dict[str, str | None]:
    """Versions of everything that has a say in the numbers."""
    names = ("aurora-lora", "torch", "transformers", "peft", "accelerate", "datasets", "diffusers", "numpy")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def git_commit() -> str | None:
    """The commit of the checkout that the package runs from, with `-dirty` after changes; None when installed."""
    source = Path(__file__).parent
    try:
        for command in (["ls-files", "--error-unmatch", Path(__file__).name], ["describe", "--always", "--dirty"]):
            done = subprocess.run(
                ["git", "-C", str(source), *command, *(["--abbrev=40"] if command[0] == "describe" else [])],
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def device() -> str:
    """What the run was computed on."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator().type  # type: ignore[union-attr]
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
