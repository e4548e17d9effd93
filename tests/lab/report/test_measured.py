"""Figures of what commands measure; the trajectory of the updates against scikit-learn's analysis of whole matrices."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import PCA

from aurora_lora.errors import UserError
from aurora_lora.lab.report.measured import gap_figure, sigma_figure, trajectories, trajectories_figure
from aurora_lora.lab.report.page import write_figures
from aurora_lora.lab.report.runs import Section

# ---------------------------------------------------------------- the merge gap


def test_a_gap_that_is_not_finite_is_a_gap_in_the_line() -> None:
    def gap(*errors: float | None) -> dict[str, Any]:
        layers = [
            {"layer": f"m.{place}.query", "form": "static", "relative_error": error}
            for place, error in enumerate(errors)
        ]
        return {"layers": layers}

    (ax,) = gap_figure(gap(0.1, None, 0.3)).axes
    drawn = list(ax.get_lines()[0].get_ydata())
    assert (drawn[0], math.isnan(drawn[1]), drawn[2]) == (10, True, 30)
    (ax,) = gap_figure(gap(0.1, None), gap(0.3, 0.2)).axes  # of the seeds that have one
    assert list(ax.get_lines()[0].get_ydata()) == pytest.approx([20, 20])
    gap_figure(gap(None))


def test_gap_figure_has_a_panel_for_each_kind_of_module() -> None:
    layers = [
        {"layer": f"layer.{i}.{kind}", "form": form, "relative_error": error * (i + 1)}
        for i in range(3)
        for kind in ("query", "value")
        for form, error in (("static", 0.3), ("calibrated", 0.05))
    ]
    figure = gap_figure({"layers": layers})
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["query", "value"]
    drawn = {of_form.get_label(): list(of_form.lines[0].get_ydata()) for of_form in figure.axes[0].containers}
    assert drawn["static (the paper's merge)"] == pytest.approx([30, 60, 90])
    with pytest.raises(UserError, match="at least one layer"):
        gap_figure({"layers": []})


# ---------------------------------------------------------------- sigma


def record(layers: int | list[str], r: int, train_form: str = "dynamic") -> dict[str, Any]:
    def channel(n: int) -> dict[str, Any]:
        return {"z": [-1.0, 0.0, 1.0 + n], "before": [-0.7, 0.0, 0.7], "after": [-0.9, 0.0, 0.8 + n],
                "edges": [-1.0, 0.0, 1.0], "counts": [3 + n, 1]}  # fmt: skip

    kinds = ("query", "value")
    names = [f"bert.layer.{n}.{kind}" for n in range(layers) for kind in kinds] if isinstance(layers, int) else layers
    made = [{"layer": name, "vectors": 4, "channels": [channel(n) for n in range(r)]} for name in names]
    return {"examples": 1256, "train_form": train_form, "layers": made}


def test_sigma_has_a_panel_for_each_layer() -> None:
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
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "channel 1, trained",
        "channel 2, trained",
        "at the start",
        "histogram of z_1",
        "histogram of z_2",
    ]
    assert figure.get_suptitle() == "sigma along each channel, the other at 0; z of 1,256 inputs"
    with pytest.raises(UserError, match="at least one layer"):
        sigma_figure(record(0, 2))


# ---------------------------------------------------------------- the trajectory of the updates

LAYERS = {"bert.q": (6, 5), "bert.v": (4, 5)}
EPOCHS = 4


@pytest.fixture
def section(make_result: Callable[..., Any], load: Callable[[list[Any]], Section]) -> Section:
    """LoRA of rank 2 and AuroRA of rank 3 with two forms, two seeds each; LoRA does not start at 0, as PiSSA."""
    rng, results = np.random.default_rng(0), []
    kinds = (("lora", 2, ("merged",)), ("aurora", 3, ("static", "calibrated")))
    for method, _, forms in kinds:
        results += [make_result(method, 1e-3, seed, 100, dict.fromkeys(forms, 0.8)) for seed in (0, 1)]
    found = load(results)
    ranks = {method: (r, forms) for method, r, forms in kinds}
    for run in found.runs.itertuples():
        r, forms = ranks[run.method]
        (run.folder / "updates").mkdir()
        for epoch in range(EPOCHS):
            tensors = {}
            for form in forms:
                for layer, (d_out, d_in) in LAYERS.items():
                    scale = 1.0 if run.method == "lora" else epoch
                    tensors[f"{form}/{layer}/left"] = scale * rng.normal(size=(d_out, r)).astype(np.float32)
                    tensors[f"{form}/{layer}/right"] = rng.normal(size=(r, d_in)).astype(np.float32)
            save_file(tensors, run.folder / "updates" / f"epoch-{epoch:03d}.safetensors")
    return found


def whole(runs: pd.DataFrame) -> list[np.ndarray]:
    """Of each run and form, the updates since the start as one vector for each epoch: (epochs, all weights)."""
    ways = []
    for run in runs.itertuples():
        files = [load_file(path) for path in sorted((run.folder / "updates").iterdir())]
        for form in ("merged",) if run.method == "lora" else ("calibrated", "static"):
            rows = [
                np.concatenate([(f[f"{form}/{k}/left"].astype(float) @ f[f"{form}/{k}/right"]).ravel() for k in LAYERS])
                for f in files
            ]
            ways.append(np.array(rows) - rows[0])
    return ways


def test_the_analysis_is_that_of_the_whole_matrices(section: Section) -> None:
    found, ways = trajectories(section.runs), whole(section.runs)
    pca = PCA(n_components=2)
    expected = pca.fit_transform(np.concatenate(ways))
    points = np.concatenate([run["points"] for run in found["runs"]])
    signs = np.sign((points * expected).sum(0))
    assert points == pytest.approx(signs * expected, abs=2e-5)
    assert found["explained"] == pytest.approx(pca.explained_variance_ratio_, abs=1e-5)
    assert found["layers"] == list(LAYERS)
    assert found["runs"][0]["norms"] == pytest.approx(np.linalg.norm(ways[0], axis=1), abs=1e-5)
    assert [(run["label"], run["form"], run["seed"]) for run in found["runs"]] == [
        ("lora", "merged", 0),
        ("lora", "merged", 1),
        ("aurora (calibrated)", "calibrated", 0),
        ("aurora (static)", "static", 0),
        ("aurora (calibrated)", "calibrated", 1),
        ("aurora (static)", "static", 1),
    ]


def test_what_is_drawn_and_written(section: Section, tmp_path: Path) -> None:
    found = trajectories(section.runs)
    figure = trajectories_figure(found)
    (ax,) = figure.axes
    lines, rings = ax.lines[::2], ax.lines[1::2]
    assert [line.get_xydata().tolist() for line in lines] == [run["points"] for run in found["runs"]]
    assert [ring.get_xydata().tolist() for ring in rings] == [run["points"][:1] for run in found["runs"]]
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["lora", "aurora (calibrated)", "aurora (static)"]
    assert ax.get_xlabel() == f"first component, {round(100 * found['explained'][0])}% of the variance"
    assert ax.get_title(loc="left") == "updates of 2 matrices, epochs 0 (ring) to 3"
    assert ax.get_aspect() == 1
    written, _ = write_figures([section], tmp_path / "figures")
    assert (tmp_path / "figures" / "updates.json") in written


def test_runs_that_lack_something(section: Section, results: list[Any], load: Callable[[list[Any]], Section]) -> None:
    with pytest.raises(UserError, match=r"training\.save_updates=true"):
        trajectories(load(results).runs)
    updates = section.runs["folder"].iloc[2] / "updates"
    (updates / "epoch-003.safetensors").unlink()
    with pytest.raises(UserError, match="has no update of epoch 3"):
        trajectories(section.runs)
    section.runs["result"].iloc[2]["epochs"].pop()  # its patience was at an end
    trajectories(section.runs)
