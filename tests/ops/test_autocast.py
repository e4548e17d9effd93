"""Products that autocast leaves alone."""

import torch

from aurora_lora.ops.update import without_autocast


def test_products_keep_their_precision_and_autocast_comes_back() -> None:
    x = torch.randn(5, 5)
    exact = x @ x
    with torch.autocast("cpu", torch.bfloat16):
        with without_autocast(x):
            assert torch.equal(x @ x, exact)
        assert (x @ x).dtype == torch.bfloat16


def test_the_meta_device_has_no_autocast() -> None:
    x = torch.empty(5, 5, device="meta")
    with torch.autocast("cpu", torch.bfloat16), without_autocast(x):
        assert (x @ x).dtype == torch.float32
