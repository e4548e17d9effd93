"""Sigma and what reaches it, drawn from a record."""

from typing import Any

import pytest

from aurora_lora.errors import UserError
from aurora_lora.lab.report.measured import sigma_figure


def record(layers: int | list[str], r: int, train_form: str = "dynamic") -> dict[str, Any]:
    def channel(n: int) -> dict[str, Any]:
        return {"z": [-1.0, 0.0, 1.0 + n], "before": [-0.7, 0.0, 0.7], "after": [-0.9, 0.0, 0.8 + n],
                "edges": [-1.0, 0.0, 1.0], "counts": [3 + n, 1]}  # fmt: skip

    kinds = ("query", "value")
    names = [f"bert.layer.{n}.{kind}" for n in range(layers) for kind in kinds] if isinstance(layers, int) else layers
    made = [{"layer": name, "vectors": 4, "channels": [channel(n) for n in range(r)]} for name in names]
    return {"examples": 1256, "train_form": train_form, "layers": made}


def test_a_panel_for_each_layer() -> None:
    figure = sigma_figure(record(2, 2))
    panels = [ax for ax in figure.axes if ax.get_title(loc="left")]
    assert [ax.get_title(loc="left") for ax in panels] == ["query 0", "value 0", "query 1", "value 1"]
    before, after, _, other = panels[0].lines
    assert before.get_ydata().tolist() == [-0.7, 0.0, 0.7]
    assert after.get_ydata().tolist() == [-0.9, 0.0, 0.8]
    assert other.get_xydata()[-1].tolist() == [2.0, 1.8]
    (bars,) = [ax for ax in figure.axes if not ax.get_title(loc="left") and ax.bbox.bounds == panels[0].bbox.bounds]
    assert [patch.get_data().values.tolist() for patch in bars.patches] == [[3, 1], [4, 1]]
    assert [ax.get_xlabel() for ax in panels] == ["", "", "z", "z"]
    assert [ax.get_ylabel() for ax in panels] == ["sigma(z)", "", "sigma(z)", ""]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "channel 1, trained",
        "channel 2, trained",
        "at the start",
        "histogram of z_1",
        "histogram of z_2",
    ]
    assert figure.get_suptitle() == "sigma along each channel, the other at 0; z of 1,256 inputs"


def test_deep_models_and_many_channels() -> None:
    figure = sigma_figure(record(32, 8, "static"))
    shown = [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left").startswith("value")]
    assert len(shown) == 8
    assert (shown[0], shown[-1]) == ("value 0", "value 31")
    assert all(len(ax.lines) in (0, 4) for ax in figure.axes)
    assert figure.get_suptitle() == "sigma along channels 1 and 2 of 8, the others at 0; z of the columns of A"


def test_layers_of_one_name_are_told_apart() -> None:
    """All linear layers of BERT: three in a block are `dense`, and so is the pooler."""
    kinds = ("attention.output.dense", "intermediate.dense", "output.dense")
    names = [f"bert.layer.{n}.{kind}" for n in range(3) for kind in kinds if (n, kind) != (1, "intermediate.dense")]
    figure = sigma_figure(record([*names, "bert.pooler.dense"], 2))
    titles = {title: ax for ax in figure.axes if (title := ax.get_title(loc="left"))}
    expected = [f"{name.removeprefix(f'bert.layer.{name[11]}.')} {name[11]}" for name in names]
    assert [*titles] == [*expected, "bert.pooler.dense"]
    figure.draw_without_rendering()
    left = {title: round(ax.bbox.x0) for title, ax in titles.items()}
    assert left["output.dense 1"] == left["output.dense 0"] != left["intermediate.dense 0"]
    labelled = {title for title, ax in titles.items() if ax.get_xlabel()}
    assert labelled == {"intermediate.dense 2", "output.dense 2", "bert.pooler.dense"}
    figure = sigma_figure(record(["fc1", "fc2"], 2))
    assert [ax.get_title(loc="left") for ax in figure.axes if ax.lines] == ["fc1", "fc2"]


def test_no_layers() -> None:
    with pytest.raises(UserError, match="at least one layer"):
        sigma_figure(record(0, 2))
