"""Base weights that cannot be merged into."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.nn.utils import prune

from aurora_lora import AuroraConfig, MergeError


@pytest.mark.parametrize(
    "normalise",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.weight_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_weight_that_is_computed_from_others_is_not_merged_into(normalise):
    """The update would be gone with the next call; what does not merge changes nothing in the other layers either."""
    torch.manual_seed(0)
    config = AuroraConfig(target_modules=["plain", "normed"], eval_form="static", init_weights=False)
    model = nn.ModuleDict({"plain": nn.Linear(6, 6), "normed": normalise(nn.Linear(6, 6))})
    model = get_peft_model(model, config).eval()
    plain, normed = model.base_model.model["plain"], model.base_model.model["normed"]
    x = torch.randn(3, 6)
    before = plain(x), normed(x)
    for merge, layer in (
        (model.merge_adapter, "normed: "),
        (model.merge_and_unload, "normed: "),
        (lambda: model.merge_adapter(safe_merge=True), "normed: "),
        (normed.merge, ""),
    ):
        with pytest.raises(MergeError, match=rf"^{layer}The base weight of a .* is computed from other parameters"):
            merge()
        assert not plain.merged
        assert not normed.merged
    assert torch.equal(plain(x), before[0])
    torch.testing.assert_close(normed(x), before[1])
    plain.merge()  # by itself it does
