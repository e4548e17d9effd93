"""A process that has imported everything and forks a child for each run: tests start, kill and restart runs cheaply.

Forking the test process itself would not do: PyTorch's threads do not survive a fork. Each line of stdin is a list of
orders, each a JSON object with `args` for `aurora`, the run's `folder`, and, if wanted, `env`, `kill_after` (seconds),
`kill_at`, `interrupt_at` (numbers of the child's writing operations in that folder: it is killed -9 or interrupted just
before) and `file_limit` (bytes). They run at the same time; the answers give `status`, negative for a signal, the
number of `events` (writing operations), `stdout` and `stderr`. Arguments of the script are further modules to import.
"""

import gc
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import tiny
import torch

from aurora_lora import cli
from aurora_lora.training import merge_and_predict, run, summary  # noqa: F401 (what the commands import)
from aurora_lora.training.progress import quiet_libraries

WRITING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def count_events(folder: str, kill_at: int | None, interrupt_at: int | None, counter: list[int]) -> None:
    """Count what changes the folder on disk, and strike at the event asked for."""

    def hook(event: str, args: tuple[object, ...]) -> None:
        writes = event in WRITING or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"))
        if not writes or not args or not str(args[0]).startswith(folder):
            return
        counter[0] += 1
        if counter[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if counter[0] == interrupt_at:
            raise KeyboardInterrupt

    sys.addaudithook(hook)


def child(order: dict[str, object], streams: list[str], report: str) -> None:
    """Run the command; never returns."""
    for stream, path in zip((1, 2), streams, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.update(order.get("env") or {})
    args = [str(arg) for arg in order["args"]]
    counter = [0]
    if order.get("file_limit"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], resource.RLIM_INFINITY))
    count_events(order["folder"], order.get("kill_at"), order.get("interrupt_at"), counter)
    code = 0
    try:
        sys.argv = ["aurora", *args]
        cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    Path(report).write_text(str(counter[0]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Answer orders until stdin ends."""
    torch.set_num_threads(1)
    tiny.register()
    quiet_libraries()
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.freeze()  # a child's collections need not look through all that was imported
    print("ready", flush=True)
    for line in sys.stdin:
        orders = json.loads(line)
        running = []
        for order in orders:
            folder = tempfile.mkdtemp()
            streams = [os.path.join(folder, name) for name in ("stdout", "stderr")]
            report = os.path.join(folder, "events")
            pid = os.fork()
            if pid == 0:
                child(order, streams, report)
            running.append((pid, order, streams, report))
        answers = []
        for pid, order, streams, report in running:
            if order.get("kill_after") is not None:
                time.sleep(order["kill_after"])
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            texts = [Path(path).read_text(errors="replace") if os.path.exists(path) else "" for path in streams]
            events = int(Path(report).read_text()) if os.path.exists(report) else None
            answers.append(
                {
                    "status": os.waitstatus_to_exitcode(status),
                    "events": events,
                    "stdout": texts[0],
                    "stderr": texts[1],
                }
            )
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    serve()
