"""`Calibration`: fresh, stale or none, and what is kept where one is taken away and given back."""

import copy
import io
import warnings

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict
from peft.utils import set_peft_model_state_dict
from torch import nn

from aurora_lora import AuroraConfig
from aurora_lora.errors import CheckpointError, FormError, NotCalibratedError, StaleCalibrationError
from aurora_lora.tuner import Calibration


def one_layer(**fields):
    torch.manual_seed(0)
    config = AuroraConfig(target_modules=["0"], init_weights=False, **fields)
    layer = get_peft_model(nn.Sequential(nn.Linear(5, 4)), config).base_model.model[0]
    return layer, layer.calibration["default"]


def test_from_none_to_fresh_to_stale():
    layer, calibration = one_layer()
    assert isinstance(calibration, Calibration)
    with pytest.raises(NotCalibratedError):
        calibration.fresh_matrix()
    assert (calibration.exists, calibration.check(), calibration.config.calibrated) == (False, False, False)
    matrix = torch.randn(2, 5)
    calibration.store(matrix)
    assert (calibration.exists, calibration.is_fresh, calibration.config.calibrated) == (True, True, True)
    assert torch.equal(calibration.fresh_matrix(), matrix)
    assert layer.eval().form("default") == "calibrated"
    for weights in (layer.aurora_A, layer.aurora_H, layer.aurora_spline_weight):
        with torch.no_grad():
            weights["default"].add_(1)
        assert (calibration.exists, calibration.check()) == (True, False)
        with pytest.raises(StaleCalibrationError):
            calibration.fresh_matrix()
        calibration.store(matrix)
    with torch.no_grad():
        layer.aurora_B["default"].add_(1)  # which the matrix does not depend on
    assert calibration.check()


def test_training_in_eval_mode_is_noticed():
    """There only B gets a gradient; and where A has changed, the matrix is not used."""
    layer, calibration = one_layer()
    calibration.store(torch.randn(2, 5))
    x = torch.randn(6, 5)
    layer.eval()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x).square().sum().backward()
        layer(x)
    optimizer.step()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)  # an evaluation
    with pytest.warns(UserWarning, match=r"'default' is trained in eval mode.* Call model\.train\(\)"):
        layer(x)
    with torch.no_grad():
        layer.aurora_B["default"].add_(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)  # said once
    with torch.no_grad():
        layer.aurora_A["default"].add_(1)
    with pytest.warns(UserWarning, match=r"does not belong to its present weights .*: eval"):
        layer(x)
    assert layer.form("default") == "dynamic"


def test_weights_that_are_exchanged_in_eval_mode_are_noticed():
    """As an average of the weights is, to evaluate it: what is computed is what `eval()` would compute."""
    layer, calibration = one_layer()
    calibration.store(torch.randn(2, 5))
    x, mine = torch.randn(6, 5), [weight.detach().clone() for weight in layer.parameters()]
    with torch.no_grad():
        before = layer.eval()(x)
        for weight in layer.parameters():
            weight.copy_(weight + 0.3)
        with pytest.warns(UserWarning, match=r"does not belong to its present weights .*: eval"):
            exchanged = layer(x)
        assert layer.form("default") == "dynamic"
        with pytest.warns(UserWarning, match=r"does not belong to its present weights .*: eval"):
            assert torch.equal(layer.eval()(x), exchanged)
        for weight, own in zip(layer.parameters(), mine, strict=True):
            weight.copy_(own)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(layer(x), before)  # back again, which is noticed too
        assert torch.equal(layer.eval()(x), before)


def test_training_in_training_mode_is_as_ever():
    layer, calibration = one_layer()
    calibration.store(torch.randn(2, 5))
    for _ in range(2):
        layer.train()(torch.randn(6, 5)).square().sum().backward()
        torch.optim.SGD(layer.parameters(), lr=0.1).step()
        calibration.store(torch.randn(2, 5))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            layer.eval()(torch.randn(6, 5))


def test_what_is_taken_can_be_given_back():
    layer, calibration = one_layer()
    nothing = calibration.take()
    calibration.store(torch.ones(2, 5))
    calibration.give_back(nothing)
    assert (calibration.exists, calibration.config.calibrated) == (False, False)
    calibration.store(torch.ones(2, 5))
    earlier = calibration.take()
    assert (calibration.exists, calibration.is_fresh, list(layer.aurora_A_cal)) == (False, False, [])
    calibration.store(torch.zeros(2, 5))
    calibration.give_back(earlier)
    assert torch.equal(calibration.fresh_matrix(), torch.ones(2, 5))
    assert calibration.config.calibrated


def test_room_waits_for_a_checkpoint():
    layer, calibration = one_layer(calibrated=True)  # init_weights=False fills it at random
    assert calibration.is_awaited
    assert calibration.check()
    state = {name: value for name, value in layer.state_dict().items() if "A_cal" in name}
    assert set(state) == {"aurora_A_cal.default", "aurora_A_cal_fingerprint.default"}
    layer.load_state_dict(layer.state_dict())
    assert not calibration.is_awaited
    calibration.take()
    calibration.make_room()
    assert (calibration.has_room, calibration.exists) == (True, False)


def test_where_there_is_nothing_to_calibrate():
    _, calibration = one_layer(train_form="static")
    with pytest.raises(FormError, match="trained in the static form"):
        calibration.fresh_matrix()
    config = AuroraConfig(target_modules=["0"])
    assert get_peft_model(nn.Sequential(nn.Embedding(5, 4)), config).base_model.model[0].calibration == {}


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_a_file])
def test_a_copy_notices_its_own_changes(copied):
    """A copy has other tensors than the matrix was compared with, as an average of a model's weights has."""
    layer, calibration = one_layer()
    calibration.store(torch.randn(2, 5))
    x, other = torch.randn(6, 5), copied(layer.eval())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(other(x), layer(x))
    other = copied(layer)
    with torch.no_grad():
        other.aurora_A["default"].mul_(-1)
        with pytest.warns(UserWarning, match=r"does not belong to its present weights .*: eval"):
            other(x)
        assert (other.form("default"), layer.form("default")) == ("dynamic", "calibrated")


def test_an_average_of_the_weights_notices_them():
    layer, calibration = one_layer()
    calibration.store(torch.randn(2, 5))
    average, x = torch.optim.swa_utils.AveragedModel(layer.eval()), torch.randn(6, 5)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.add_(0.3)
    average.update_parameters(layer)  # the first time, it takes them over
    with pytest.warns(UserWarning, match=r"does not belong to its present weights .*: eval"), torch.no_grad():
        averaged = average(x)
    assert average.module.form("default") == "dynamic"
    with pytest.warns(UserWarning, match=r"does not belong to its present weights .*: eval"), torch.no_grad():
        assert torch.equal(layer(x), averaged)


def test_weights_that_a_call_brings_along_are_noticed_for_that_call():
    layer, calibration = one_layer()
    calibration.store(torch.randn(2, 5))
    x, weights = torch.randn(6, 5), dict(layer.named_parameters())
    with torch.no_grad():
        before = layer.eval()(x)
        doubled = {name: 2 * weight for name, weight in weights.items()}
        with pytest.warns(UserWarning, match=r"does not belong to its present weights .*: eval"):
            called = torch.func.functional_call(layer, doubled, (x,))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(layer(x), before)
            assert layer.form("default") == "calibrated"
            same = {name: weight.clone() for name, weight in weights.items()}
            assert torch.equal(torch.func.functional_call(layer, same, (x,)), before)
        for weight, twice in zip(weights.values(), doubled.values(), strict=True):
            weight.copy_(twice)
        with pytest.warns(UserWarning, match=r"does not belong to its present weights .*: eval"):
            assert torch.equal(layer(x), called)


def test_weights_of_a_later_call_are_not_taken_for_earlier_ones_in_the_same_place_in_memory():
    layer, calibration = one_layer()
    calibration.store(torch.randn(2, 5))
    x, A = torch.randn(6, 5), layer.eval().aurora_A["default"]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calibrated = layer(x)
        for factor in (1, 2) * 20:
            called = torch.func.functional_call(layer, {"aurora_A.default": factor * A}, (x,))
            assert torch.equal(called, calibrated) == (factor == 1)


def test_another_b_that_a_call_brings_along_is_not_taken_for_training():
    layer, calibration = one_layer()
    calibration.store(torch.randn(2, 5))
    x, B = torch.randn(6, 5), layer.eval().aurora_B["default"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
        assert torch.func.functional_call(layer, {"aurora_B.default": nn.Parameter(2 * B.detach())}, (x,)).requires_grad


def test_weights_that_are_parts_of_another_tensor_are_not_read():
    """As FSDP makes them for each pass, of its flat parameter."""
    layer, calibration = one_layer()
    calibration.store(torch.randn(2, 5))
    x, weights = torch.randn(6, 5), layer.eval().aurora_A
    flat = torch.cat([torch.zeros(3), 2 * weights["default"].detach().flatten()])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = layer(x)
        assert torch.equal(
            torch.func.functional_call(layer, {"aurora_A.default": flat[3:].view_as(weights["default"])}, (x,)),
            expected,
        )


def test_of_weights_on_meta_nothing_tells_whether_a_matrix_is_theirs():
    layer, calibration = one_layer()
    calibration.store(torch.randn(2, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.to("meta").eval()
    assert calibration.exists


def test_what_is_stored_is_a_copy():
    layer, calibration = one_layer()
    calibration.store(layer.aurora_A["default"])
    before = layer.aurora_A["default"].detach().clone()
    with torch.no_grad():
        layer.aurora_A["default"].add_(1)
    assert torch.equal(layer.aurora_A_cal["default"], before)


def test_a_matrix_that_was_stored_is_none_that_a_checkpoint_still_has_to_bring():
    """The config was that of a calibrated adapter."""
    model = get_peft_model(nn.Sequential(nn.Linear(5, 4)), AuroraConfig(target_modules=["0"]))
    uncalibrated = get_peft_model_state_dict(model)
    calibrated = AuroraConfig(target_modules=["0"], calibrated=True, inference_mode=True)
    with pytest.raises(CheckpointError, match="says calibrated=True"):
        set_peft_model_state_dict(get_peft_model(nn.Sequential(nn.Linear(5, 4)), calibrated), uncalibrated)
    other = get_peft_model(nn.Sequential(nn.Linear(5, 4)), calibrated)
    calibration = other.base_model.model[0].calibration["default"]
    calibration.store(torch.randn(8, 5)[: other.peft_config["default"].r])
    set_peft_model_state_dict(other, uncalibrated)
    assert not calibration.exists
    assert not other.peft_config["default"].calibrated


def test_weights_are_not_read_where_they_are_traced():
    """By torch.func's transforms, say, for an ensemble: its weights come stacked, with their matrices."""
    layer, calibration = one_layer()
    calibration.store(torch.randn(2, 5))
    x, state = torch.randn(6, 5), {name: value.detach() for name, value in layer.eval().state_dict().items()}
    stacked = {name: torch.stack([value, value]) for name, value in state.items()}
    with torch.no_grad():
        both = torch.func.vmap(lambda one: torch.func.functional_call(layer, one, (x,)))(stacked)
        torch.testing.assert_close(both, layer(x).expand(2, -1, -1))
