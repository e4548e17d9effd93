"""Forks a run of `aurora` for each order, to be killed or interrupted at any moment.

An order has `args` of the command, the run's `folder`, and, if wanted, `kill_at`, `interrupt_at`, `terminate_at`
(numbers of the child's writing operations in that folder: it is killed -9, or gets the signal, just before),
`terminate_in` (a step: SIGTERM comes in it) and `file_limit` (bytes). Its answer has the number of `events` (writing
operations). Arguments of the script are further modules to import.
"""

import gc
import importlib
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import tiny
import torch

import forks
from aurora_lora import cli
from aurora_lora.train import deploying, measuring, predicting, run, trainer  # noqa: F401 (what the commands import)
from aurora_lora.train.trainer import quiet_libraries

WRITING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def count_events(order: forks.Order, answer: forks.Order) -> None:
    """Count what changes the folder on disk, and strike at the event asked for."""
    answer["events"] = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        writes = event in WRITING or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"))
        if not writes or not args or not str(args[0]).startswith(order["folder"]):
            return
        answer["events"] += 1
        if answer["events"] == order.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if answer["events"] == order.get("interrupt_at"):
            raise KeyboardInterrupt
        if answer["events"] == order.get("terminate_at"):
            os.kill(os.getpid(), signal.SIGTERM)

    sys.addaudithook(hook)


def terminate_in(step: int) -> None:
    """SIGTERM, once in a step; a second one as well, as some schedulers send it."""
    begun = trainer.WholeCheckpoints.on_step_begin

    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        begun(self, args, state, control, **kwargs)
        if state.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.WholeCheckpoints.on_step_begin = on_step_begin  # type: ignore[method-assign]


def command(order: forks.Order, answer: forks.Order) -> None:
    """Run it."""
    if order.get("file_limit"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], resource.RLIM_INFINITY))
    if order.get("terminate_in"):
        terminate_in(order["terminate_in"])
    count_events(order, answer)
    sys.argv = ["aurora", *map(str, order["args"])]
    cli.main()


if __name__ == "__main__":
    torch.set_num_threads(1)
    tiny.register()
    quiet_libraries()
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.freeze()  # a child's collections need not look through all that was imported
    forks.serve(command)
