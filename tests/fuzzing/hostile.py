"""Values that no one means: of every type, of every size, and words that some reader takes for something else."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

_PLAIN = r"""
( [ { * .* (a+ a{99999} \ ' " # %s {0} = << --- *a ~ / . ../.. é 😀 on off yes true null 017 0x1F 0o17 1_000 1:30 1e400
5e-3 2024-02-30 .nan .inf query value q v classifier head nope all-linear layer bert.encoder querry epoch accuracy
aurora lora full linear-probe tiny-sentiment movie-sentiment cola /dev/null /dev/full /proc/x ~root
"""
WORDS = (
    *_PLAIN.split(),
    *("", " ", "{{ seed }}", "- a", "a: b", "!!int abc", "!!binary x", "&a [*a]", "a\nb", "\t", "\x00", "\x85"),
    *("\u2028", "\ufeff", "\ud800", "a" * 300),
)
NUMBERS = (
    *(0, 1, -1, 2, 3, 8, 255, 256, 2**31, 2**32, 2**63, 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1e-3, 1e30, 1e300, 5e-324),
)
scalars = st.one_of(
    *(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.integers(-3, 40), st.floats()),
    *(st.sampled_from(WORDS), st.text(max_size=8)),
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=3)),
    max_leaves=5,
)


@st.composite
def fields(draw: st.DrawFn, plausible: dict[str, list[Any]], most: int = 3) -> dict[str, Any]:
    """A few fields, each with a value that may be meant or one that cannot, and now and then one that there is not."""
    names = draw(st.lists(st.sampled_from(sorted(plausible)), min_size=1, max_size=most, unique=True))
    meant = {name: st.sampled_from(plausible[name]) for name in names}
    given = {name: draw(st.one_of(meant[name], meant[name], values)) for name in names}
    if draw(st.integers(0, 20)) == 0:
        given[draw(st.sampled_from(WORDS))] = draw(values)
    return given


def is_plain_json(value: Any) -> bool:
    """Whether JSON holds the value as it is: its text is then the same in YAML 1.2, of which it is a part."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (ValueError, TypeError, RecursionError):
        return False


def same(given: Any, kept: Any) -> bool:
    """Whether a value was kept as it was given: no switch for a number, no number for a text."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return given.keys() == kept.keys() and all(same(given[key], kept[key]) for key in given)
    if isinstance(kept, set):
        return set(given) == kept
    if isinstance(given, list | tuple) and isinstance(kept, list | tuple):
        return len(given) == len(kept) and all(map(same, given, kept))
    if isinstance(given, bool) or isinstance(kept, bool) or isinstance(given, str) or given is None:
        return type(given) is type(kept) and given == kept
    return isinstance(kept, int | float) and given == kept
