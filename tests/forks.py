"""Processes that are forked from one that has imported everything: tests start, kill and restart runs cheaply.

Forking the test process itself would not do: PyTorch's threads do not survive a fork. `forked` starts a script that
imports what its runs need and then calls `serve`. Each line of its stdin is a list of orders, JSON objects, which run
at the same time, a child each; a line of its stdout has the answers.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

Order = dict[str, Any]
READY = "ready"
STREAMS = ("stdout", "stderr")


@contextmanager
def forked(script: Path, *args: str, env: Mapping[str, str] | None = None) -> Iterator[Callable[..., list[Order]]]:
    """`ask(order, ...)` runs each order in a process of its own, all at the same time, and gives their answers.

    It begins at once and does not wait for the script's imports: the first orders do.

    Args:
        script: what imports and serves.
        args: of the script.
        env: the environment; by default this one, with one thread.
    """
    env = env or {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(script), *args]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        ready = False

        def ask(*orders: Order) -> list[Order]:
            nonlocal ready
            while not ready:  # libraries greet on stdout too
                line = stdout.readline()
                assert line, f"{script} ended before it was ready"
                ready = line.strip() == READY
            stdin.write(json.dumps(orders) + "\n")
            stdin.flush()
            answers: list[Order] = json.loads(stdout.readline())
            return answers

        yield ask
        process.kill()  # it has nothing to save, and would take seconds to tidy up


Run = Callable[[Order, Order], object]
"""Carries out an order, and puts what it has to tell beyond the status into the answer."""


def serve(run: Run) -> None:
    """Answer orders until stdin ends.

    An order may have `env`, variables of its environment, and `kill_after`, seconds. An answer has `status`, negative
    for a signal, `stdout`, `stderr`, and what `run` put there.
    """
    print(READY, flush=True)
    for line in sys.stdin:
        running = [(order, *_start(run, order)) for order in json.loads(line)]
        print(json.dumps([_answer(*one) for one in running]), flush=True)


def _start(run: Run, order: Order) -> tuple[int, Path]:
    folder = Path(tempfile.mkdtemp())
    pid = os.fork()
    if pid == 0:
        _child(run, order, folder)
    return pid, folder


def _child(run: Run, order: Order, folder: Path) -> NoReturn:
    for stream, name in enumerate(STREAMS, start=1):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.update(order.get("env") or {})
    answer: Order = {}
    code = 0
    try:
        run(order, answer)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 70
    (folder / "answer").write_text(json.dumps(answer))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _answer(order: Order, pid: int, folder: Path) -> Order:
    if order.get("kill_after") is not None:
        time.sleep(order["kill_after"])
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    texts = {path.name: path.read_text(errors="replace") for path in folder.iterdir()}
    shutil.rmtree(folder)
    more = json.loads(texts.pop("answer", "{}"))
    return {"status": os.waitstatus_to_exitcode(status), **dict.fromkeys(STREAMS, ""), **texts, **more}
