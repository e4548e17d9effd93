"""`aurora bench`: what it writes and prints, going on after an interruption, and mistakes. On tiny sizes."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.errors import UserError
from aurora_lora.lab.bench import run as bench_run
from aurora_lora.lab.bench import timing
from aurora_lora.lab.bench.run import Unit, units

Invoke = Callable[..., Any]
QUICK = ("--quick", "--rounds", "2", "--threads", "1", "--variants", "aurora-dynamic,aurora-merged")


@pytest.fixture
def aurora() -> Invoke:
    return lambda *args: CliRunner().invoke(cli.app, ["bench", *map(str, args)])


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a finished benchmark, and what the command printed."""
    folder = tmp_path_factory.mktemp("bench")
    args = ["bench", "linear", "scaling", "--no-compile", *QUICK, "--output", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "LEAST_SAMPLE", 1e-3)
        return folder, CliRunner().invoke(cli.app, args)


def test_it_prints_tables_and_writes_results(measured: Any) -> None:
    folder, done = measured
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("wrote ")
    assert max(map(len, lines[:-1])) <= 80
    assert "…" not in done.stdout  # no cell is cut
    for row in ("frozen base", "LoRA r=8", "AuroRA dynamic r=2", "AuroRA merged", "8B AuroRA r=2", "tokens"):
        assert any(line.split("  ")[0].strip() == row for line in lines), row
    names = [f"{name}.{ending}" for name in ("linear", "scaling") for ending in ("json", "png", "svg")]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_the_record(measured: Any) -> None:
    record = json.loads((measured[0] / "linear.json").read_text())
    assert (record["schema"], record["workload"], record["status"]) == (1, "linear", "finished")
    assert record["settings"]["threads"] == 1
    assert record["environment"]["versions"]["torch"]
    (case,) = record["cases"]
    assert case["sizes"] == {"tokens": 64, "d": 32, "layers": 1, "adapted_layers": 1}
    entries = {entry["variant"]: entry for entry in case["variants"]}
    assert list(entries) == ["frozen", "lora-r8", "aurora-dynamic", "aurora-merged", "aurora-r8", "aurora-r16"]
    assert entries["lora-r8"]["training"]["per_layer"] == {"forward": 5, "both": 14}
    scaling = json.loads((measured[0] / "scaling.json").read_text())
    assert [axis["name"] for axis in scaling["axes"]] == ["tokens", "width", "rank", "layers", "adapters"]
    for axis in scaling["axes"]:
        assert set(axis["fits"]["seconds"]["aurora"]) == {"exponent", "standard_error"}
    assert {entry["calls"] for entry in scaling["paper"] if "LoRA r=8" in entry["method"]} == {14 * 160, 14 * 400}


def test_what_is_there_is_shown_again(measured: Any, aurora: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, done = measured
    monkeypatch.setattr(bench_run, "run_unit", lambda *_: pytest.fail("measured again"))
    again = aurora("linear", "scaling", "--no-compile", *QUICK, "-o", folder)
    assert again.exit_code == 0, again.output
    assert again.stdout == done.stdout
    assert again.stderr.splitlines() == [f"{name} was measured before: shown again" for name in ("linear", "scaling")]
    shown = json.loads(aurora("linear", "--no-compile", *QUICK, "-o", folder, "--json").stdout)
    assert shown["results"] == [json.loads((folder / "linear.json").read_text())]


def test_an_interrupted_run_goes_on(aurora: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    broken = {"scaling"}

    def measure(unit: Unit, settings: Any, progress: Any) -> dict[str, Any]:
        if unit.workload in broken:
            raise KeyboardInterrupt
        done.append(unit.name)
        environment: dict[str, Any] = {}
        plain = {"schema": 1, "workload": unit.workload, "compiled": unit.compiled, "environment": environment}
        return {**plain, "settings": bench_run.as_json(settings), "cases": []}

    monkeypatch.setattr(bench_run, "run_unit", measure)
    monkeypatch.setattr("aurora_lora.lab.report.bench_figures.write_figures", lambda *_: [])
    monkeypatch.setattr("aurora_lora.lab.report.bench_tables.tables", lambda *_: [])
    first = aurora("minilm-l6", "scaling", *QUICK, "-o", tmp_path)
    assert first.exit_code == 130
    assert first.stderr == "interrupted: the same command resumes where it was\n"
    for nothing_kept in ((), ("-o", tmp_path, "--overwrite")):
        assert aurora("scaling", *QUICK, *nothing_kept).stderr == "interrupted\n"
    broken.clear()
    assert aurora("minilm-l6", "scaling", *QUICK, "-o", tmp_path).exit_code == 0
    assert done == ["minilm-l6", "scaling"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["minilm-l6.json", "scaling.json"]


def test_units() -> None:
    assert [unit.name for unit in units((), None)] == [
        "linear",
        "linear-compiled",
        "minilm-l6",
        "smollm2-135m",
        "scaling",
    ]
    assert [unit.name for unit in units(("minilm-l6", "minilm-l6"), True)] == ["minilm-l6", "minilm-l6-compiled"]
    assert [unit.name for unit in units(("linear",), False)] == ["linear"]
    with pytest.raises(UserError, match="did you mean 'linear'"):
        units(("liner",), None)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["linea"], "workload 'linea': unknown workload; did you mean 'linear'?"),
        (["linear", "--rounds", "1"], "--rounds must be at least 2, got 1"),
        (["linear", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["linear", "--dtype", "int8"], "--dtype: 'int8' is not allowed: it must be one of float32, bfloat16, float16"),
        (["linear", "--device", "tpu"], "device='tpu' is not allowed"),
        (["linear", "--variants", "lora-r8,aurora"], "unknown variant; did you mean 'aurora-"),
        (["linear", "-o", "/proc/bench"], "cannot write /proc/bench"),
        (
            ["linear", "--no-compile", *QUICK, "--rounds", "3", "-o", "DIR"],
            "setting of rounds (there 2, here 3)",
        ),
        (["linear", "--no-compile", *QUICK, "-o", "OTHER"], "is not a result of aurora bench"),
    ],
)
def test_mistakes(aurora: Invoke, measured: Any, tmp_path: Path, args: list[str], message: str) -> None:
    if "/proc/bench" in args and not Path("/proc/self").exists():
        pytest.skip("/proc is Linux's")
    (tmp_path / "linear.json").write_text('{"schema": 1}')
    done = aurora(*(arg.replace("DIR", str(measured[0])).replace("OTHER", str(tmp_path)) for arg in args))
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


def test_no_compiler_is_one_line(aurora: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import exc

    def no_compiler(*_: Any) -> None:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr("aurora_lora.lab.bench.measure._phase", no_compiler)
    done = aurora("linear", *QUICK)
    assert done.exit_code == 2
    assert done.stderr == "torch.compile finds no C++ compiler: install one, or measure without compiling\n"


@pytest.mark.parametrize(("device", "expected"), [("cuda:1", ["cuda:1"]), ("cpu", [])])
def test_the_gpu_that_is_asked_for_is_the_current_one(
    device: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[str] = []

    @contextmanager
    def on(chosen: str) -> Iterator[None]:
        current.append(chosen)
        yield
        current.remove(chosen)

    monkeypatch.setattr(torch.cuda, "device", on)
    settings: Any = SimpleNamespace(device=device, threads=1)
    with bench_run._set_up(settings):
        assert current == expected
    assert current == []
