"""Command lines: commands, options and values in any order, run in this process."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import strategies as st

from . import hostile
from .runner import Layer, Verdict
from .world import World

COMMANDS = {
    "evaluate": ["RUN", "--form", "static", "--split", "validation", "test", "--json", "calibrated", "merged"],
    "gap": ["RUN", "--split", "--examples", "3", "0", "-1", "--output", "OUT", "--json"],
    "sigma": ["RUN", "--examples", "3", "--output", "OUT", "--json"],
    "merge": ["RUN", "-o", "OUT", "--form", "static", "dynamic", "--overwrite", "--json", "RUN/adapter"],
    "export": ["RUN", "-o", "OUT", "--form", "static", "--dtype", "float16", "--all-layers", "--overwrite", "--json"],
    "predict": ["RUN", "a film", "--json", "OUT", "RUN/adapter", "RUN/lora", "MODEL"],
    "train": ["RECIPE", "-o", "RUN", "OUT", "training.epochs=1", "seed=1", "method.r=0", "--json", "="],
    "report": ["RUN", "--into", "OUT/page.md", "-o", "OUT", "--html", "OUT/p.html", "--only", "scores", "--title"],
    "generate": ["RUN", "a [V] dog", "-o", "OUT", "--images", "1", "--seed", "--steps", "--guidance", "--json"],
    "reproduce": ["table1", "table9", "--dry-run", "--scale", "hub", "packaged", "--only", "cola", "--seeds", "0,1"],
    "sweep": ["STUDY", "-o", "OUT", "--dry-run", "--jobs", "1", "--json"],
    "list": ["tasks", "methods", "models", "recipes", "suites", "studies", "--json", "task"],
    "pretrain": ["nope", "--json"],
    "bench": ["nope", "--json", "-h"],
    "theory": ["--nope", "-h"],
    "--version": [],
    "-h": [],
    "trian": [],
}
LONG = {"reproduce": "--dry-run", "sweep": "--dry-run", "pretrain": "--nope", "bench": "--nope", "theory": "--nope"}
"""Commands that take minutes when they are right: each gets an option with which they do not."""
TABOO = ("..", "/", "~", "\x00")
"""No word with these is given where a command may write."""

words = st.sampled_from([word for word in hostile.WORDS if not any(taboo in word for taboo in TABOO)])


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command, what is often given with it, and what never is."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    usual = COMMANDS[name] or ["-h"]
    line = [name]
    if name in ("evaluate", "gap", "sigma", "merge", "export", "predict") and draw(st.booleans()):
        line.append("RUN")
    if name in ("merge", "export") and draw(st.booleans()):
        line += ["-o", "OUT"]
    line += draw(st.lists(st.one_of(st.sampled_from(usual), st.sampled_from(usual), words), max_size=5))
    if draw(st.integers(0, 9)) == 0:
        line.insert(
            draw(st.integers(0, len(line))), draw(st.sampled_from(["/dev/full", "/proc/x", "OUT/" + "a" * 300]))
        )
    return [*line, LONG[name]] if name in LONG else line


def check_line(world: World, line: list[str]) -> Verdict:
    """A command line ends as it should, or in words and exit code 2."""
    run = world.copy(world.run)
    places = {
        "RUN": str(run),
        "OUT": str(world.scratch / "out"),
        "RECIPE": str(world.recipe),
        "STUDY": str(world.study_path),
        "MODEL": str(world.model),
    }
    args = []
    for word in line:
        for name, place in places.items():
            if word == name or word.startswith(f"{name}/"):
                word = place + word.removeprefix(name)
        args.append(word)
    before = os.getcwd()
    os.chdir(world.scratch)
    try:
        code, _ = world.command(*args)
    finally:
        os.chdir(before)
    return "accepted" if code == 0 else "refused"


def layers(world: World) -> list[Layer]:
    """The layer of this file."""
    checked: Any = lambda line: check_line(world, line)  # noqa: E731
    return [
        Layer(
            "command lines",
            "commands, options and values in any order",
            "ends with exit code 0; with `--json` what it prints is JSON of finite figures",
            lines(),
            checked,
            full=3000,
            small=60,
        )
    ]
