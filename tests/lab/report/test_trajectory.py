"""The trajectory of the updates: the analysis against scikit-learn's on the whole matrices, and what is drawn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from sklearn.decomposition import PCA

from aurora_lora.errors import UserError
from aurora_lora.lab.report.groups import Group, groups
from aurora_lora.lab.report.measured import trajectories, trajectories_figure
from aurora_lora.lab.report.page import write_figures
from aurora_lora.lab.report.sections import Section

LAYERS = ("bert.q", "bert.v")
SIZES = {"bert.q": (6, 5), "bert.v": (4, 5)}
EPOCHS = 4


@pytest.fixture
def found(make_result: Callable[..., Any], tmp_path: Path) -> list[Group]:
    """LoRA of rank 2 and AuroRA of rank 3 with two forms, two seeds each; LoRA does not start at 0, as PiSSA."""
    rng = np.random.default_rng(0)
    results, folders = [], []
    for method, r, forms in (("lora", 2, ("merged",)), ("aurora", 3, ("static", "calibrated"))):
        for seed in (0, 1):
            folder = tmp_path / f"{method}{seed}"
            (folder / "updates").mkdir(parents=True)
            for epoch in range(EPOCHS):
                tensors = {}
                for form in forms:
                    for layer, (d_out, d_in) in SIZES.items():
                        scale = 1.0 if method == "lora" else epoch
                        tensors[f"{form}/{layer}/left"] = scale * rng.normal(size=(d_out, r)).astype(np.float32)
                        tensors[f"{form}/{layer}/right"] = rng.normal(size=(r, d_in)).astype(np.float32)
                save_file(tensors, folder / "updates" / f"epoch-{epoch:03d}.safetensors")
            one = make_result(method, 1e-3, seed, 100, dict.fromkeys(forms, 0.8))
            one["recipe"]["training"] |= {"epochs": EPOCHS - 1, "save_updates": True}
            results.append(one)
            folders.append(folder)
    (both,) = groups(results, folders).values()
    return both


def whole(found: list[Group]) -> list[np.ndarray]:
    """Of each run and form, the updates since the start as one vector for each epoch: (epochs, all weights)."""
    from safetensors.numpy import load_file

    ways = []
    for group, forms in zip(found, (("merged",), ("calibrated", "static")), strict=True):
        for folder in group.folders:
            assert folder is not None
            files = [load_file(path) for path in sorted((folder / "updates").iterdir())]
            for form in forms:
                rows = [
                    np.concatenate(
                        [(f[f"{form}/{k}/left"].astype(float) @ f[f"{form}/{k}/right"]).ravel() for k in LAYERS]
                    )
                    for f in files
                ]
                ways.append(np.array(rows) - rows[0])
    return ways


def test_the_analysis_is_that_of_the_whole_matrices(found: list[Group]) -> None:
    record = trajectories(found)
    ways = whole(found)
    pca = PCA(n_components=2)
    expected = pca.fit_transform(np.concatenate(ways))
    points = np.concatenate([run["points"] for run in record["runs"]])
    signs = np.sign((points * expected).sum(0))
    assert points == pytest.approx(signs * expected, abs=2e-5)
    assert record["explained"] == pytest.approx(pca.explained_variance_ratio_, abs=1e-5)
    assert record["layers"] == list(LAYERS)
    assert record["runs"][0]["norms"] == pytest.approx(np.linalg.norm(ways[0], axis=1), abs=1e-5)
    assert [(run["label"], run["form"], run["seed"]) for run in record["runs"]] == [
        ("lora", "merged", 0),
        ("lora", "merged", 1),
        ("aurora (calibrated)", "calibrated", 0),
        ("aurora (static)", "static", 0),
        ("aurora (calibrated)", "calibrated", 1),
        ("aurora (static)", "static", 1),
    ]


def test_what_is_drawn(found: list[Group]) -> None:
    record = trajectories(found)
    figure = trajectories_figure(record)
    (ax,) = figure.axes
    lines, rings = ax.lines[::2], ax.lines[1::2]
    assert [line.get_xydata().tolist() for line in lines] == [run["points"] for run in record["runs"]]
    assert [ring.get_xydata().tolist() for ring in rings] == [run["points"][:1] for run in record["runs"]]
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["lora", "aurora (calibrated)", "aurora (static)"]
    first, second = (round(100 * share) for share in record["explained"])
    assert ax.get_xlabel() == f"first component, {first}% of the variance"
    assert ax.get_ylabel() == f"second component, {second}% of the variance"
    assert ax.get_title(loc="left") == "updates of 2 matrices, epochs 0 (ring) to 3"
    assert ax.get_aspect() == 1


def test_the_data_is_written_beside_the_figure(found: list[Group], tmp_path: Path) -> None:
    written, _ = write_figures([Section("t", "m", found)], tmp_path / "figures", ["updates"])
    assert [path.name for path in written] == ["updates.png", "updates.svg", "updates.json"]


def test_runs_that_lack_something(found: list[Group], results: list[dict[str, Any]]) -> None:
    (without,) = groups(results).values()
    with pytest.raises(UserError, match=r"training\.save_updates=true"):
        trajectories(without)
    other = found[1].folders[0]
    assert other is not None
    file = other / "updates" / "epoch-000.safetensors"
    kept = file.read_bytes()
    save_file({"calibrated/bert.k/left": np.ones((2, 2))}, file)
    with pytest.raises(UserError, match="adapts other layers than"):
        trajectories(found)
    file.write_bytes(kept)
    last = other / "updates" / "epoch-003.safetensors"
    kept = last.read_bytes()
    last.unlink()
    with pytest.raises(UserError, match="has no update of epoch 3"):
        trajectories(found)
    found[1].runs[0]["epochs"] = [{"epoch": 1.0}, {"epoch": 2.0}]  # its patience was at an end
    trajectories(found)
    del found[1].runs[0]["epochs"]
    last.write_bytes(kept)
    (other / "updates" / "epoch-002.safetensors").unlink()
    with pytest.raises(UserError, match="has no update of epoch 2"):
        trajectories(found)
