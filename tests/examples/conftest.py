"""Fixtures of the examples' tests: a process that forks runs, and the examples' own helpers."""

import importlib.util
import os
import re
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from forks import Order, forked

EXAMPLES = Path(__file__).parents[2] / "examples"
LIMIT, LIMIT_TOGETHER = 130, 60
"""Seconds of a run in one process and in several: two of these fit into a test's time."""
HUNG = re.compile(r"^Timeout \([\d:.]+\)!$", re.MULTILINE)


@pytest.fixture(scope="session")
def common() -> ModuleType:
    """`examples/common.py`."""
    spec = importlib.util.spec_from_file_location("aurora_examples_common", EXAMPLES / "common.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def _ask() -> Iterator[Callable[..., list[Order]]]:
    pytest.importorskip("trl")
    pytest.importorskip("bitsandbytes")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    with forked(Path(__file__).with_name("zygote.py"), env=environment) as ask:
        yield ask


@pytest.fixture(scope="session")
def run_example(_ask: Callable[..., list[Order]]) -> Callable[..., str]:
    """`run_example("ddp.py", output, *options, processes=1, model="tiny")`; gives what the first process printed.

    With several processes, each gets the environment that torchrun and `accelerate launch` give it. Where they hang,
    they are stopped and started once more: on a busy machine gloo was seen to, at the end.
    """

    def orders(args: list[str], processes: int, limit: float) -> list[Order]:
        common, order = {"ACCELERATE_USE_CPU": "true"}, {"args": args, "limit": limit}
        if processes == 1:
            return [{**order, "env": common}]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = map(str, range(processes))
        return [{**order, "env": {**common, "RANK": rank, "LOCAL_RANK": rank}} for rank in ranks]

    def run(script: str, output: Path, *options: str, processes: int = 1, model: str = "tiny", limit: float = 0) -> str:
        limit = limit or (LIMIT if processes == 1 else LIMIT_TOGETHER)
        args = [script, "--model", model, "--output", str(output), *options]
        answers = _ask(*orders(args, processes, limit))
        hung = [_printed(answer) for answer in answers if HUNG.search(_printed(answer))]
        if hung and processes > 1:
            warnings.warn("\n".join(["the processes hung, and are started once more:", *hung]), stacklevel=2)
            answers = _ask(*orders(args, processes, limit))
        for answer in answers:
            assert answer["status"] == 0, _printed(answer)
        return _printed(answers[0])

    return run


def _printed(answer: Order) -> str:
    printed: str = answer["stdout"] + answer["stderr"]
    return printed


@pytest.fixture(scope="session")
def losses() -> Callable[[str], list[float]]:
    """The losses that an example printed."""
    return lambda output: [float(value) for value in re.findall(r"^step \d+/\d+: loss ([\d.]+)$", output, re.MULTILINE)]
