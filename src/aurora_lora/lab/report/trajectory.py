"""The trajectory of the weight updates (the paper's Figure 2): one principal component analysis for all runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import UserError
from ...forms import MERGED
from ...train.publish import UPDATES
from ...train.updates import LEFT, RIGHT, saved_updates
from .figures import GRID, legend, style
from .groups import Group
from .run_figures import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class _Trajectory:
    """The updates of one form of one run, a file for each epoch."""

    label: str
    form: str
    seed: int
    files: Mapping[int, Path]


def trajectories(found: Sequence[Group]) -> dict[str, Any]:
    """The first two principal components of the updates `dW_e - dW_0` of all runs, forms and epochs e together.

    The update of a run is that of all its adapted layers, as one vector. Two updates `L R` and `L' R'` have the inner
    product `sum (L^T L') * (R R'^T)`, so none is ever multiplied out: the analysis is the exact one of the whole
    matrices, from their (n, n) inner products.

    Args:
        found: settings of one model, of which those runs count that were trained with `training.save_updates`.

    Returns:
        `layers`, `explained` (the share of the variance of each component), and for each run and form `label`, `form`,
        `seed`, `epochs`, `points` (epochs, 2) and `norms`, the lengths of the updates.

    Raises:
        UserError: no run has saved updates, the runs adapt other layers, or there is nothing to tell apart.
    """
    from sklearn.decomposition import KernelPCA

    saved = [one for group in found for one in _trajectories(group)]
    if not saved:
        raise UserError("the trajectory of the updates needs runs that were trained with training.save_updates=true")
    layers = _layers(saved)
    products = np.asarray(sum(_products(saved, layer) for layer in layers))
    starts = np.cumsum([0, *(len(one.files) for one in saved)])
    from_start = np.eye(len(products))
    for start, stop in pairwise(starts):
        from_start[start:stop, start] -= 1
    products = from_start @ products @ from_start.T
    if len(products) < 3 or not np.trace(products) > 0:
        raise UserError(
            "the trajectory of the updates needs runs of at least two epochs, in which something was learned"
        )
    pca = KernelPCA(n_components=2, kernel="precomputed", eigen_solver="dense")
    points = pca.fit_transform(products)
    total = np.trace(products) - products.sum() / len(products)  # n times the variance
    norms = np.sqrt(np.maximum(np.diag(products), 0))
    runs = [
        {
            "label": one.label,
            "form": one.form,
            "seed": one.seed,
            "epochs": list(one.files),
            "points": points[start:stop].round(6).tolist(),
            "norms": norms[start:stop].round(6).tolist(),
        }
        for one, (start, stop) in zip(saved, pairwise(starts), strict=True)
    ]
    explained = (pca.eigenvalues_ / total).round(6).tolist()
    return {"schema": 1, "layers": layers, "explained": explained, "runs": runs}


def trajectories_figure(record: Mapping[str, Any]) -> Figure:
    """The first two components, a line for each run from epoch 0 (a ring) on; the axes have one scale.

    Args:
        record: of `trajectories`.
    """
    names = list(dict.fromkeys(run["label"] for run in record["runs"]))
    figure, (ax,) = panels(names, 3.9)
    shown: set[str] = set()
    for run in record["runs"]:
        x, y = zip(*run["points"], strict=True)
        label = {} if run["label"] in shown else {"label": run["label"]}
        ax.plot(x, y, markersize=4, linewidth=1, **label, **style(names.index(run["label"]), run["label"]))
        ax.plot(x[:1], y[:1], marker="o", markersize=9, color="#000000", fillstyle="none", linestyle="none")
        shown.add(run["label"])
    ax.set_aspect("equal", adjustable="datalim")
    ax.grid(axis="x", **GRID)
    for axis, name, share in (
        (ax.xaxis, "first", record["explained"][0]),
        (ax.yaxis, "second", record["explained"][1]),
    ):
        axis.set_label_text(f"{name} component, {100 * share:.0f}% of the variance", fontsize=9)
    last = max(run["epochs"][-1] for run in record["runs"])
    title = f"updates of {len(record['layers'])} matrices, epochs 0 (ring) to {last}"
    ax.set_title(title, fontsize=8, loc="left")
    legend(figure, ax)
    return figure


def _trajectories(group: Group) -> list[_Trajectory]:
    from safetensors import safe_open

    found = []
    for run, folder in zip(group.runs, group.folders, strict=True):
        files = {} if folder is None else saved_updates(folder / UPDATES)
        if not files:
            continue
        trained = run["epochs"][-1]["epoch"] if run.get("epochs") else run["recipe"]["training"]["epochs"]
        missing = sorted(set(range(int(trained) + 1)) - files.keys())  # it may have stopped early
        if missing:
            raise UserError(f"{folder / UPDATES if folder else UPDATES} has no update of epoch {missing[0]}")
        with safe_open(files[0], "np") as first:
            forms = list(dict.fromkeys(name.partition("/")[0] for name in first.keys()))  # noqa: SIM118
        for form in sorted(forms, key=lambda form: form != group.deployed):
            label = f"{group.label} ({form})" if form != MERGED else group.label
            found.append(_Trajectory(label, form, int(run["seed"]), files))
    return found


def _layers(runs: Sequence[_Trajectory]) -> list[str]:
    """The layers that every run adapts.

    Raises:
        UserError: a run adapts others.
    """
    from safetensors import safe_open

    layers: list[str] = []
    for one in runs:
        with safe_open(one.files[0], "np") as first:
            names = first.keys()
        own = sorted({name.split("/")[1] for name in names if name.startswith(f"{one.form}/")})
        layers = layers or own
        if own != layers:
            raise UserError(
                f"{one.files[0].parent} adapts other layers than {runs[0].files[0].parent}: report them apart"
            )
    return layers


def _products(runs: Sequence[_Trajectory], layer: str) -> Array:
    """The (n, n) inner products of a layer's updates, over all trajectories and epochs."""
    from safetensors import safe_open

    lefts, rights = [], []
    for one in runs:
        for path in one.files.values():
            with safe_open(path, "np") as file:
                lefts.append(file.get_tensor(f"{one.form}/{layer}/{LEFT}").astype(np.float64))
                rights.append(file.get_tensor(f"{one.form}/{layer}/{RIGHT}").astype(np.float64))
    left, right = np.concatenate(lefts, axis=1), np.concatenate(rights, axis=0)
    blocks = (left.T @ left) * (right @ right.T)
    starts = np.cumsum([0, *(len(one) for one in rights)])[:-1]
    products: Array = np.add.reduceat(np.add.reduceat(blocks, starts, axis=0), starts, axis=1)
    return products
