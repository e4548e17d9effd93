"""Counts lines and files of each room against `tool.budgets` in pyproject.toml; exits 1 where one is over it."""

import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]


def in_room(file: str, room: str) -> bool:
    """Whether a file is in a room: a folder, with all below it, or the files that a pattern matches in one folder."""
    return file.startswith(room) if room.endswith("/") else fnmatch(file, room) and file.count("/") == room.count("/")


def sizes() -> dict[str, int]:
    """The lines of each Python file that is in the repository."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, check=True, capture_output=True, text=True)
    paths = [file for file in listed.stdout.splitlines() if (ROOT / file).exists()]
    return {file: (ROOT / file).read_bytes().count(b"\n") for file in paths}


def main() -> int:
    budgets = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["budgets"]
    files, over = sizes(), 0
    for room, (most_lines, most_files) in budgets.items():
        found = [lines for file, lines in files.items() if in_room(file, room)]
        too_much = sum(found) > most_lines or len(found) > most_files
        over += too_much
        said = f"{sum(found):6,} of {most_lines:6,} lines, {len(found):3} of {most_files:3} files"
        print(f"{room:24} {said}{'  over the budget' if too_much else ''}")
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main())
