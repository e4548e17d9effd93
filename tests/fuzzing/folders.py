"""Layers of commands on folders: damaged runs, adapters, models and checkpoints, and command lines in any order."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import hostile
from .runner import Layer, SilentError, Verdict
from .world import TEXTS, World, strict_json

BYTES = ("flip", "truncate", "delete", "empty", "append", "words", "folder", "zeros")
TENSORS = ("nan", "inf", "scale", "zero", "drop", "rename", "reshape", "half", "swap", "more", "bare", "nudge")
part = st.floats(0, 1, exclude_max=True)
damage = st.one_of(
    st.tuples(st.just(""), st.sampled_from(BYTES), part, hostile.scalars),
    st.tuples(st.just(".safetensors"), st.sampled_from(TENSORS), part, hostile.scalars),
    st.tuples(st.just(".json"), st.sampled_from(("set", "drop", "value")), part, hostile.values),
)
"""The ending of the files that it is for, what is done, where, and with what."""
ENCODINGS = ("utf-8", "utf-16", "utf-32", "utf-7", "cp1252", "idna", "punycode", "rot13", "unicode_escape", "nope", "")
asked = st.builds(
    lambda text, coded, cut, more: text.encode(coded, "replace")[cut:] + more,
    st.sampled_from(("text\na..b film\n\n", '[{"text": "a film"}]', '{"text": "\u00e4..\\ud800"}\n', "")),
    st.sampled_from(("utf-8", "utf-16", "utf-32", "cp1252")),
    st.integers(0, 2),
    st.binary(max_size=4),
)
Damage = tuple[str, str, float, Any]


def strike(files: list[Path], where: float, done: Damage) -> None:
    """Damage one of the files, if one has the ending."""
    ending, how, at, value = done
    files = [path for path in files if path.name.endswith(ending)]
    if files:
        path = files[int(where * len(files))]
        {"": _strike_bytes, ".safetensors": _strike_tensors, ".json": _strike_json}[ending](path, how, at, value)


def _strike_bytes(path: Path, how: str, at: float, value: Any) -> None:
    data = path.read_bytes()
    place = int(at * len(data))
    if how in ("delete", "folder"):
        path.unlink()
        if how == "folder":
            path.mkdir()
        return
    flipped = bytes([data[place] ^ (1 << int(8 * at * 1000) % 8)]) if data else b""
    words = repr(value).encode("utf-8", "surrogatepass")
    changed = {"flip": data[:place] + flipped + data[place + 1 :], "truncate": data[:place], "empty": b""}
    path.write_bytes({**changed, "append": data + b"\0more", "words": words, "zeros": bytes(len(data))}[how])


def _strike_tensors(path: Path, how: str, at: float, _: Any) -> None:
    tensors: dict[str, Tensor] = load_file(path)
    name = sorted(tensors)[int(at * len(tensors))]
    value, other = tensors.pop(name).clone(), sorted(tensors)[-1:]
    flat, place = value.view(-1), int(at * 997) % max(value.numel(), 1)
    renamed = {"rename": f"{name}_x", "bare": name.removeprefix("base_model.model.")}
    if how in ("nan", "inf") and value.is_floating_point() and value.numel():
        flat[place] = float(how)
    elif how == "nudge" and value.numel():
        flat[place] += 1
    elif how in ("scale", "zero"):
        value = value * (0 if how == "zero" else 2)
    elif how == "reshape":
        value = flat[: max(value.numel() - 1, 0)].clone()
    elif how == "half":
        value = value.to(torch.float16 if value.is_floating_point() else torch.int16)
    elif how == "more":
        tensors[f"{name}.more"] = torch.ones(2)
    elif how == "swap" and other:
        tensors[other[0]], value = value, tensors[other[0]].clone()
    if how != "drop":
        tensors[renamed.get(how, name)] = value
    save_file(tensors, path, metadata={"format": "pt"})


def _strike_json(path: Path, how: str, at: float, value: Any) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))
    if how == "value" or not isinstance(stored, dict) or not stored:
        stored = value
    else:
        name = sorted(stored)[int(at * len(stored))]
        if how == "drop":
            del stored[name]
        elif isinstance(stored[name], dict) and stored[name]:
            stored[name][sorted(stored[name])[int(at * 997) % len(stored[name])]] = value
        else:
            stored[name] = value
    try:
        path.write_text(json.dumps(stored), encoding="utf-8")
    except (TypeError, ValueError, RecursionError):
        path.write_text(repr(stored), encoding="utf-8", errors="surrogatepass")


# ---------------------------------------------------------------- folders


def check_run(world: World, action: str, where: float, done: Damage, *, adapter: bool) -> Verdict:
    """A damaged run gives what the undamaged one gives, or one line; what only shows result.json may show another one,
    if all is finite."""
    expected, run = world.expected(action), world.copy(world.run)
    files = sorted(path for path in run.rglob("*") if path.is_file() and (path.parent.name == "adapter") == adapter)
    strike(files if adapter else [*files, *[run / "recipe.yaml", run / "result.json"] * 3], where, done)
    if (found := world.outcome(action, run)) is None:
        return "refused"
    if action in ("train", "report"):
        if "nan" in str(found).replace("finance", "").lower().split():
            raise SilentError(f"{action} shows NaN")
    elif found != expected:
        raise SilentError(f"{action} gives something else, and says nothing")
    return "accepted"


def check_begun(world: World, where: float, done: Damage) -> Verdict:
    """A begun run whose checkpoints are damaged ends as the whole one did, or in one line."""
    expected, run = world.expected("train"), world.copy(world.begun)
    strike(sorted(path for path in (run / "checkpoints").rglob("*") if path.is_file()), where, done)
    if (found := world.outcome("train", run)) is None:
        return "refused"
    if found != expected:
        raise SilentError("the resumed run ends otherwise, and says nothing")
    return "accepted"


def check_model(world: World, where: float, done: Damage) -> Verdict:
    """A merged model that is damaged says what it said, something else that is finite, or one line."""
    run = world.copy(world.merged)
    strike(sorted(path for path in run.iterdir() if path.is_file()), where, done)
    code, shown = world.command("predict", str(run), *TEXTS, "--json")
    if code != 0:
        return "refused"
    if done[0] == ".safetensors" and done[1] in ("drop", "rename", "more", "bare") and strict_json(shown) != world.said:
        raise SilentError("predict answers otherwise, and says nothing")
    return "accepted"


def check_shown(world: World, action: str, where: float, done: Damage) -> Verdict:
    """A damaged run is shown, or listed to be pushed with no file but its own, or refused in one line."""
    run = world.copy(world.run)
    (run / "lora" / ".env").write_text("secret")
    strike(sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".env"), where, done)
    more = {"push": ["a/b", "--dry-run"], "html": ["--html", "page.html"], "figures": ["--figures", "drawn"]}[action]
    with contextlib.chdir(world.scratch):
        code, shown = world.command("push" if action == "push" else "report", str(run), *more)
    if ".env" in shown:
        raise SilentError("a file is pushed that the run did not write")
    return "accepted" if code == 0 else "refused"


def check_answers(world: World, encoding: str, ending: str, data: bytes) -> Verdict:
    """The rows of a file are answered, each in a line of finite figures, or none is."""
    file, out = world.folder / f"asked.{ending}", world.folder / "said.jsonl"
    file.write_bytes(data)
    code, _ = world.command("predict", str(world.run), str(file), "-o", str(out), "--overwrite", "--encoding", encoding)
    if code != 0:
        return "refused"
    for line in out.read_text(encoding="utf-8").splitlines():
        strict_json(line)
    return "accepted"


def _actions(usual: str, rare: str) -> st.SearchStrategy[str]:
    """The rare one draws a figure, and so takes a second."""
    return st.integers(0, 19).flatmap(lambda n: st.just(rare) if n == 0 else st.sampled_from(usual.split()))


# ---------------------------------------------------------------- command lines

COMMANDS = {
    "evaluate": "RUN --form static --split validation test --json calibrated merged",
    "gap": "RUN --split --examples 3 0 -1 --output OUT --json",
    "sigma": "RUN --examples 3 --output OUT --json",
    "merge": "RUN -o OUT --form static dynamic --overwrite --json RUN/adapter",
    "export": "RUN -o OUT --form static --dtype float16 --overwrite --json",
    "predict": "RUN film --json OUT RUN/adapter RUN/lora MODEL",
    "train": "RECIPE -o RUN OUT training.epochs=1 seed=1 method.r=0 --json =",
    "report": "RUN --figures OUT --html OUT/p.html --title",
    "generate": "RUN dog -o OUT --images 1 --seed --steps --guidance --json",
    "reproduce": "table1 table9 --dry-run --scale hub packaged --only cola --seeds 0,1",
    "sweep": "STUDY -o OUT --dry-run --jobs 1 --json",
    "list": "tasks methods models recipes suites studies --json task",
    "pretrain": "nope --json",
    "--version": "-h",
    "-h": "-h",
    "trian": "-h",
}
LONG = {"reproduce": "--dry-run", "sweep": "--dry-run", "pretrain": "--nope"}
"""Commands that take minutes when they are right: each gets an option with which they do not."""
words = st.sampled_from(
    [word for word in hostile.WORDS if not any(taboo in word for taboo in ("..", "/", "~", "\x00"))]
)
"""No word is given with which a command may write elsewhere."""


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command, what is often given with it, and what never is."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    usual = st.sampled_from(COMMANDS[name].split())
    line = [name, *(["RUN"] if COMMANDS[name].startswith("RUN") and draw(st.booleans()) else [])]
    line += ["-o", "OUT"] if name in ("merge", "export") and draw(st.booleans()) else []
    line += draw(st.lists(st.one_of(usual, usual, words), max_size=5))
    if draw(st.integers(0, 9)) == 0:
        place = draw(st.sampled_from(["/dev/full", "/proc/x", "OUT/" + "a" * 300]))
        line.insert(draw(st.integers(0, len(line))), place)
    return [*line, LONG[name]] if name in LONG else line


def check_line(world: World, line: list[str]) -> Verdict:
    """A command line ends as it should, or in words and exit code 2."""
    places = {"RUN": world.copy(world.run), "OUT": world.scratch / "out", "MODEL": world.model}
    places |= {"RECIPE": world.recipe, "STUDY": world.study_path}
    args = []
    for word in line:
        first, slash, rest = word.partition("/")
        args.append(f"{places[first]}{slash}{rest}" if first in places else word)
    with contextlib.chdir(world.scratch):
        code, _ = world.command(*args)
    return "accepted" if code == 0 else "refused"


def layers(world: World) -> dict[str, Layer]:
    """The layers of this file."""
    return {
        "command lines": Layer(
            "commands, options and values in any order",
            "ends with exit code 0; with `--json` what it prints is JSON of finite figures",
            lines(),
            lambda line: check_line(world, line),
            full=3000,
            small=60,
        ),
        "adapter folders": Layer(
            "bits, tensors and settings of a finished run's `adapter/`, and a command on it",
            "gives the same scores, labels, model or LoRA as the undamaged run",
            st.tuples(_actions("predict predict evaluate merge export", "gap"), part, damage),
            lambda given: check_run(world, *given, adapter=True),
            full=3000,
            small=30,
        ),
        "run folders": Layer(
            "recipe, result, LoRA and other files of a finished run, and a command on it",
            "gives the same; what shows `result.json` shows finite figures",
            st.tuples(_actions("predict evaluate merge report train", "sigma"), part, damage),
            lambda given: check_run(world, *given, adapter=False),
            full=1200,
            small=12,
        ),
        "shown and pushed": Layer(
            "files of a finished run, and `report --html`, `report --figures` or `push --dry-run` of it",
            "shows it; lists no file to be pushed that the run did not write",
            st.tuples(_actions("push push push html", "figures"), part, damage),
            lambda given: check_shown(world, *given),
            full=600,
            small=10,
        ),
        "answered files": Layer(
            "files of texts in any encoding, answered by `aurora predict FILE`",
            "has a line of finite figures for each row",
            st.tuples(st.sampled_from(ENCODINGS), st.sampled_from(("csv", "json", "jsonl", "txt")), asked),
            lambda given: check_answers(world, *given),
            full=600,
            small=20,
        ),
        "model folders": Layer(
            "files of a merged model, and `aurora predict` on it",
            "answers with finite probabilities",
            st.tuples(part, damage),
            lambda given: check_model(world, *given),
            full=800,
            small=20,
        ),
        "checkpoints": Layer(
            "files of the checkpoints of a begun run, which then goes on",
            "ends with the same scores and epochs as the run that nothing happened to",
            st.tuples(part, damage),
            lambda given: check_begun(world, *given),
            full=150,
            small=2,
        ),
    }
