"""Several passes over the batches of a user have the same ones, however they are made and whatever is done to them."""

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from aurora_lora.deploy.batches import as_batches
from aurora_lora.deploy.passes import Passes, evaluated
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import BatchEncoding

from aurora_lora import AuroraConfig, calibrate, merge_gap
from aurora_lora.deploy import passes

NET = nn.Linear(2, 2)


class Noisy(Dataset[Tensor]):
    """Each example says which one it is, and is drawn by three kinds of random numbers."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, at: int) -> Tensor:
        return torch.tensor([at, random.random(), np.random.rand(), torch.rand(()).item()])


class Once(IterableDataset[Tensor]):
    def __init__(self, batches: Iterable[Any]) -> None:
        self.rest = iter(batches)

    def __iter__(self) -> Iterator[Any]:
        return self.rest


class BeginsAnew(Iterator[Any]):
    """After its end, as some loaders do."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches, self.at = list(batches), 0

    def __next__(self) -> Any:
        self.at = (self.at + 1) % (len(self.batches) + 1)
        if not self.at:
            raise StopIteration
        return self.batches[self.at - 1]


def own_generator() -> DataLoader[Tensor]:
    return DataLoader(Noisy(), 4, shuffle=True, drop_last=True, generator=torch.Generator())


LOADERS: dict[str, Callable[[], Iterable[Any]]] = {
    "shuffled": lambda: DataLoader(Noisy(), 4, shuffle=True, drop_last=True),
    "own generator": own_generator,
    "examples": lambda: as_batches(own_generator(), examples=6),
    "accelerate": lambda: DataLoader(Noisy(), 4, sampler=SeedableRandomSampler(Noisy(), data_seed=0)),
    "read once": lambda: DataLoader(Once(Noisy()[at] for at in range(10)), batch_size=None),
    "iterator": lambda: iter(own_generator()),
    "begins anew": lambda: BeginsAnew(torch.full((4, 3), float(number)) for number in range(3)),
}


def passes_of(data: Passes) -> list[Tensor]:
    """What the passes give, after one that is left at its first batch, with other draws in between."""
    found: list[list[Tensor]] = []
    with evaluated(NET):
        data.hold()
        first = next(data.from_first())
        for number in range(3):
            found.append([])
            for batch in data.one_pass():
                found[-1].append(batch.clone())
                torch.rand(number)
    assert torch.equal(first, found[0][0])
    return [torch.cat(each) for each in found]


@pytest.mark.parametrize("loader", LOADERS)
def test_every_pass_has_the_same_batches(loader: str) -> None:
    before = random.getstate(), torch.get_rng_state()
    data = Passes(LOADERS[loader]())
    first, *others = passes_of(data)
    assert len(first) >= 8
    assert all(torch.equal(first, other) for other in others)
    assert data.passes == 3
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


class Counted:
    """Batches that are all the same memory, filled anew; counts how often they are read."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda batch: batch) -> None:
        self.wrap, self.times = wrap, 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        batch = torch.zeros(4, 8)
        for _ in range(3):
            yield self.wrap(batch.copy_(torch.rand(4, 8) + random.random() + np.random.rand()))


@pytest.mark.parametrize(("room", "times"), [(3 * 128, 1), (3 * 128 - 1, 3)])
def test_what_is_too_much_to_hold_is_read_again(monkeypatch: pytest.MonkeyPatch, room: int, times: int) -> None:
    monkeypatch.setattr(passes, "HELD_BYTES", room)
    batches = Counted()
    data = Passes(batches)
    with evaluated(NET):
        data.hold()
        first, *others = [torch.stack([batch.clone() for batch in data.one_pass()]) for _ in range(3)]
    assert not torch.equal(first[0], first[1])
    assert all(torch.equal(first, other) for other in others)
    assert batches.times == times


def test_of_several_processes_each_reads_its_loader_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate's loaders speak with their peers when they begin: one that holds its batches would not answer."""
    monkeypatch.setattr(passes, "several_processes", lambda: True)
    begun = []

    class Loader:
        def __iter__(self) -> Iterator[Tensor]:
            begun.append(self)
            return iter([torch.ones(2)])

    for batches, times in ((Loader(), 2), (iter([torch.ones(2)]), 0)):
        begun.clear()
        data = passes.Passes(batches)
        data.hold()
        assert [len(list(data.one_pass())) for _ in range(2)] == [1, 1]
        assert len(begun) == times


@pytest.mark.parametrize(
    ("wrap", "times"),
    [
        (lambda batch: {"a": batch, "names": ["one", None], "n": (1, 2.0)}, 1),
        (lambda batch: BatchEncoding({"a": batch}), 1),
        (lambda batch: {"a": batch, "other": object()}, 2),
    ],
)
def test_what_can_be_counted_is_held(wrap: Callable[[Tensor], Any], times: int) -> None:
    batches = Counted(wrap)
    data = Passes(batches)
    with evaluated(NET):
        data.hold()
        one, other = ([batch["a"].clone() for batch in data.one_pass()] for _ in range(2))
    assert all(map(torch.equal, one, other))
    assert batches.times == times


def test_an_input_whose_gradient_is_asked_for_has_one_in_each_pass() -> None:
    """As embeddings may be: reentrant checkpointing gives no gradient where no input has one."""
    data = Passes(iter([{"inputs_embeds": torch.ones(2, 3, requires_grad=True), "mask": torch.ones(2)}]))
    data.hold()
    for _ in range(2):
        (batch,) = data.one_pass()
        assert (batch["inputs_embeds"].requires_grad, batch["mask"].requires_grad) == (True, False)


def test_layers_of_torchs_own_transformer_are_called() -> None:
    """In eval mode it reads their weights, in place of that."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True))
    config = LoraConfig(target_modules=["linear1", "linear2"], init_lora_weights=False)
    model, x = get_peft_model(net, config).eval(), torch.randn(4, 7, 16)
    called: list[nn.Module] = []
    model.base_model.model[0].linear2.register_forward_hook(lambda *_: called.append(model))
    with evaluated(model):
        model(x)
    assert called
    assert torch.backends.mha.get_fastpath_enabled()
    losses = {merge.merge: merge.end_to_end.largest_logit_difference for merge in merge_gap(model, [x]).merges}
    assert losses["bfloat16"] > 10 * losses["float32"]


def test_batches_of_a_single_pass_are_not_held() -> None:
    batches = Counted()
    data = Passes(batches)
    with evaluated(NET):
        assert len(list(data.one_pass())) == len(list(data.one_pass())) == 3
    assert batches.times == 2


def test_each_module_has_its_own_mode_again() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model.train()
    model[1].eval()
    with evaluated(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]
    with pytest.raises(KeyError), evaluated(model):
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False]


def rows(count: int) -> list[Tensor]:
    torch.manual_seed(0)
    return list(torch.randn(count, 8))


def test_groups_of_layers_are_calibrated_on_the_same_examples() -> None:
    """Of a loader that leaves others out each time, and of one that can be read only once."""
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)),
        AuroraConfig(target_modules=["0", "2"], init_weights=False),
    )
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    loader = DataLoader(rows(44), 8, shuffle=True, drop_last=True, generator=torch.Generator())  # type: ignore[arg-type]
    report = calibrate(model, loader, examples=16, max_memory=64 * 2**20 + 2300)
    assert report.passes == report.groups == 2
    _, *of_passes = seen  # the first is that of a look at the model
    assert torch.equal(torch.cat(of_passes[:2]), torch.cat(of_passes[2:]))
    once = DataLoader(Once(torch.stack(rows(40)).split(8)), batch_size=None)
    assert [layer.vectors for layer in calibrate(model, once, max_memory=64 * 2**20 + 2300).layers] == [40, 40]


def test_merges_are_measured_on_the_same_examples() -> None:
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), LoraConfig(target_modules=["0"], init_lora_weights=False))
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    loader = DataLoader(rows(44), 8, shuffle=True, drop_last=True, generator=torch.Generator())  # type: ignore[arg-type]
    merge_gap(model, loader)
    assert len(seen) > 5
    assert torch.equal(torch.cat(seen[:5]), torch.cat(seen[5:][:: (len(seen) - 5) // 5]))
