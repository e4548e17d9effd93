"""Which implementation of sigma is chosen: every place of the table."""

import pytest
import torch

from aurora_lora.ops import ANL, IDENTITY, update
from aurora_lora.ops.update import ATEN, FORMULA, IMPLEMENTATIONS, KERNEL, OPERATOR, choose

X = torch.ones(1, 2)


@pytest.mark.parametrize(
    ("mode", "on_a_gpu", "elsewhere"),
    [("eager mode", KERNEL, ATEN), ("torch.compile", OPERATOR, FORMULA), ("anything else", FORMULA, FORMULA)],
)
def test_each_place_of_the_table(monkeypatch, mode, on_a_gpu, elsewhere):
    monkeypatch.setattr(update, "_mode", lambda *_: mode)
    assert choose(2, ANL(skip=False), X) is elsewhere
    monkeypatch.setattr(update, "triton_serves", lambda *_: True)
    assert choose(2, ANL(skip=False), X) is on_a_gpu
    assert choose(65, ANL(skip=False), X) is elsewhere  # more than a kernel's registers hold
    assert choose(2, IDENTITY, X) is elsewhere  # nothing to launch
    assert [choose(r, ANL(skip=False), X, X.double()) for r in (8, 9)] == [on_a_gpu, elsewhere]
    assert IMPLEMENTATIONS[mode] == (on_a_gpu, elsewhere)


def test_the_modes(monkeypatch):
    class Own(torch.Tensor):
        pass

    weight = torch.nn.Parameter(X)
    assert update._mode(X, None, weight) == "eager mode"
    assert update._mode(X, X.to("meta")) == update._mode(X, X.as_subclass(Own)) == "anything else"
    seen = []
    torch.func.vmap(lambda x: seen.append(update._mode(x)) or x)(X)
    assert seen == ["anything else"]
    with monkeypatch.context() as patched:
        patched.setattr(torch.compiler, "is_compiling", lambda: True)
        patched.setattr(update, "_is_exporting", lambda: False)
        assert update._mode(X) == "torch.compile"
        patched.setattr(update, "_is_exporting", lambda: True)
        assert update._mode(X) == "anything else"
    monkeypatch.setenv("AURORA_LORA_EAGER", "1")
    assert update._mode(X) == "anything else"
