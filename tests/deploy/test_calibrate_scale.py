"""calibrate on what people have: little memory, several processes, models of other kinds."""

import datetime
import importlib
import random
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from aurora_lora.deploy.memory_bound import MemoryBound
from aurora_lora.deploy.plan import moment_bytes, pack_layers, work_bytes
from aurora_lora.deploy.processes import leave_processes
from peft import get_peft_model
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from aurora_lora import AuroraConfig, CalibrationError, calibrate, merge_gap
from aurora_lora.deploy import float64, memory_bound
from aurora_lora.deploy.hidden import hidden_values
from aurora_lora.deploy.moments import Target
from aurora_lora.lab.bench.counts import peak_bytes
from aurora_lora.tuner import aurora_layers

sys.path.insert(0, str(Path(__file__).parent))

from calibrated import assert_same, matrices


def test_a_progress_bar(bert, batches, capfd):
    calibrate(bert, batches)
    assert capfd.readouterr().err == ""
    calibrate(bert, batches, progress=True)
    assert "calibrating, pass 1" in capfd.readouterr().err


# ---------------------------------------------------------------- memory


def test_groups_within_the_bound_give_the_same(bert, batches):
    whole = calibrate(bert, batches)
    assert (whole.groups, whole.passes) == (1, 1)
    expected = matrices(bert)
    floor = 64 * 2**20 + 2 * 8 * 40 * 40  # what the widened input and one factor of the widest layer take
    for source in (batches, iter(batches)):
        grouped = calibrate(bert, source, max_memory=floor + 40_000)
        assert grouped.groups > 2
        assert grouped.passes == grouped.groups
        assert_same(matrices(bert), expected)


def test_the_patches_of_a_convolution_are_laid_out_in_pieces(monkeypatch):
    torch.manual_seed(0)
    config = AuroraConfig(target_modules=["0"], init_weights=False)
    model = get_peft_model(nn.Sequential(nn.Conv2d(3, 4, 7)), config).eval().requires_grad_(False)
    images = torch.randn(4, 3, 40, 40)
    patches = 4 * 34**2
    bytes_of_patches = 4 * 3 * 7**2 * patches
    of_model = peak_bytes(lambda: model(images), torch.device("cpu"))

    def measured(chunk):
        """The peak beyond that of the model alone, and what was found."""
        monkeypatch.setattr(float64, "CHUNK_BYTES", chunk)
        found = []

        def run():
            found.append(calibrate(model, [images]).layers[0].vectors)
            found.append([gap.relative_error for gap in merge_gap(model, [images]).layers])
            found.append(hidden_values(model, [images]))

        return peak_bytes(run, torch.device("cpu")) - of_model, matrices(model), *found

    peak, expected, vectors, errors, z = measured(2**30)
    assert peak > bytes_of_patches
    little, found, *others = measured(2**16)
    assert little < bytes_of_patches / 4
    assert_same(found, expected)
    assert others[0] == vectors == patches
    assert others[1] == pytest.approx(errors, rel=1e-5)
    for key, values in z.items():
        torch.testing.assert_close(others[2][key], values)


@pytest.mark.parametrize("size", ["4 GiB", "4gib", "4096MiB", 2**32, np.int64(2**32), 4e9, "4294967296"])
def test_sizes(bert, batches, size):
    assert calibrate(bert, batches, max_memory=size).groups == 1


@pytest.mark.parametrize("size", ["4 apples", 0, -1, True, 1.5, ""])
def test_sizes_that_are_not(bert, batches, size):
    with pytest.raises(ValueError, match=r"max_memory=.* '4GiB'"):
        calibrate(bert, batches, max_memory=size)


def test_a_bound_that_no_layer_fits_in_names_the_need(bert, batches):
    with pytest.raises(CalibrationError, match=r"input width 32\) needs \d+ MiB .* max_memory allows \(10 MiB\)"):
        calibrate(bert, batches, max_memory="10MiB")


def test_more_than_nine_tenths_of_the_free_memory_is_never_taken_by_default(bert, batches, monkeypatch):
    monkeypatch.setattr(memory_bound, "_free", lambda device: 10 * 2**20)
    with pytest.raises(CalibrationError, match=r"more than nine tenths of the memory that is free \(9 MiB\)"):
        calibrate(bert, batches)


def test_half_of_the_free_memory_is_taken_by_default_and_more_for_a_layer_that_needs_it(bert, batches, monkeypatch):
    """LLaMA3-8B in 16 bits leaves 8 GB of a GPU of 24 GB free; its widest layers take 4.8 GB."""
    assert calibrate(bert, batches).groups == 1
    expected = matrices(bert)
    least = 64 * 2**20 + 8 * 40 * (3 * 40 + 2)  # of the widest layer
    monkeypatch.setattr(memory_bound, "_free", lambda device: 2 * least - 2)
    assert calibrate(bert, batches).groups > 2
    assert_same(matrices(bert), expected)


def test_what_torch_holds_unused_on_a_gpu_is_free(monkeypatch):
    device = torch.device("cuda", 1)
    for name, value in (("mem_get_info", (1000, 9000)), ("memory_reserved", 600), ("memory_allocated", 200)):
        monkeypatch.setattr(torch.cuda, name, lambda asked, value=value: value if asked == device else None)
    assert memory_bound._free_everywhere(device) == 1400


def test_processes_share_the_gpus_of_their_machine(monkeypatch):
    for name, value in (("mem_get_info", (1000, 9000)), ("memory_reserved", 0), ("memory_allocated", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(memory_bound, "processes", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for gpus, free in ((4, 1000), (2, 500), (1, 250)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert memory_bound._free(torch.device("cuda", 0)) == free


@pytest.mark.parametrize(("on_this_machine", "size"), [("2", 250), (None, 125)])
def test_processes_share_the_main_memory_of_their_machine(monkeypatch, on_this_machine, size):
    monkeypatch.setattr(memory_bound, "free_memory", lambda: 1000)
    monkeypatch.setattr(memory_bound, "processes", lambda: 4)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if on_this_machine is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", on_this_machine)
    assert memory_bound.memory_bound(None, torch.device("cpu")).size == size


def test_the_gpu_with_the_least_room_counts(monkeypatch):
    free = {torch.device("cuda", index): bytes_free for index, bytes_free in enumerate((4000, 1000, 3000))}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 9000))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    bound = memory_bound.memory_bound(None, *free)
    assert (bound.size, bound.largest) == (500, 900)


LLAMA_SHAPES = """
    import importlib, torch
    from aurora_lora.train.memory import process_peak_memory, reset_peak_memory
    from peft import get_peft_model
    from torch import nn
    import aurora_lora

    d, d_ff, bound, bypass = {d}, {d_ff}, {bound}, {bypass}

    class Block(nn.Module):
        '''The five adapted layers of a LLaMA block, on random activations; a thin output keeps the weights small.'''
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d, 4) for _ in range(3))
            self.up_proj, self.down_proj = nn.Linear(d, 4), nn.Linear(d_ff, 4)

        def forward(self, x):
            h = torch.randn(x.shape[0], d)
            out = self.q_proj(h) + self.k_proj(h) + self.v_proj(h)
            return out + self.up_proj(torch.randn(x.shape[0], d)) + self.down_proj(torch.randn(x.shape[0], d_ff))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Block() for _ in range(32))

        def forward(self, x):
            return sum(layer(x) for layer in self.layers)

    torch.manual_seed(0)
    names = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    model = get_peft_model(Net(), aurora_lora.AuroraConfig(target_modules=names, init_weights=False))
    batches = [torch.zeros(64, 1)] * 2
    with torch.no_grad():
        model(batches[0])
        torch.linalg.cholesky_ex(torch.eye(64, dtype=torch.float64))
    if bypass:
        room = importlib.import_module("aurora_lora.deploy.calibrate")
        room.plan = lambda runner, targets, *rest, **more: [targets]
    reset_peak_memory()
    before = process_peak_memory()
    report = aurora_lora.calibrate(model, batches, max_memory=bound)
    peak = int((process_peak_memory() - before) * 2**20)
    print(len(report.layers), report.groups, peak)
"""


def measured_peak(d, d_ff, bound, bypass=False):
    code = textwrap.dedent(LLAMA_SHAPES).format(d=d, d_ff=d_ff, bound=bound, bypass=bypass)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return map(int, run.stdout.split())


@pytest.mark.slow
def test_llama3_8b_shapes_stay_within_the_bound_by_measured_peak():
    """160 modules in the proportions of LLaMA3-8B, three sixteenths as wide (768 and 2,688): 2.1 GB."""
    bound = 350 * 2**20
    modules, groups, peak = measured_peak(768, 2688, bound)
    assert modules == 160
    assert groups > 3
    assert peak <= bound
    modules, groups, peak = measured_peak(768, 2688, bound, bypass=True)
    assert peak > 2 * bound  # the planner is what keeps it


def test_the_work_on_a_wide_layer_counts_for_all_that_are_held_with_it():
    """Also where a narrow one comes after it."""
    wide, narrow = (Target(str(d), SimpleNamespace(d_in=d, r={"default": 2}), ("default",)) for d in (400, 100))
    least = moment_bytes([wide]) + moment_bytes([narrow]) + work_bytes([wide])
    assert pack_layers([[wide], [narrow]], MemoryBound(least)) == [[wide, narrow]]
    assert pack_layers([[wide], [narrow]], MemoryBound(least - 1)) == [[wide], [narrow]]


def test_a_unit_that_needs_more_than_the_bound_is_alone_where_it_may_be():
    wide, narrow = (Target(str(d), SimpleNamespace(d_in=d, r={"default": 2}), ("default",)) for d in (400, 100))
    need = moment_bytes([wide]) + work_bytes([wide])
    assert pack_layers([[narrow], [wide], [narrow]], MemoryBound(need - 1, alone=need)) == [[narrow], [wide], [narrow]]
    with pytest.raises(CalibrationError, match="input width 400"):
        pack_layers([[wide]], MemoryBound(need - 2, alone=need - 1))


def test_llama3_8b_is_planned_at_full_size():
    """The plan needs shapes only: 96 distinct inputs, 61 GB of moments, in groups that fit in 8 GiB."""

    class Shape:
        def __init__(self, d):
            self.d_in, self.r = d, {"default": 2}

    units = []
    for i in range(32):
        make = lambda name, d, i=i: Target(f"{i}.{name}", Shape(d), ("default",))  # noqa: E731
        units += [[make(n, 4096) for n in ("q", "k", "v")], [make("up", 4096)], [make("down", 14336)]]
    budget = 8 * 2**30
    groups = pack_layers(units, MemoryBound(budget))
    assert [t for group in groups for t in group] == [t for unit in units for t in unit]
    assert sum(map(moment_bytes, units)) > 60e9
    placed = iter(units)
    for group in groups:
        inside = []
        while sum(map(len, inside)) < len(group):
            inside.append(next(placed))
        assert sum(map(moment_bytes, inside)) + work_bytes(group) <= budget
    assert len(groups) <= 16
    with pytest.raises(CalibrationError, match="input width 14336"):
        pack_layers(units, MemoryBound(2**30))


def test_a_failure_half_way_gives_the_earlier_calibration_back(bert, batches, monkeypatch):
    calibrate(bert, batches[:1])
    before = matrices(bert)
    room = importlib.import_module("aurora_lora.deploy.calibrate")  # the package exports the function of this name
    calls = []

    def failing(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return solve(*args)

    solve = room.solve
    monkeypatch.setattr(room, "solve", failing)
    with pytest.raises(KeyboardInterrupt):
        calibrate(bert, batches)
    assert_same(matrices(bert), before, atol=0)
    assert {layer.form("default") for _, layer in aurora_layers(bert.eval())} == {"calibrated"}


# ---------------------------------------------------------------- several processes


def calibrate_a_share(rank, world, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)),
        AuroraConfig(target_modules=["0", "2"], init_weights=False),
    )
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    calibrate(model, x.split(4)[rank::world])
    torch.save(matrices(model), f"{folder}/{rank}.pt")
    leave_processes()


def test_processes_share_their_moments(tmp_path):
    mp.spawn(calibrate_a_share, args=(2, str(tmp_path)), nprocs=2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    leave_processes()
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)),
        AuroraConfig(target_modules=["0", "2"], init_weights=False),
    )
    calibrate(model, [torch.randn(40, 6, generator=torch.Generator().manual_seed(1))])
    for rank in (0, 1):
        assert_same(torch.load(tmp_path / f"{rank}.pt", weights_only=True), matrices(model))


class Router(nn.Module):
    """Which of two layers has the input is told by the sign of its first entry; 0 is for both."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        first = x[0, 0]
        if first == 0:
            return self.one(x) + self.other(x)
        return self.one(x) if first > 0 else self.other(x)


def router():
    torch.manual_seed(0)
    return get_peft_model(Router(), AuroraConfig(target_modules=["one", "other"], init_weights=False))


POSITIVE, NEGATIVE = torch.rand(2, 12, 4, generator=torch.Generator().manual_seed(1))
NEGATIVE = -NEGATIVE
BOTH = torch.cat([torch.zeros(1, 4), POSITIVE[1:] - 0.5])
OTHER_ORDERS = {
    "opposite orders": ([POSITIVE, NEGATIVE], [NEGATIVE - 1, POSITIVE + 1]),
    "one layer on the first process": ([POSITIVE], [POSITIVE + 1, NEGATIVE]),
}
FAILURES = {
    "no batches": (([POSITIVE], []), ("failed on process 1, whose", "at least one batch")),
    "a layer that none reaches": (([POSITIVE], [POSITIVE]), ("No input reached .*other: .* of calibrate must",) * 2),
    "shared in the first batch": (([BOTH], [BOTH, POSITIVE]), ("failed on process 1, whose", "share_inputs=False")),
    "shared on the first process": (([BOTH], [POSITIVE]), ("share_inputs=False",) * 2),
    "shared by nobody else": (([BOTH], [POSITIVE, NEGATIVE]), ("other saw .* share_inputs=False",) * 2),
}


def calibrate_shares(rank, world, folder):
    """Every case above on its share. A process that waits for the other in vain fails after a while."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=20),
    )
    cases = {**OTHER_ORDERS, **{name: shares for name, (shares, _) in FAILURES.items()}}
    found = {}
    for name, shares in cases.items():
        model = router()
        try:
            calibrate(model, shares[rank])
            found[name] = matrices(model)
        except CalibrationError as error:
            found[name] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    leave_processes()


@pytest.fixture(scope="module")
def on_two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(calibrate_shares, args=(2, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("case", OTHER_ORDERS)
def test_processes_may_reach_layers_in_other_orders_or_not_at_all(on_two_processes, case):
    expected = router()
    calibrate(expected, OTHER_ORDERS[case][0] + OTHER_ORDERS[case][1])
    for found in on_two_processes:
        assert_same(found[case], matrices(expected))


@pytest.mark.parametrize("case", FAILURES)
def test_what_fails_on_one_process_ends_all(on_two_processes, case):
    for found, message in zip(on_two_processes, FAILURES[case][1], strict=True):
        assert re.search(message, found[case])


# ---------------------------------------------------------------- states that are legitimate


class Experts(nn.Module):
    """The second layer sees only the inputs that are marked with a positive first entry."""

    def __init__(self):
        super().__init__()
        self.always, self.sometimes = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.always(x)
        return y + self.sometimes(x + 1) if x[0, 0] > 0 else y


def test_a_layer_that_only_a_later_batch_reaches():
    torch.manual_seed(0)
    model = get_peft_model(Experts(), AuroraConfig(target_modules=["always", "sometimes"], init_weights=False))
    first, second = -torch.rand(8, 4), torch.rand(8, 4)
    report = calibrate(model, [first, second])
    assert [entry.vectors for entry in report.layers] == [16, 8]


def test_an_adapter_trained_static_may_be_active_beside(make_bert, config, batches):
    model = get_peft_model(make_bert(), config(task_type=None))
    model.add_adapter("static", config(task_type=None, train_form="static"))
    model.base_model.set_adapter(["default", "static"])
    calibrate(model, batches, adapter_name="default")
    assert model.peft_config["default"].calibrated


def test_the_random_states_of_python_and_numpy_are_restored(bert, batches):
    def shuffled():
        for batch in batches:
            random.random()
            np.random.rand()
            yield batch

    random.seed(1)
    np.random.seed(1)
    expected = random.getstate(), np.random.get_state()[1].tolist()
    calibrate(bert, shuffled())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == expected


def test_the_ridge_must_be_finite(bert, batches):
    with pytest.raises(ValueError, match="ridge=inf"):
        calibrate(bert, batches, ridge=float("inf"))


def test_a_vision_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    base = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes))
    names = sorted(
        {name.rsplit(".", 1)[-1] for name, _ in base.named_modules()} & {"query", "value", "q_proj", "v_proj"}
    )
    model = get_peft_model(base, AuroraConfig(target_modules=names, init_weights=False))
    images = {"pixel_values": torch.randn(6, 3, 8, 8)}
    report = calibrate(model, [images])
    assert [entry.vectors for entry in report.layers] == [6 * 5] * 4  # four patches and the class token
    expected = model.eval()(**images).logits
    torch.testing.assert_close(model.merge_and_unload()(**images).logits, expected, atol=1e-5, rtol=1e-4)
