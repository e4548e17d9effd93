"""Functions that one process calls, or several whose inputs differ: none waits for what the others do not do."""

import datetime
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import get_peft_model
from torch import nn

from aurora_lora import AuroraConfig, CalibrationError, calibrate, probe
from aurora_lora.deploy.calibrate import leave_processes
from aurora_lora.tuner import aurora_layers

sys.path.insert(0, str(Path(__file__).parent))

from calibrated import assert_same, matrices

pytestmark = pytest.mark.slow
REACHES = torch.randn(1200, 6, generator=torch.Generator().manual_seed(1)).abs()
"""Of these inputs, the second layer of `Sharded` is called."""


class Sharded(nn.Module):
    """Each forward pass waits for those of the other processes, as FSDP2's do."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        dist.all_reduce(torch.zeros(1))
        y = self.one(x)
        return y + self.other(x + 1) if x[0, 0] > 0 else y


def sharded():
    torch.manual_seed(0)
    return Sharded()


def probed(rank):
    """The first process has seen enough vectors for the deviations in its first batch."""
    found = probe(sharded(), [[REACHES[:600], REACHES[600:]], [REACHES[:4], REACHES[4:8]]][rank], loss=squared, rank=2)
    return [layer.deviations for layer in found.layers]


def squared(model, batch):
    return model(batch).square().mean()


def calibrated_in_groups(rank):
    """The first process has reached all layers in its first batch."""
    model = get_peft_model(sharded(), AuroraConfig(target_modules=["one", "other"], init_weights=False))
    batches = [[REACHES[:9], -REACHES[:9]], [-REACHES[9:18], REACHES[9:18]]][rank]
    report = calibrate(model, batches, max_memory=1)
    return report.passes, [layer.aurora_A_cal["default"].weight for _, layer in aurora_layers(model)]


class Router(nn.Module):
    """Which of two layers has the input is told by the sign of its first entry; 0 is for both."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        if x[0, 0] == 0:
            return self.one(x) + self.other(x)
        return self.one(x) if x[0, 0] > 0 else self.other(x)


def router():
    torch.manual_seed(0)
    return get_peft_model(Router(), AuroraConfig(target_modules=["one", "other"], init_weights=False))


POSITIVE = torch.rand(12, 4, generator=torch.Generator().manual_seed(1))
NEGATIVE = -POSITIVE.roll(1, 0)
BOTH = torch.cat([torch.zeros(1, 4), POSITIVE[1:] - 0.5])
SHARES = {
    "opposite orders": ([POSITIVE, NEGATIVE], [NEGATIVE - 1, POSITIVE + 1]),
    "one layer on the first process": ([POSITIVE], [POSITIVE + 1, NEGATIVE]),
    "one tensor for both": ([BOTH], [POSITIVE, NEGATIVE]),
    "no batches on one process": ([POSITIVE, NEGATIVE], []),
}
FAILURES = {"at least one batch": ([], []), "No input reached .*other: .* of calibrate": ([POSITIVE], [POSITIVE])}


def routed(rank):
    found = {}
    for name, shares in {**SHARES, **FAILURES}.items():
        try:
            calibrate(model := router(), shares[rank])
            found[name] = matrices(model)
        except CalibrationError as error:
            found[name] = str(error)
    return found


CASES = {one.__name__: one for one in (probed, calibrated_in_groups, routed)}


def work(rank, world, folder):
    """Every case. A process that waits for the other in vain fails after a while."""
    wait = datetime.timedelta(seconds=20)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=wait)
    torch.save({name: case(rank) for name, case in CASES.items()}, f"{folder}/{rank}.pt")
    leave_processes()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(work, args=(2, str(folder)), nprocs=2)
    both = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    return {name: [one[name] for one in both] for name in CASES}


def test_passes_end_at_the_same_batch_on_all_processes(found):
    for name in ("probed", "calibrated_in_groups"):
        one, other = found[name]
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    assert found["calibrated_in_groups"][0][0] == 2


def test_processes_may_reach_layers_in_other_orders_or_not_at_all(found):
    for one in found["routed"]:
        for name, (first, second) in SHARES.items():
            calibrate(expected := router(), first + second)
            assert_same(one[name], matrices(expected))
        assert all(re.search(message, one[message]) for message in FAILURES)
