import sys

import pytest

from aurora_lora.errors import UserError
from aurora_lora.extras import extra
from aurora_lora.lab.report.figures import new_figure
from aurora_lora.lab.report.page import write_page


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with (
        pytest.raises(UserError, match=r"'torchvision' is missing: pip install 'aurora-lora\[vision\]' installs it"),
        extra("vision"),
    ):
        import torchvision.transforms  # noqa: F401
    with pytest.raises(ZeroDivisionError), extra("vision"):
        _ = 1 / 0


@pytest.mark.parametrize(
    ("package", "name", "use"),
    [
        ("matplotlib", "report", lambda: new_figure(1, 1, 1)),
        ("jinja2", "report", lambda: write_page([], None, "")),  # type: ignore[arg-type]
    ],
)
def test_all_say_it_alike(monkeypatch: pytest.MonkeyPatch, package: str, name: str, use) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as caught:
        use()
    assert (
        str(caught.value) == f"the Python package '{package}' is missing: pip install 'aurora-lora[{name}]' installs it"
    )
