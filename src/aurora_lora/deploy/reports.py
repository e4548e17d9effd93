"""What the results of `calibrate`, `merge_gap`, `merge_quantized` and `probe` have in common: how they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from ..files import finite_or_none
from ..finite import nan_as_infinite
from ..values import is_int, require

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")


class Report:
    """What a computation has found."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: None stands for NaN and infinity, which JSON does not have."""
        found: dict[str, Any] = finite_or_none(_plain(self))
        return found

    def tables(self) -> tuple[Table, ...]:
        """The tables for a terminal. Needs rich."""
        raise NotImplementedError

    def __str__(self) -> str:
        """The tables, 80 characters wide; all fields, where rich is not installed."""
        try:
            from .tables import as_text

            return as_text(self.tables())
        except ModuleNotFoundError:
            return repr(self)

    def _repr_html_(self) -> str | None:
        """The tables for a notebook."""
        try:
            from .tables import as_html

            return as_html(self.tables())
        except ModuleNotFoundError:
            return None


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, Tensor) else value


def worst_of(entries: Iterable[T], loss: Callable[[T], float], n: int) -> tuple[T, ...]:
    """The n entries that lose most, the worst first; a loss that is not a number is with the worst.

    Raises:
        ValueError: n is no whole number of at least 1.
    """
    require(is_int(n, 1), "n", n, "a whole number of at least 1")
    return tuple(sorted(entries, key=lambda entry: nan_as_infinite(loss(entry)), reverse=True)[: int(n)])
