"""A process that has imported what the examples import, and forks a child for each run of one.

Each line of stdin is a list of orders, JSON objects with the arguments `args` (script first) and the environment `env`.
They run at the same time; the answers give `status` and `output` (stdout and stderr). One that takes longer than
`limit` seconds ends with status 1, and its output says where each of its threads was.
"""

import faulthandler
import importlib
import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

from aurora_lora.import_noise import drop_import_noise

EXAMPLES = Path(__file__).parents[2] / "examples"
IMPORTED = ("common", "accelerate", "bitsandbytes", "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp")
FROM_TRL = ("SFTConfig", "SFTTrainer")  # which trl imports when they are asked for


def child(order: dict[str, object], output: str) -> None:
    """Run the example; never returns."""
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.update(order["env"])
    faulthandler.dump_traceback_later(order["limit"], exit=True)  # also where a thread holds the interpreter's lock
    code = 0
    try:
        sys.argv = [str(arg) for arg in order["args"]]
        runpy.run_path(str(EXAMPLES / sys.argv[0]), run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Answer orders until stdin ends."""
    drop_import_noise()
    sys.path.insert(0, str(EXAMPLES))
    for name in IMPORTED:
        importlib.import_module(name)
    for name in FROM_TRL:
        getattr(importlib.import_module("trl"), name)
    print("ready", flush=True)
    for line in sys.stdin:
        running = []
        for order in json.loads(line):
            output = os.path.join(tempfile.mkdtemp(), "output")
            pid = os.fork()
            if pid == 0:
                child(order, output)
            running.append((pid, output))
        answers = []
        for pid, output in running:
            _, status = os.waitpid(pid, 0)
            text = Path(output).read_text(errors="replace") if os.path.exists(output) else ""
            answers.append({"status": os.waitstatus_to_exitcode(status), "output": text})
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    serve()
