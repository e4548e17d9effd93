import sys

import pytest

from aurora_lora.errors import UserError
from aurora_lora.extras import extra


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with (
        pytest.raises(UserError, match=r"'torchvision' is missing: pip install 'aurora-lora\[vision\]' installs it"),
        extra("vision"),
    ):
        import torchvision.transforms  # noqa: F401
    with pytest.raises(ZeroDivisionError), extra("vision"):
        _ = 1 / 0
