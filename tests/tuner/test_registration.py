"""AuroRA's place in PEFT's tables."""

import copy
import enum
import pickle

import pytest
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING

import aurora_lora
from aurora_lora.tuner.registration import add_string_member


def test_the_member_behaves_like_one_of_the_class_body():
    class Colour(str, enum.Enum):  # noqa: UP042 - as PeftType is made
        RED = "RED"

    member = add_string_member(Colour, "BLUE")
    assert add_string_member(Colour, "BLUE") is member
    assert Colour("BLUE") is Colour["BLUE"] is Colour.BLUE is member
    assert list(Colour) == [Colour.RED, member]
    assert len(Colour) == 2
    assert (member.name, member.value, member == "BLUE", isinstance(member, Colour)) == ("BLUE", "BLUE", True, True)
    assert {member: 1}["BLUE"] == 1
    assert copy.deepcopy(member) is member
    with pytest.raises(ValueError, match="GREEN"):
        Colour("GREEN")


def test_peft_knows_the_method():
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType("AURORA")] is aurora_lora.AuroraConfig
    assert PEFT_TYPE_TO_PREFIX_MAPPING["AURORA"] == "aurora_"
    assert pickle.loads(pickle.dumps(PeftType["AURORA"])) is PeftType["AURORA"]
