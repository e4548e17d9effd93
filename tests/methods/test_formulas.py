"""Each method's layer against its formula, written in NumPy, in float64; and what its merge makes of the weight."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aurora_lora.methods import METHODS

Arrays = dict[str, np.ndarray]
PATH = "bert.encoder.layer.1.attention.self.query"
D = 16  # the width of the fixture's BERT


def leaky(z: np.ndarray, slope: float) -> np.ndarray:
    return np.where(z > 0, z, slope * z)


def fourier(w: Arrays, layer: Any) -> np.ndarray:
    """The real part of the inverse Fourier transform of a matrix that is 0 but for n trained entries."""
    spectrum = np.zeros((D, D))
    rows, columns = layer.indices["default"].numpy()
    spectrum[rows, columns] = w["fourierft_spectrum"]
    return 10.0 * np.fft.ifft2(spectrum).real


def weight_decomposed(w: Arrays, W0: np.ndarray) -> np.ndarray:
    directions = W0 + 3.0 * w["lora_B"] @ w["lora_A"]
    return w["lora_magnitude_vector"][:, None] * directions / np.linalg.norm(directions, axis=1, keepdims=True) - W0


RANK = {"r": 4, "alpha": 12}  # s = 3
PEFT_RANK = {"r": 4, "lora_alpha": 12}
# name, options: dW from the layer's own weights, W0 and the layer
DELTAS: list[tuple[str, dict[str, Any], Callable[[Arrays, np.ndarray, Any], np.ndarray]]] = [
    ("lora", PEFT_RANK, lambda w, W0, _: 3.0 * w["lora_B"] @ w["lora_A"]),
    ("milora", PEFT_RANK, lambda w, W0, _: 3.0 * w["lora_B"] @ w["lora_A"]),
    ("pissa", PEFT_RANK, lambda w, W0, _: 3.0 * w["lora_B"] @ w["lora_A"]),
    ("dora", PEFT_RANK, lambda w, W0, _: weight_decomposed(w, W0)),
    (
        "adalora",
        {"init_r": 4, "target_r": 2, "lora_alpha": 12},
        lambda w, W0, _: 12 / (4 + 1e-5) * w["lora_B"] @ np.diag(w["lora_E"][:, 0]) @ w["lora_A"],
    ),
    ("moslora", RANK, lambda w, W0, _: 3.0 * w["B"] @ w["mixer"] @ w["A"]),
    ("moslora", {**RANK, "mixer_init": "orthogonal"}, lambda w, W0, _: 3.0 * w["B"] @ w["mixer"] @ w["A"]),
    ("dylora", RANK, lambda w, W0, _: 3.0 * w["B"] @ w["A"]),
    ("dylora", {**RANK, "eval_rank": 2}, lambda w, W0, _: 6.0 * w["B"][:, :2] @ w["A"][:2]),
    ("lora-drop", RANK, lambda w, W0, _: 3.0 * w["B"] @ w["A"]),
    ("sine-lora", RANK, lambda w, W0, _: 3.0 * np.sin(200 * w["B"] @ w["A"]) / np.sqrt(D)),
    (
        "loran",
        {**RANK, "amplitude": 0.3, "frequency": 7.0},
        lambda w, W0, _: 3.0 * w["B"] @ w["A"] * (1 + 0.3 * np.sin(7.0 * w["B"] @ w["A"])),
    ),
    ("fourierft", {"n_frequency": 30, "scaling": 10.0}, lambda w, W0, layer: fourier(w, layer)),
    (
        "vera",
        {"r": 6},
        lambda w, W0, _: (w["vera_lambda_b"][:, None] * w["vera_B"]) @ (w["vera_lambda_d"][:, None] * w["vera_A"]),
    ),
    ("lora-ga", PEFT_RANK, lambda w, W0, _: 3.0 * w["lora_B"] @ w["lora_A"]),
    ("hira", {"r": 4}, lambda w, W0, _: W0 * (w["hira_B"] @ w["hira_A"])),
    ("neat", {"r": 4, "scaling": 2.0}, lambda w, W0, _: 2.0 * w["peanut_B"] @ np.maximum(w["peanut_A"] @ W0, 0)),
]


def randomised(make_model: Callable[[str], Any], name: str, options: dict[str, Any]) -> tuple[nn.Module, Any, Arrays]:
    """A model in float64 with random adapters, the layer at PATH, and the layer's adapter weights by name."""
    method = METHODS[name].bind({"target_modules": ["query"], **options})
    model = method.apply(make_model("bert"), "SEQ_CLS").double().eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5)
    layer = next(module for path, module in model.named_modules() if path.endswith(PATH))
    state = {key.replace(".default", "").removesuffix(".weight"): value for key, value in layer.state_dict().items()}
    weights = {key.rsplit(".", 1)[-1]: v.numpy().copy() for key, v in state.items() if "base_layer" not in key}
    if name == "vera":  # one pair for the whole model, cut to the layer
        weights |= {f"vera_{part}": getattr(layer, f"vera_{part}")["default"].double().numpy() for part in "AB"}
        weights["vera_A"], weights["vera_B"] = weights["vera_A"][:, :D], weights["vera_B"][:D]
    return model, layer, weights


@pytest.mark.parametrize(("name", "options", "delta"), DELTAS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(DELTAS)])
def test_linear_methods(
    make_model: Callable[[str], Any], name: str, options: dict[str, Any], delta: Callable[..., np.ndarray]
) -> None:
    model, layer, weights = randomised(make_model, name, options)
    W0 = layer.base_layer.weight.detach().numpy().copy()
    bias = layer.base_layer.bias.detach().numpy()
    expected = W0 + delta(weights, W0, layer)
    x = torch.randn(5, 3, D, dtype=torch.float64)
    close = {"rtol": 1e-5, "atol": 1e-6} if name == "fourierft" else {"rtol": 1e-10, "atol": 1e-11}  # float32 in PEFT
    with torch.no_grad():
        np.testing.assert_allclose(layer(x).numpy(), x.numpy() @ expected.T + bias, **close)
        factors = layer.update.factors() if hasattr(layer, "update") else None
        if factors is not None:
            np.testing.assert_allclose((factors[0] @ factors[1]).numpy(), expected - W0, **close)
        merged = METHODS[name].merge(model, "merged").get_submodule(PATH)
        assert type(merged) is nn.Linear
        np.testing.assert_allclose(merged.weight.numpy(), expected, **close)
        np.testing.assert_allclose(layer_output(merged, x), x.numpy() @ expected.T + bias, **close)


@pytest.mark.parametrize(("path", "d_in", "d_out"), [("intermediate.dense", D, 24), ("output.dense", 24, D)])
@pytest.mark.parametrize(
    ("name", "delta"),
    [
        ("sine-lora", lambda A, B, d_in: 3.0 * np.sin(200 * B @ A) / np.sqrt(d_in)),
        ("loran", lambda A, B, _: 3.0 * B @ A * (1 + 5e-5 * np.sin(1e4 * B @ A))),
    ],
)
def test_entry_by_entry_on_layers_that_are_not_square(
    make_model: Callable[[str], Any], name: str, delta: Callable[..., np.ndarray], path: str, d_in: int, d_out: int
) -> None:
    method = METHODS[name].bind({**RANK, "target_modules": [path]})
    model = method.apply(make_model("bert"), "SEQ_CLS").double().eval()
    layer = model.get_submodule(f"bert.encoder.layer.0.{path}")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in (p for p in layer.parameters() if p.requires_grad):
            parameter.normal_(std=0.5)
    x = torch.randn(5, d_in, dtype=torch.float64)
    state = {key.rsplit(".", 1)[-1]: value.numpy() for key, value in layer.state_dict().items() if "base" not in key}
    assert (state["A"].shape[1], state["B"].shape[0]) == (d_in, d_out)
    with torch.no_grad():
        found = (layer(x) - layer.base_layer(x)).numpy()
    np.testing.assert_allclose(found, x.numpy() @ delta(state["A"], state["B"], d_in).T, rtol=1e-9, atol=1e-10)


def layer_output(layer: nn.Module, x: torch.Tensor) -> np.ndarray:
    return layer(x).numpy()


def test_loda(make_model: Callable[[str], Any]) -> None:
    _, layer, w = randomised(make_model, "loda", {**RANK, "negative_slope": 0.5})
    x = torch.randn(5, 3, D, dtype=torch.float64)
    z = leaky(leaky(x.numpy() @ w["A"].T @ w["M1"].T, 0.5) @ w["M2"].T, 0.5)
    with torch.no_grad():
        expected = layer.base_layer(x).numpy() + 3.0 * z @ w["B"].T
        np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "act"), [("adapter-h", nn.functional.gelu), ("adapter-p", torch.relu)])
def test_adapters_of_a_llama(make_model: Callable[[str], Any], name: str, act: Callable[..., torch.Tensor]) -> None:
    """After the projection, before the residual: y + U act(D y + d) + u."""
    model = METHODS[name].bind({"r": 5}).apply(make_model("llama"), "SEQ_CLS").double()
    layer = model.get_submodule("model.layers.1.mlp.down_proj")
    x = torch.randn(5, 24, dtype=torch.float64)
    y, adapter = x @ layer.base_layer.weight.T, layer.adapter
    hidden = act(y @ adapter.down.weight.T + adapter.down.bias)
    torch.testing.assert_close(layer(x), y + hidden @ adapter.up.weight.T + adapter.up.bias)
    assert adapter.down.weight.shape == (5, 16)
    assert 0 < adapter.down.weight.abs().max() <= 0.02
    with_adapters = {path for path, module in model.named_modules() if hasattr(module, "adapter")}
    ends = {"mlp.down_proj", "self_attn.o_proj"} if name == "adapter-h" else {"mlp.down_proj"}
    assert with_adapters == {f"model.layers.{i}.{end}" for i in range(3) for end in ends}


def test_how_adapters_start(make_model: Callable[[str], Any]) -> None:
    """Normal with standard deviation 0.01, cut at two of them: that leaves one of 0.0088."""
    model = METHODS["adapter-h"].bind({"r": 64}).apply(make_model("bert"), "SEQ_CLS")
    adapters = [module.adapter for module in model.modules() if hasattr(module, "adapter")]
    assert len(adapters) == 6
    for layers in ([one.down for one in adapters], [one.up for one in adapters]):
        weights = torch.cat([layer.weight.detach().flatten() for layer in layers])
        assert weights.abs().max() <= 0.02
        assert weights.std().item() == pytest.approx(0.0088, rel=0.05)
        assert not any(layer.bias.any() for layer in layers)


def test_pfeiffers_place_in_a_bert(make_model: Callable[[str], Any]) -> None:
    """LN(s + U relu(D LN(s) + d) + u) with the sum s of feed-forward output and residual."""
    method = METHODS["adapter-p"]
    model = method.bind({"r": 5}).apply(make_model("bert"), "SEQ_CLS").double()
    place = "bert.encoder.layer.1.output.LayerNorm"
    norm = model.get_submodule(place)
    s = torch.randn(5, D, dtype=torch.float64)
    scale, shift, adapter = norm.base_layer.weight, norm.base_layer.bias, norm.adapter

    def ln(v: torch.Tensor) -> torch.Tensor:
        centred = v - v.mean(-1, keepdim=True)
        return scale * centred / (centred.square().mean(-1, keepdim=True) + norm.base_layer.eps).sqrt() + shift

    hidden = torch.relu(ln(s) @ adapter.down.weight.T + adapter.down.bias)
    torch.testing.assert_close(norm(s), ln(s + hidden @ adapter.up.weight.T + adapter.up.bias))
    adapted = {path for path, module in model.named_modules() if hasattr(module, "adapter")}
    assert adapted == {f"bert.encoder.layer.{i}.output.LayerNorm" for i in range(3)}


def test_houlsby_trains_norms_and_adapterdrop_leaves_layers_out(make_model: Callable[[str], Any]) -> None:
    def trained(name: str, **options: Any) -> set[str]:
        model = METHODS[name].bind(options).apply(make_model("bert"), "SEQ_CLS")
        return {n for n, p in model.named_parameters() if p.requires_grad}

    houlsby = trained("adapter-h")
    assert {n for n in houlsby if "LayerNorm" in n} == {
        f"bert.encoder.layer.{i}.{end}LayerNorm.{kind}"
        for i in range(3)
        for end in ("attention.output.", "output.")
        for kind in ("weight", "bias")
    }
    assert trained("adapter-h", train_norms=False) == {n for n in houlsby if "LayerNorm" not in n}
    dropped = trained("adapter-d", drop_layers=2)
    assert {n for n in dropped if "adapter" in n} == {n for n in trained("adapter-p") if "layer.2." in n}


@pytest.mark.parametrize(("name", "components"), [("milora", slice(-4, None)), ("pissa", slice(0, 4))])
def test_starts_at_singular_components(make_model: Callable[[str], Any], name: str, components: slice) -> None:
    """s B A is the part of W0 with the smallest (largest) singular values; the base layer keeps the rest."""
    W0 = make_model("bert").get_submodule(PATH).weight.detach().double().numpy()
    method = METHODS[name]
    model = method.bind({**PEFT_RANK, "target_modules": ["query"]}).apply(make_model("bert"), "SEQ_CLS")
    layer: Any = next(module for path, module in model.named_modules() if path.endswith(PATH))
    U, S, Vh = np.linalg.svd(W0)
    part = U[:, components] @ np.diag(S[components]) @ Vh[components]
    A, B = (one["default"].weight.detach().double().numpy() for one in (layer.lora_A, layer.lora_B))
    np.testing.assert_allclose(3.0 * B @ A, part, atol=1e-5)
    np.testing.assert_allclose(layer.base_layer.weight.detach().numpy(), W0 - part, atol=1e-5)
    np.testing.assert_allclose(A @ A.T, np.diag(S[components]) / 3.0, atol=1e-5)  # both factors have the root
    np.testing.assert_allclose(B.T @ B, np.diag(S[components]) / 3.0, atol=1e-5)


def test_bitfit_trains_biases_alone(make_model: Callable[[str], Any]) -> None:
    model = METHODS["bitfit"].apply(make_model("bert"), "SEQ_CLS")
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name.endswith(".bias") or name.startswith("classifier."))


def test_dropout_is_on_the_input_and_in_training_only(make_model: Callable[[str], Any]) -> None:
    for name in ("moslora", "dylora", "lora-drop", "sine-lora", "loran", "loda"):
        _, layer, _ = randomised(make_model, name, {**RANK, "dropout": 0.5})
        x = torch.ones(2, D, dtype=torch.float64)
        assert torch.equal(layer.eval()(x), layer(x))
        layer.train()
        assert not torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base(make_model: Callable[[str], Any], dtype: torch.dtype) -> None:
    """The adapter is kept in float32; the output and the merged weight have the base's precision, rounded once."""
    method = METHODS["moslora"].bind({**RANK, "target_modules": ["query"]})
    model = method.apply(make_model("bert").to(dtype), "SEQ_CLS")
    layer = model.get_submodule(PATH)
    nn.init.normal_(layer.update.B)
    assert layer.update.A.dtype is torch.float32
    assert layer(torch.ones(2, D, dtype=dtype)).dtype is dtype
    expected = (layer.base_layer.weight.float() + layer.update.delta_weight()).to(dtype)
    merged = method.merge(model, "merged").get_submodule(PATH)
    assert torch.equal(merged.weight, expected)
