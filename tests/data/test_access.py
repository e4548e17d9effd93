"""Gated models, on a small stand-in for the hub's answers."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.data import models as access
from aurora_lora.errors import UserError
from aurora_lora.lab.experiments.reproduce import prepare
from aurora_lora.train import train

GATED = "meta-llama/Meta-Llama-3-8B"


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does to those who have not accepted the licence; notes which models are asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        if "/models/" in self.path:
            self.asked.append(self.path)
        gated = GATED in self.path
        self.send_response(401 if gated else 200)
        if gated:
            self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: object) -> None:
        """Quietly."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    Hub.asked = []
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield Hub.asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_who_is_not_stopped(hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    access.check_access("FacebookAI/roberta-base")
    assert len(hub) == 1
    for name in ("minilm-l6", str(tmp_path), "no hub's name!"):
        access.check_access(name)
    assert len(hub) == 1  # nobody was asked
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda model, name: "/somewhere/config.json")
    access.check_access(GATED)
    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")  # nobody answers there
    access.check_access(GATED)


def test_before_anything_is_downloaded(hub: list[str], tmp_path: Path) -> None:
    recipe = next(iter(prepare("table2", "hub", tmp_path, only=["lora"]).jobs.values())).recipe
    with pytest.raises(UserError, match="is gated: accept its licence"):
        train(recipe, tmp_path / "run")  # type: ignore[arg-type]
    args = ["reproduce", "table2", "--scale", "hub", "-o", str(tmp_path)]
    plan = CliRunner().invoke(cli.app, [*args, "--dry-run"])
    assert (plan.exit_code, plan.stderr.count(f"note: {GATED} is gated: accept")) == (0, 1)
    done = CliRunner().invoke(cli.app, args)
    assert done.exit_code == 2
    assert re.match(rf"{GATED} is gated: accept its licence at .*/{GATED}, then log in \(`hf auth", done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert set(hub) == {f"/api/models/{GATED}/auth-check"}
