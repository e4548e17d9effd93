"""Fixtures: the stand-in hub, and the command as a user runs it who has set up nothing but a token."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forks import forked

pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")

sys.path.insert(0, str(Path(__file__).parent))

import hub_data
import hub_models
import hub_server

ZYGOTE = Path(__file__).parents[1] / "train" / "zygote.py"
IMPORTS = (
    "aurora_lora.lab.experiments.reproduce",
    "aurora_lora.lab.report.paper",
    "aurora_lora.diffusion.run",
    "diffusers",
)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hub_server.Hub]:
    """The hub, with the models and data sets of the paper."""
    root = tmp_path_factory.mktemp("hub")
    hub_data.write(root)
    hub_models.write(root)
    with hub_server.serving(root, (hub_models.LLAMA,)) as served:
        yield served


@pytest.fixture(scope="session")
def environment(hub: hub_server.Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the commands: this hub is the hub, and nothing has been downloaded yet."""
    changes = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path_factory.mktemp("home")),
        "HF_TOKEN": hub_server.TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return {key: value for key, value in os.environ.items() if key != "AURORA_LORA_DATA"} | changes


@pytest.fixture(scope="session")
def aurora(environment: dict[str, str]) -> Iterator[Callable[..., dict[str, Any]]]:
    """`aurora(argument, ...)` runs the command in a process of its own, which has imported everything already."""
    with forked(ZYGOTE, *IMPORTS, env=environment) as ask:

        def run(*args: object, **env: str) -> dict[str, Any]:
            (answer,) = ask({"args": [str(arg) for arg in args], "folder": "/nowhere", "env": env})
            return answer

        yield run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all runs, as `runs/hub` is a user's."""
    return tmp_path_factory.mktemp("runs")
