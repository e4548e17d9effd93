"""What stands in columns: which texts count as the same."""

import pytest

from aurora_lora.data.own.columns import same_text


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A pretentious mess.", "...a  pretentious\tMESS...", True),
        ("clich\u00e9s", "cliche\u0301s", True),
        ("\uff21 film", "a film", True),
        ("Straße", "STRASSE", True),
        ("well_made", "well\u00a0made", True),
        ("¿qué?", "Qué", True),
        ("one of the best films", "one of the worst films", False),
        ("!!!", "???", False),
        ("5 + 3", "5 < 3", False),
        ("5 €", "5 £", False),
        ("की", "का", False),
        ("की", "क", False),
        ("great 😀", "great 😡", False),
        ("great 😀", "great", False),
    ],
)
def test_what_counts_as_the_same_text(one: str, other: str, same: bool) -> None:
    assert (same_text(one) == same_text(other)) is same
