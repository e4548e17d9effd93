"""Runs of `aurora` that can be killed: each order is a process forked from one that has imported everything."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Order = dict[str, Any]


@contextmanager
def aurora_processes() -> Iterator[Callable[..., list[Order]]]:
    """`aurora(order, ...)` runs the command once for each order of zygote.py, all at the same time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    script = str(Path(__file__).with_name("zygote.py"))
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"

        def run(*orders: Order) -> list[Order]:
            process.stdin.write(json.dumps(orders) + "\n")
            process.stdin.flush()
            answers: list[Order] = json.loads(process.stdout.readline())
            return answers

        yield run
        process.stdin.close()
