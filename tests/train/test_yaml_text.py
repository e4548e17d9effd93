"""YAML by the core schema of version 1.2, and what is refused."""

from typing import Any

import pytest

from aurora_lora.errors import UserError
from aurora_lora.train import yaml_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("017", 17),  # octal in YAML 1.1
        ("0o17", 15),
        ("0x1F", 31),
        ("1:30", "1:30"),  # 90 seconds in YAML 1.1
        ("on", "on"),  # a switch in YAML 1.1
        ("1_000", "1_000"),
        ("2024-02-30", "2024-02-30"),
        ("true", True),
        ("-.INF", float("-inf")),
        ("=", "="),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
        ("%YAML 1.1\n---\noff", "off"),
        ("[&a [x], *a]", [["x"], ["x"]]),
        ("", None),
        ("~", None),
    ],
)
def test_plain_words(text: str, value: Any) -> None:
    parsed = yaml_text.parse(text, "here")
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: {{ seed }}", "here, line 1: {'seed': None} is no name of a field"),
        ("a: 1\n1: 2", "here, line 2: 1 is no name of a field"),
        ("? [a]\n: 1", "here, line 1: ['a'] is no name of a field"),
        ("!!int abc", "here, line 1: 'abc' is no int"),
        ("!!float 1:30", "here, line 1: '1:30' is no float"),
        ("!!bool on", "here, line 1: 'on' is no bool"),
        ("!!seq {a: 1}", "here, line 1: this is no list"),
        ("!!map [1]", "here, line 1: these are no fields"),
        ("!!binary aGk=", "here, line 1: could not determine a constructor for the tag"),
        ("!!timestamp 2024-02-30", "here, line 1: could not determine a constructor for the tag"),
        ('name: "\\ud800"', "here, line 1: '\\ud800' is no str"),
        ("9" * 5000, "here, line 1: '9999"),
        ("[" * 200 + "]" * 200, "here, line 1: more than 100 levels deep"),
        ("a: &a [*a]", "here, line 1: more than 100,000 values"),
        ("\udcff", "here: "),
        ("a: 1\n---\nb: 2", "here, line 2: but found another document"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        yaml_text.parse(text, "here")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["- " * 500, "[" * 9000])
def test_too_many_levels(text: str) -> None:
    """Python's own limit comes first or ours, which names the line: other packages raise the first."""
    with pytest.raises(UserError, match=r"^here(, line 1)?: more than 100 levels deep$"):
        yaml_text.parse(text, "here")


def test_what_an_alias_stands_for_can_be_changed_alone() -> None:
    value = yaml_text.parse("a: &one {b: [1]}\nc: *one", "text")
    value["c"]["b"].append(2)
    assert value == {"a": {"b": [1]}, "c": {"b": [1, 2]}}


def test_a_few_lines_that_stand_for_billions_of_values() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(UserError, match="more than 100,000 values"):
        yaml_text.parse("\n".join(lines), "here")


@pytest.mark.parametrize(
    "value",
    [
        *(
            "1e3",
            "0o17",
            "017",
            "on",
            "1:30",
            "~",
            "",
            "2024-01-01",
            "a\nb",
            "=",
            "<<",
            " x ",
            "- a",
            "{a",
            "1_0",
            ".5",
        ),
        *("\x85", "\u2028", "\ufeff", "\x07", "é", "😀", "#", "null", "yes", "true"),
        *(1e-5, 5e-324, 1e300, float("inf"), -0.0, None, True, 3, [1, [2]], {"a": {}}),
    ],
)
def test_what_is_written_reads_back_as_itself(value: Any) -> None:
    assert repr(yaml_text.parse(yaml_text.dump({"a": value}), "here")) == repr({"a": value})
