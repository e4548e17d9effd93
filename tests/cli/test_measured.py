"""Commands that measure: whether there is a place for what they find is asked before they measure."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aurora_lora.cli import deploy, ranks
from aurora_lora.errors import UserError

RECIPE = """
name: mine
model: owner/name
task: {name: movie-sentiment}
method: {name: aurora}
"""


def _sigma(output: Path) -> None:
    deploy.sigma(output, output=output)


def _gap(output: Path) -> None:
    (output / "recipe.yaml").touch()
    deploy.gap(output, output=output, data=None, model=None, column=None, encoding=None, merges=None)


def _adapter_gap(output: Path) -> None:
    (output / "adapter_config.json").touch()
    deploy.gap(output, output=output, data=output / "texts.csv", model=None, column=None, encoding=None, merges=None)


def _rank(output: Path) -> None:
    (output / "recipe.yaml").write_text(RECIPE)
    ranks.rank(str(output / "recipe.yaml"), output=output)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (_sigma, "sigma.json"),
        (_sigma, "sigma.png"),
        (_gap, "gap.json"),
        (_gap, "merges.svg"),
        (_adapter_gap, "gap.svg"),
        (_rank, "ranks.json"),
        (_rank, "ranks.png"),
    ],
)
def test_a_link_in_its_place_is_refused_before_anything_is_measured(
    command: Callable[[Path], None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("measured, for nothing")

    for module, function in (
        ("measuring", "learned_activation"),
        ("measuring", "gap"),
        ("measuring", "adapter_gap"),
        ("ranking", "ranking"),
    ):
        monkeypatch.setattr(f"aurora_lora.train.{module}.{function}", measured)
    run = SimpleNamespace(test_sets=("test",), subject="a run")
    monkeypatch.setattr("aurora_lora.train.finished_run.load_run", lambda folder: run)
    monkeypatch.setattr(ranks, "make_models", lambda models: None)
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"{name} is a link: "):
        command(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(AssertionError, match="for nothing"):
        command(tmp_path)
