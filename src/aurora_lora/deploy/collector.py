"""Watches the inputs of layers while a model runs: which of them share one, and their moments."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import Tensor, nn

from ..errors import CalibrationError, NotFiniteInputsError
from ..tuner.tensors import computing_device
from .batch import Batch
from .batches import no_batches
from .inputs import Runner, input_geometry, watched_inputs
from .moments import LayerMoments, SharedInput, Target
from .passes import random_state_of_now
from .processes import calls_of_processes, several_processes

_PARTLY_SHARED = "{} saw the same input as {} in one call, but not in all of the batch that first reached them"
_NOT_SHARED = "{} saw the same input as {} in the first batch, but not in a later one"
_SHARED_ELSEWHERE = "{} saw the same input as another layer on one process, but not on all"
_WAYS_OUT = {"calibrate": "call calibrate with share_inputs=False"}
"""By the function that cannot go on; others have no such argument."""


class Collector:
    """Sums the moments of each target's input over the batches that `runner` runs.

    Args:
        runner: runs the model.
        targets: the layers.
        share_inputs: sum x x^T once for layers that are called one after another with the same tensor, and in their
            first batch with no other. Where one of them is called with another too, as a projection that a model also
            puts its relative positions through, that batch is run once more, for a sum of each alone.
        sliced: take the moments in exact float32 products on devices where float64 is slow; see `add_gram`.
        watch_only: only see which layers share an input, without any sums.
        others: layers of which it is only seen whether an input reaches them (`reached_others`).
    """

    def __init__(
        self,
        runner: Runner,
        targets: Iterable[Target],
        share_inputs: bool = True,
        *,
        sliced: bool = False,
        watch_only: bool = False,
        others: Iterable[Target] = (),
    ) -> None:
        self.runner = runner
        self.targets = list(targets)
        self.share_inputs = share_inputs
        self.sliced = sliced
        self.watch_only = watch_only
        self.others = {target.name: target for target in others}
        self.reached_others: set[str] = set()
        self.layers: dict[str, LayerMoments] = {}
        self.failure: CalibrationError | None = None
        self._latest: SharedInput | None = None
        self._earlier: set[str] = set()  # the layers that an earlier batch has reached
        self._alone: set[str] = set()  # those that turned out to share no input
        self._again: set[str] | None = None  # while a batch is run once more: the only ones that are summed
        self._idle: dict[str, bool] = {}

    def _input_of(self, target: Target, x: Tensor) -> SharedInput:
        """At a layer's first call: the input of the layers called just before with this very tensor, or its own."""
        latest, geometry = self._latest, input_geometry(target.module)
        if latest is not None and self._may_join(target, latest) and latest.is_seen(x) and latest.geometry == geometry:
            return latest
        return SharedInput(target.name, geometry)

    def _may_join(self, target: Target, shared: SharedInput) -> bool:
        """Whether nothing of an input is missed by a layer that joins it now: it is one of this batch."""
        return (
            self.share_inputs and not {target.name, shared.leader} & self._alone and shared.leader not in self._earlier
        )

    def _see(self, target: Target, x: Tensor) -> None:
        if self._again is not None and target.name not in self._again:
            return
        if target.name not in self.layers:
            self.layers[target.name] = LayerMoments(target, self._input_of(target, x))
        layer = self.layers[target.name]
        shared = self._latest = layer.shared
        if layer.leads:
            shared.see(x)
        elif not shared.is_seen(x):
            self._part(layer)
        for vectors in self.runner.pieces(target.module, x):
            if layer.leads:
                shared.vectors += len(vectors)
            layer.vectors += len(vectors)
            if not self.watch_only:
                layer.add(vectors, self.sliced)
        if layer.vectors != shared.vectors:  # the leader was called with another one before
            self._part(layer)

    def _note(self, name: str, _: Tensor) -> None:
        self.reached_others.add(name)

    def _part(self, layer: LayerMoments) -> None:
        """A layer was not called with all that its leader was called with: the sums of this batch are taken anew.

        Raises:
            CalibrationError: they have shared their inputs in an earlier batch.
        """
        if layer.shared.leader in self._earlier:
            raise self._apart(_NOT_SHARED.format(layer.target.name, layer.shared.leader))
        self._alone |= {name for name, each in self.layers.items() if each.shared is layer.shared}

    def _run(self, batch: Batch, watched: list[nn.Module], may_repeat: bool) -> None:
        """One batch; once more where layers that it was the first to reach seemed to share an input and do not."""
        self._earlier, put_back = set(self.layers), random_state_of_now()
        self.runner.run(batch, watched)
        for layer in self._new():
            if layer.vectors != layer.shared.vectors:
                self._part(layer)
        again = {layer.target.name for layer in self._new()} & self._alone
        if not again:
            return
        if not may_repeat:
            layer = next(each for each in self._new() if each.target.name in again and not each.leads)
            raise self._apart(_PARTLY_SHARED.format(layer.target.name, layer.shared.leader))
        for name in again:
            del self.layers[name]
        put_back()
        self._again = again
        self.runner.run(batch, watched)
        self._again = None

    def _new(self) -> list[LayerMoments]:
        """The layers that no earlier batch has reached."""
        return [layer for name, layer in self.layers.items() if name not in self._earlier]

    def _check_shared(self, layer: LayerMoments) -> None:
        if layer.vectors != layer.shared.vectors:
            raise self._apart(_NOT_SHARED.format(layer.target.name, layer.shared.leader))

    def _apart(self, what: str) -> CalibrationError:
        action = self.runner.action
        way_out = _WAYS_OUT.get(action, f"give {action} inputs that the model computes in one way")
        return CalibrationError(f"{what}: {way_out}.")

    def run_all(self, batches: Iterable[Batch]) -> None:
        """Run the batches and watch. One process that only watches does so until it has seen the inputs of every target
        whose adapters add something.

        A CalibrationError is kept for `leaders`, which every process must come to.
        """
        n, watched = 0, [target.module for target in (*self.targets, *self.others.values())]
        note = [(target.module, partial(self._note, name)) for name, target in self.others.items()]
        try:
            with watched_inputs([*((target.module, partial(self._see, target)) for target in self.targets), *note]):
                for batch in batches:
                    self._run(batch, watched, may_repeat=n == 0 or not several_processes())
                    n += 1
                    if self.watch_only and not several_processes() and not self._trained_and_unreached():
                        break  # see `probe`: several end at the same batch
            if n == 0:
                raise no_batches(self.runner.action)
            for layer in self._reached() if not self.watch_only else ():
                self._check_shared(layer)
        except CalibrationError as error:
            self.failure = error

    def _trained_and_unreached(self) -> list[str]:
        return self._trained(target.name for target in self.targets if target.name not in self.layers)

    def _trained(self, names: Iterable[str]) -> list[str]:
        """The targets whose adapters add something; each is asked once."""
        by_name = {target.name: target for target in self.targets}
        for name in (names := list(names)):
            if name not in self._idle:
                self._idle[name] = by_name[name].is_idle()
        return [name for name in names if not self._idle[name]]

    def _reached(self) -> list[LayerMoments]:
        """The targets in the order in which they were first called here."""
        return [layer for layer in self.layers.values() if layer.vectors > 0]

    def leaders(self) -> dict[str, str]:
        """The layer whose input each target shares: the same on every process, in the order of the first calls.

        The order is that of the first process; layers that it did not reach come after, in that of the next.

        A target that no input reached is not among them if its adapters add nothing.

        Raises:
            CalibrationError: on every process: it failed on one of them, they disagree, or no input reached a target
                whose adapters add something.
        """
        names = [target.name for target in self.targets]
        position = {name: i for i, name in enumerate(names)}
        seen = [(position[layer.target.name], position[layer.shared.leader]) for layer in self._reached()]
        leader_of: dict[int, int] = {}
        for calls in calls_of_processes(self.runner.action, seen, self.failure, len(names), self.runner.device):
            for i, leader in calls:
                if leader_of.setdefault(i, leader) != leader:
                    raise self._apart(_SHARED_ELSEWHERE.format(names[i]))
        if trained := self._trained(name for i, name in enumerate(names) if i not in leader_of):
            raise self.runner.not_reached(trained)
        return {names[i]: names[leader] for i, leader in leader_of.items()}

    def finish(self) -> list[LayerMoments]:
        """The sums over all processes, in the order of the targets; see `leaders`.

        Raises:
            CalibrationError: a layer saw no input, one that was not finite, or not the one that it seemed to share.
        """
        leaders = self.leaders()
        reached = {layer.target.name: layer for layer in self._reached()}
        self.layers = {}
        inputs = {layer.shared.leader: layer.shared for layer in reached.values()}
        layers = []
        for target in (one for one in self.targets if one.name in leaders):
            # other processes may have reached what this one did not
            shared = inputs.setdefault(leaders[target.name], SharedInput(leaders[target.name]))
            layers.append(reached.get(target.name) or LayerMoments(target, shared))
            layers[-1].make_room(computing_device(next(target.module.parameters())))
        for shared in {layer.shared.leader: layer.shared for layer in layers}.values():
            shared.finish()
        for layer in layers:
            layer.finish()
        for layer in layers:
            self._check_shared(layer)
            if not layer.is_finite():
                raise NotFiniteInputsError(
                    f"The inputs of {layer.target.name} are not finite: is the model or a batch broken?"
                )
        return layers

    def collect(self, batches: Iterable[Batch]) -> list[LayerMoments]:
        """The sums over all batches: see `finish`."""
        self.run_all(batches)
        return self.finish()
