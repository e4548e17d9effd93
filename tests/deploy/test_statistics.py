"""Statistics of inputs that are kept for a merge without data: against the moments that they are made of."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch.nn import functional

from aurora_lora import InputStatistics, input_statistics, merge_stored
from aurora_lora.deploy.statistics import STATISTICS_FILE, Kept
from aurora_lora.errors import MergeError, UserError
from aurora_lora.train.models import load_causal_model
from deploy.gguf_llama import PROJECTIONS, adapted, inputs, write

pytest.importorskip("gguf")


def test_what_is_kept_is_the_leading_part_and_the_diagonal() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 40, dtype=torch.float64) * torch.linspace(3, 0.01, 40)
    S = (x.T @ x / 400).float()
    values, vectors = torch.linalg.eigh(S.double())
    leading = (vectors[:, -8:] * values[-8:]) @ vectors[:, -8:].T
    expected = leading + (S.double() - leading).diagonal().diag()
    found = Kept.of(S, 8, {"layer": 400}).moment(torch.device("cpu"))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.01 * float(values[-1]))
    torch.testing.assert_close(found.diagonal(), S.diagonal(), rtol=1e-5, atol=0)
    torch.testing.assert_close(Kept.of(S, 40, {"layer": 400}).moment(torch.device("cpu")), S, rtol=0, atol=0.05)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write(tmp_path / "base.gguf", "Q4_0")
    return tmp_path / "base.gguf"


def test_a_merge_by_them_is_one_by_the_inputs(base: Path, tmp_path: Path) -> None:
    model = adapted(base, LoraConfig(r=4, target_modules=PROJECTIONS), 0.1)
    with torch.no_grad():
        expected = torch.cat([model(**batch).logits.log_softmax(-1).flatten(0, 1) for batch in inputs()])
    input_statistics(model, inputs(), rank=512).save(tmp_path)
    size = input_statistics(model, inputs(), rank=8).save(tmp_path / "small").stat().st_size
    assert size < (3 * 256 + 512) * (8 + 2) * 2 + 2048  # q, k and v have the same inputs, as gate and up have
    lost = {}
    for name, given in (
        ("every one", InputStatistics.load(tmp_path)),
        ("rank 8", InputStatistics.load(tmp_path / "small")),
        ("all", inputs()),
    ):
        report = merge_stored(model, base, output := tmp_path / f"{name}.gguf", given)
        merged = load_causal_model(str(output)).eval()
        with torch.no_grad():
            found = torch.cat([merged(**batch).logits.log_softmax(-1).flatten(0, 1) for batch in inputs()])
        lost[name] = functional.kl_div(found, expected, log_target=True, reduction="batchmean").item()
        assert (not report.end_to_end) == (name != "all")
    nearest = next(end.kl for end in report.end_to_end if end.form == "nearest")
    assert lost["every one"] < 1.5 * lost["all"] < lost["rank 8"] < nearest


def test_another_adapters_statistics_are_refused(base: Path, tmp_path: Path) -> None:
    few = adapted(base, LoraConfig(r=4, target_modules=["q_proj"]))
    input_statistics(few, inputs()).save(tmp_path)
    more = adapted(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    with pytest.raises(MergeError, match=r"down_proj: the input statistics have no such layer"):
        merge_stored(more, base, tmp_path / "out.gguf", InputStatistics.load(tmp_path))
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("what", ["missing", "cut", "other shapes"])
def test_damaged_files_are_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / STATISTICS_FILE
    if what != "missing":
        InputStatistics((Kept.of(torch.eye(8), 2, {"layer": 1}),)).save(tmp_path)
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    if what == "other shapes":
        tensors = load_file(path)
        save_file({**tensors, "0.rest": tensors["0.rest"][:3].clone()}, path, {"layers": '[{"layer": 1}]'})
    with pytest.raises(UserError, match=STATISTICS_FILE):
        InputStatistics.load(tmp_path)
