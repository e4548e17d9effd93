"""What is not finite is refused."""

import math

import pytest

from aurora_lora.errors import UserError
from aurora_lora.finite import check_loss


def test_a_loss_that_is_no_number_ends_a_training() -> None:
    check_loss(1e30, 3)
    for loss in (math.nan, math.inf, -math.inf):
        said = f"^training diverged: the loss is {loss} at step 3; lower training.learning_rate$"
        with pytest.raises(UserError, match=said):
            check_loss(loss, 3)
