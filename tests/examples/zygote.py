"""Forks a run of an example for each order, which has its arguments `args`, script first.

One that takes longer than `limit` seconds ends with status 1, and stderr says where each of its threads was.
"""

import faulthandler
import importlib
import runpy
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import forks
from aurora_lora.extras import drop_import_noise

EXAMPLES = Path(__file__).parents[2] / "examples"
IMPORTED = ("common", "accelerate", "bitsandbytes", "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp")
FROM_TRL = ("SFTConfig", "SFTTrainer")  # which trl imports when they are asked for


def example(order: forks.Order, answer: forks.Order) -> None:
    """Run it."""
    faulthandler.dump_traceback_later(order["limit"], exit=True)  # also where a thread holds the interpreter's lock
    sys.argv = [str(arg) for arg in order["args"]]
    runpy.run_path(str(EXAMPLES / sys.argv[0]), run_name="__main__")


if __name__ == "__main__":
    drop_import_noise()
    sys.path.insert(0, str(EXAMPLES))
    for name in IMPORTED:
        importlib.import_module(name)
    for name in FROM_TRL:
        getattr(importlib.import_module("trl"), name)
    forks.serve(example)
