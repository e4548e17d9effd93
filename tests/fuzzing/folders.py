"""Layers of folders: finished runs with damaged adapters or other files, begun runs with damaged checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import hostile
from .runner import Layer, SilentError, Verdict
from .world import TEXTS, World, strict_json

Draw = Callable[[st.SearchStrategy[Any]], Any]
FIGURES = ("gap", "sigma")
"""Commands that draw, and so take a second."""

# ---------------------------------------------------------------- damage

BYTES = ("flip", "truncate", "delete", "empty", "append", "words", "folder", "zeros")
TENSORS = ("nan", "inf", "scale", "zero", "drop", "rename", "reshape", "half", "swap", "more", "bare", "nudge")
JSONS = ("set", "drop", "value")

damage = st.one_of(
    st.tuples(st.just("bytes"), st.sampled_from(BYTES), st.floats(0, 1, exclude_max=True), hostile.scalars),
    st.tuples(st.just("tensors"), st.sampled_from(TENSORS), st.floats(0, 1, exclude_max=True), hostile.scalars),
    st.tuples(st.just("json"), st.sampled_from(JSONS), st.floats(0, 1, exclude_max=True), hostile.values),
)
Damage = tuple[str, str, float, Any]


def strike(files: list[Path], where: float, done: Damage) -> bool:
    """Damage one of the files; whether anything was changed."""
    kind, how, at, value = done
    endings = {"bytes": "", "tensors": ".safetensors", "json": ".json"}[kind]
    files = [path for path in files if path.name.endswith(endings)]
    if not files:
        return False
    path = files[int(where * len(files))]
    before = path.read_bytes()
    if kind == "bytes":
        _strike_bytes(path, before, how, at, value)
    elif kind == "tensors":
        _strike_tensors(path, how, at)
    else:
        _strike_json(path, how, at, value)
    return not path.is_file() or path.read_bytes() != before


def _strike_bytes(path: Path, data: bytes, how: str, at: float, value: Any) -> None:
    place = int(at * len(data))
    if how in ("delete", "folder"):
        path.unlink()
        if how == "folder":
            path.mkdir()
        return
    flipped = bytes([data[place] ^ (1 << int(8 * at * 1000) % 8)]) if data else b""
    path.write_bytes(
        {
            "flip": data[:place] + flipped + data[place + 1 :],
            "truncate": data[:place],
            "empty": b"",
            "append": data + b"\0more",
            "words": repr(value).encode("utf-8", "surrogatepass"),
            "zeros": bytes(len(data)),
        }[how]
    )


def _strike_tensors(path: Path, how: str, at: float) -> None:
    tensors: dict[str, Tensor] = load_file(path)
    name = sorted(tensors)[int(at * len(tensors))]
    value = tensors[name]
    if how in ("nan", "inf", "scale", "zero", "nudge") and value.numel():
        changed = value.clone()
        flat = changed.view(-1)
        if how in ("nan", "inf") and changed.is_floating_point():
            flat[int(at * 997) % len(flat)] = float(how)
        elif how == "nudge":
            flat[int(at * 997) % len(flat)] += 1
        elif how in ("scale", "zero"):
            changed = changed * (0 if how == "zero" else 2)
        tensors[name] = changed
    elif how == "drop":
        del tensors[name]
    elif how == "rename":
        tensors[f"{name}_x"] = tensors.pop(name)
    elif how == "bare":
        tensors[name.removeprefix("base_model.model.")] = tensors.pop(name)
    elif how == "reshape":
        tensors[name] = value.reshape(-1)[: max(value.numel() - 1, 0)].clone()
    elif how == "half":
        tensors[name] = value.to(torch.float16) if value.is_floating_point() else value.to(torch.int16)
    elif how == "more":
        tensors[f"{name}.more"] = torch.ones(2)
    elif how == "swap":
        other = sorted(tensors)[-1]
        tensors[name], tensors[other] = tensors[other].clone(), value.clone()
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
            inner = sorted(stored[name])[int(at * 997) % len(stored[name])]
            stored[name][inner] = value
        else:
            stored[name] = value
    try:
        path.write_text(json.dumps(stored), encoding="utf-8")
    except (TypeError, ValueError, RecursionError):
        path.write_text(repr(stored), encoding="utf-8", errors="surrogatepass")


# ---------------------------------------------------------------- checks


def _actions(*names: str) -> st.SearchStrategy[str]:
    usual = [name for name in names if name not in FIGURES]
    rare = [name for name in names if name in FIGURES]
    few = [st.sampled_from(rare)] if rare else []
    return st.integers(0, 19).flatmap(lambda n: few[0] if n == 0 and few else st.sampled_from(usual))


def check_adapter(world: World, given: tuple[str, float, Damage, bool]) -> Verdict:
    """A run with a damaged adapter gives what the undamaged one gives, or one line; an earlier version's, numbers."""
    action, where, done, is_earlier = given
    expected = world.expected(action)
    run = world.copy(world.run)
    files = sorted(path for path in (run / "adapter").iterdir() if path.suffix in (".safetensors", ".json"))
    if is_earlier:
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        del result["adapter_sha256"]
        (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
    strike(files, where, done)
    found = world.outcome(action, run)
    if found is None:
        return "refused"
    if is_earlier:
        if action in ("merge", "export") and not world.is_finite_output():
            raise SilentError(f"{action} writes what is not finite")
    elif found != expected:
        raise SilentError(f"{action} gives something else, and says nothing")
    return "accepted"


def check_run(world: World, given: tuple[str, float, Damage]) -> Verdict:
    """As `check_adapter`, for the other files; what only shows result.json may show another one, if all is finite."""
    action, where, done = given
    expected = world.expected(action)
    run = world.copy(world.run)
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.parent.name != "adapter")
    files += [run / "recipe.yaml", run / "result.json"] * 3
    strike(files, where, done)
    found = world.outcome(action, run)
    if found is None:
        return "refused"
    if action in ("train", "report"):
        if "nan" in str(found).replace("finance", "").lower().split():
            raise SilentError(f"{action} shows NaN")
    elif found != expected:
        raise SilentError(f"{action} gives something else, and says nothing")
    return "accepted"


def check_begun(world: World, given: tuple[float, Damage]) -> Verdict:
    """A begun run whose checkpoints are damaged ends as the whole one did, or in one line."""
    where, done = given
    expected = world.expected("train")
    run = world.copy(world.begun)
    files = sorted(path for path in (run / "checkpoints").rglob("*") if path.is_file())
    strike(files, where, done)
    found = world.outcome("train", run)
    if found is None:
        return "refused"
    if found != expected:
        raise SilentError("the resumed run ends otherwise, and says nothing")
    return "accepted"


def check_model(world: World, given: tuple[float, Damage]) -> Verdict:
    """A merged model that is damaged says what it said, something else that is finite, or one line."""
    where, done = given
    run = world.copy(world.merged)
    strike(sorted(path for path in run.iterdir() if path.is_file()), where, done)
    code, shown = world.command("predict", str(run), *TEXTS, "--json")
    if code != 0:
        return "refused"
    if done[1] in ("drop", "rename", "more", "bare") and done[0] == "tensors" and strict_json(shown) != world.said:
        raise SilentError("predict answers otherwise, and says nothing")
    return "accepted"


def layers(world: World) -> list[Layer]:
    """The layers of this file."""
    part = st.floats(0, 1, exclude_max=True)
    return [
        Layer(
            "adapter folders",
            "bits, tensors and settings of a finished run's `adapter/`, and a command on it",
            "gives the same scores, labels, model or LoRA as the undamaged run; of an earlier version, finite ones",
            st.tuples(
                _actions("predict", "predict", "evaluate", "merge", "export", "gap"), part, damage, st.booleans()
            ),
            lambda given: check_adapter(world, given),
            full=3000,
            small=30,
        ),
        Layer(
            "run folders",
            "recipe, result, LoRA and other files of a finished run, and a command on it",
            "gives the same; what shows `result.json` shows finite figures",
            st.tuples(_actions("predict", "evaluate", "merge", "report", "train", "sigma"), part, damage),
            lambda given: check_run(world, given),
            full=1200,
            small=12,
        ),
        Layer(
            "model folders",
            "files of a merged model, and `aurora predict` on it",
            "answers with finite probabilities",
            st.tuples(part, damage),
            lambda given: check_model(world, given),
            full=800,
            small=20,
        ),
        Layer(
            "checkpoints",
            "files of the checkpoints of a begun run, which then goes on",
            "ends with the same scores and epochs as the run that nothing happened to",
            st.tuples(part, damage),
            lambda given: check_begun(world, given),
            full=150,
            small=2,
        ),
    ]
