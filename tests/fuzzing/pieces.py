"""Draws all layers in several processes: each has a world of its own, and draws a piece at a time."""

from __future__ import annotations

import atexit
import multiprocessing
import resource
import shutil
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from . import commands, folders, texts
from .runner import Layer, Tally, run, total
from .world import World

PIECE = 250
"""Inputs that one process draws at a time: at most."""


MEMORY = 12 * 2**30
"""Bytes that a process may ask for: an input that wants more is a failure, and not the machine's end."""


def all_layers(world: World) -> list[Layer]:
    """Every layer, the fast ones first."""
    return [*texts.layers(world), *commands.layers(world), *folders.layers(world)]


def draw(
    layers: list[Layer], scale: float, seed: int, jobs: int, told: Callable[[str, Tally], None]
) -> dict[str, Tally]:
    """The tally of each layer, which `told` hears of; it is drawn in pieces, which processes share out."""
    done: dict[str, Tally] = {}
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawned, initializer=_prepare) as pool:
        waiting = {}
        for layer in layers:
            count = max(1, round(scale * layer.full))
            sizes = [min(PIECE, count - at) for at in range(0, count, PIECE)]
            waiting[layer.name] = [
                pool.submit(_piece, layer.name, size, 10**6 * seed + at) for at, size in enumerate(sizes)
            ]
        for name, pieces in waiting.items():
            done[name] = total([piece.result() for piece in pieces])
            told(name, done[name])
    return done


def _prepare() -> None:
    """What a process needs: quiet libraries, and a world of its own."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _ready.update({layer.name: layer for layer in all_layers(World(Path(folder).resolve()))})


_ready: dict[str, Layer] = {}


def _piece(name: str, count: int, seed: int) -> Tally:
    return run(_ready[name], count, seed)
