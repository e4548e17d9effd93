"""AuroRA on convolutions: each output position is a linear layer on a patch."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from aurora_lora import AuroraConfig, calibrate, export_lora, merge_gap, set_form

GENERATOR = torch.Generator().manual_seed(0)

# name, layer, input
CASES = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (3, 4, 9)),
    "conv1d-dilated": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), (3, 4, 11)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 5)),
    "conv2d-1x1": (lambda: nn.Conv2d(4, 6, 1, bias=False), (2, 4, 3, 5)),
    "conv2d-uneven": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2)),
        (2, 4, 7, 8),
    ),
    "conv2d-same": (lambda: nn.Conv2d(4, 6, 4, padding="same"), (2, 4, 7, 5)),
    "conv2d-valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 7, 5)),
    "conv2d-reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 7, 5)),
    "conv2d-circular": (lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular"), (2, 4, 7, 5)),
    "conv2d-groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 7, 5)),
    "conv2d-depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 7, 5)),
    "conv2d-unbatched": (lambda: nn.Conv2d(4, 6, 3, padding=1), (4, 7, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3), padding=(0, 1, 1)), (2, 2, 3, 4, 5)),
}


def adapt(make, **fields):
    torch.manual_seed(0)
    model = nn.Sequential(make()).double()
    fields = {"target_modules": ["0"], "init_weights": False, "r": 3, "alpha": 3, **fields}
    return get_peft_model(model, AuroraConfig(**fields), autocast_adapter_dtype=False).eval()


def vectors_of(layer, x):
    """All patches of the input, (n, d_in)."""
    ((vectors, _),) = layer.input_pieces(x, 10**9)
    return vectors


def data(shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
def test_the_patches_are_what_the_base_layer_sees(case):
    make, shape = CASES[case]
    model = adapt(make)
    layer, x = model.base_model.model[0], data(shape)
    base = layer.base_layer
    patches = vectors_of(layer, x)
    weight = base.weight.reshape(base.groups, base.out_channels // base.groups, -1)  # W0 as one matrix for each group
    n = 1 if x.dim() == layer.dimensions + 1 else len(x)
    by_group = patches.reshape(n, base.groups, -1, layer.d_in)
    output = (by_group @ weight.transpose(1, 2)).transpose(2, 3).reshape(n, base.out_channels, -1)
    if base.bias is not None:
        output = output + base.bias[:, None]
    torch.testing.assert_close(output.reshape(base(x).shape), base(x))


@pytest.mark.parametrize("rows", [1, 17])
@pytest.mark.parametrize("case", CASES)
def test_patches_in_pieces_are_the_same_patches(case, rows):
    make, shape = CASES[case]
    layer, x = adapt(make).base_model.model[0], data(shape)
    found, patches = list(layer.input_pieces(x, rows)), vectors_of(layer, x)
    pieces, groups = zip(*found, strict=True)
    assert torch.equal(torch.cat(pieces), patches)
    n, of = layer.get_base_layer().groups, torch.arange(len(patches))
    positions = layer.base_layer(x).shape[-layer.dimensions :].numel()
    assert torch.equal(torch.cat(groups), of // positions % n)
    line = layer.base_layer(x).shape[-layer.dimensions :][1:].numel()
    assert max(map(len, pieces)) <= max(rows, line)
    assert len(pieces) == 1 or rows < len(patches)


@pytest.mark.parametrize("case", CASES)
def test_dynamic_form_is_eq_4_on_every_patch(case):
    make, shape = CASES[case]
    model = adapt(make)
    layer, x = model.base_model.model[0], data(shape)
    base = layer.base_layer
    A, B = layer.aurora_A["default"].weight, layer.aurora_B["default"].weight
    z = layer.sigma("default", vectors_of(layer, x) @ A.T)  # (n * groups * positions, r)
    n = 1 if x.dim() == layer.dimensions + 1 else len(x)
    z = z.reshape(n, base.groups, -1, 3)
    rows = B.reshape(base.groups, -1, 3)
    update = torch.einsum("ngpr,gor->ngop", z, rows).reshape(base(x).shape)
    torch.testing.assert_close(model(x), base(x) + update)


@pytest.mark.parametrize("form", ["static", "calibrated"])
@pytest.mark.parametrize("case", CASES)
def test_merge_computes_what_eval_did(case, form):
    make, shape = CASES[case]
    model, x = adapt(make, eval_form=form), data(shape)
    if form == "calibrated":
        calibrate(model, [x, x + 1])
    expected, before = model(x), model.base_model.model[0].base_layer.weight.clone()
    model.merge_adapter()
    torch.testing.assert_close(model(x), expected)
    model.unmerge_adapter()
    assert torch.equal(model.base_model.model[0].base_layer.weight, before)
    torch.testing.assert_close(model.merge_and_unload()(x), expected)


def test_the_calibrated_matrix_is_the_least_squares_solution():
    model = adapt(CASES["conv2d-groups"][0])
    inputs = [torch.randn(8, 4, 7, 5, generator=GENERATOR, dtype=torch.float64) for _ in range(3)]
    report = calibrate(model, inputs)
    layer = model.base_model.model[0]
    patches = torch.cat([vectors_of(layer, x) for x in inputs])
    z = patches @ layer.aurora_A["default"].weight.T
    sigma = layer.sigma("default", z)
    linear = torch.linalg.lstsq(z, sigma).solution.T @ layer.aurora_A["default"].weight
    damping = (report.layers[0].ridge * len(patches)) ** 0.5 * torch.eye(patches.shape[1], dtype=torch.float64)
    rest = torch.cat([sigma - patches @ linear.T, torch.zeros(len(damping), sigma.shape[1], dtype=torch.float64)])
    expected = linear + torch.linalg.lstsq(torch.cat([patches, damping]), rest).solution.T
    torch.testing.assert_close(layer.aurora_A_cal["default"].weight, expected, rtol=1e-8, atol=1e-10)
    assert report.layers[0].vectors == len(patches)
    gap, added = merge_gap(model, inputs), {}
    for form in ("dynamic", "static", "calibrated"):
        with set_form(model, form):
            added[form] = torch.stack([model(x) - layer.base_layer(x) for x in inputs])
    for entry in gap.layers:
        expected = (added[entry.form] - added["dynamic"]).norm() / added["dynamic"].norm()
        assert entry.relative_error == pytest.approx(float(expected.detach()), rel=1e-6)


@pytest.mark.parametrize("case", ["conv1d", "conv2d", "conv2d-1x1", "conv2d-valid", "conv3d"])
def test_export_loads_in_stock_peft(case, tmp_path):
    make, shape = CASES[case]
    model, x = adapt(make, eval_form="static"), data(shape)
    expected = model(x)
    export_lora(model, tmp_path / "lora")
    base = nn.Sequential(make()).double()
    base.load_state_dict({k.replace("base_layer.", ""): v for k, v in model.unload().state_dict().items()})
    lora = PeftModel.from_pretrained(base, tmp_path / "lora")
    assert isinstance(lora.peft_config["default"], LoraConfig)
    torch.testing.assert_close(lora(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "named"),
    [("conv2d-groups", "groups=2"), ("conv1d-dilated", "dilation="), ("conv2d-reflect", "padding_mode='reflect'")],
)
def test_what_lora_cannot_express_is_not_exported(case, named, tmp_path):
    model = adapt(CASES[case][0], eval_form="static")
    with pytest.raises(ValueError, match=rf"0 cannot be exported: PEFT's LoRA .* {named}.*Merge it instead"):
        export_lora(model, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
