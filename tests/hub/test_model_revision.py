"""A base model of the hub at a revision: what is asked of the hub, and the commit in the run's result."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

import own_files
import tiny

pytestmark = pytest.mark.slow
CHILD = "import sys\nfrom aurora_lora.cli import main\nmain()"
NAME = "some/model"
SETTINGS = ["training.epochs=1", "training.batch_size=8", "training.threads=1", "calibration.examples=16"]


def test_a_revision_of_a_model(tmp_path: Path) -> None:
    """No weights or tokens of another branch are downloaded."""
    root, here = tmp_path / "hub", own_files.write_texts(tmp_path / "here")
    tiny.save_model(root / "models" / "some" / "model@v2", width=24)
    (root / "models" / "some" / "model").mkdir()
    shutil.copy(root / "models" / "some" / "model@v2" / "config.json", root / "models" / "some" / "model")
    commit = hashlib.sha1(f"models/{NAME}@v2".encode()).hexdigest()
    with hub_server.serving(root) as hub:
        changes = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "x"}

        own = {key: value for key, value in os.environ.items() if key != "AURORA_LORA_DATA"} | changes
        recipe = ["classification", *own_files.OVERRIDES["classification"], *SETTINGS]
        command = ["train", *recipe, f"model={{name: {NAME}, revision: v2}}", "--output", "run"]
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *command], cwd=here, env=own, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr
        files = [one.rpartition("/resolve/")[2].split("/") for one in hub.asked if f"/{NAME}/resolve/" in one]
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path[-1] for path in files}
        # PEFT looks the size of the vocabulary up, always on main, when it saves an adapter
        assert {path[-1] for path in files if path[0] not in ("v2", commit)} <= {"config.json"}
    result = json.loads((here / "run" / "result.json").read_text())
    assert result["model_commit"] == commit
    assert result["recipe"]["model"] == {"name": NAME, "revision": "v2"}
