"""The tables of the methods' options."""

from pathlib import Path

from aurora_lora import AuroraConfig
from aurora_lora.methods import METHODS, get_method
from aurora_lora.methods.options import added_fields
from make.method_options import AURORA, COMMON, method_options

ROOT = Path(__file__).parents[2]


def test_every_option_of_every_method_is_shown() -> None:
    rows = dict(row.strip("| ").split(" | ", 1) for row in method_options().splitlines()[2:])
    assert {f"`{name}`" for name in METHODS} - set(rows) == {f"`{name}`" for name in METHODS if "aurora" in name}
    for name, options in rows.items():
        for option, default in get_method(name.strip("`")).bind({}).options.items():
            assert option in COMMON or f"`{option}`" in options, (name, option, default)
    assert "`deltaT` 1," in rows["`adalora`"]  # a number, not `true`
    assert "`frozen` false" in rows["`dylora`"]
    assert rows["`full`"] == "none"


def test_all_of_auroras_own_fields_are_shown() -> None:
    of_peft = {*COMMON, "modules_to_save", "rank_pattern", "alpha_pattern", "trainable_token_indices", "bias"}
    of_peft |= {"target_parameters", "fan_in_fan_out"}
    assert set(added_fields(AuroraConfig)) - of_peft - {"calibrated"} == set(AURORA)
