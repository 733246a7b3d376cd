"""Many reductions at once: a metric's `reduce`, given columns where it expects numbers.

`reduce` is written for one list of counts. Its sums, ratios and conditions are plain arithmetic, so a column
(a number per row) can stand in each number's place: the rows are reduced in one pass, to the same bits. Where
a condition holds in some rows only, the rows part, and each part is reduced by itself. What is more than
plain arithmetic (`math.fsum`, a lookup) is reduced row by row, each distinct row once.

It knows how a reduction is called; what the numbers mean, it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Reduce = Callable[[Sequence[Any]], Mapping[str, float | None]]

_FEW = 16  # rows that are not worth columns
_PARTS = 64  # a reduction that parts its rows further goes row by row


def reduced(reduce: Reduce, names: Sequence[str], sums: Floats) -> dict[str, Floats]:
    """What `reduce([sums])` gives for each row of `sums` (rows, names): each number's (rows,), NaN for None.

    >>> share = lambda counts: {"share": counts[0]["x"] / counts[0]["n"] if counts[0]["n"] else None}
    >>> reduced(share, ["n", "x"], np.array([[4.0, 1.0], [0.0, 0.0], [2.0, 1.0]] * 6))["share"][:3]
    array([0.25,  nan, 0.5 ])
    """
    if len(sums) > _FEW:
        try:
            return _by_columns(reduce, names, sums)
        except Exception:  # whatever it does with its numbers, it is no plain arithmetic
            pass
    return _by_rows(reduce, names, sums)


def columns(rows: Sequence[Mapping[str, float | None]]) -> dict[str, Floats]:
    """Each number of several reductions, NaN for None."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        name: np.array([np.nan if (value := row.get(name)) is None else value for row in rows], dtype=float)
        for name in names
    }


def _by_rows(reduce: Reduce, names: Sequence[str], sums: Floats) -> dict[str, Floats]:
    first, place = _distinct(sums)
    rows = [reduce([dict(zip(names, row, strict=True))]) for row in sums[first].tolist()]
    return {name: column[place] for name, column in columns(rows).items()}


def _distinct(sums: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each distinct row stands first, and which of them each row is. Few differ where answers are
    right or wrong."""
    varying = sums[:, (sums != sums[:1]).any(axis=0)] if len(sums) else sums
    if varying.shape[1] == 1:
        _, first, place = np.unique(varying[:, 0], return_index=True, return_inverse=True)
    elif varying.shape[1]:
        _, first, place = np.unique(varying, axis=0, return_index=True, return_inverse=True)
    else:
        first, place = np.zeros(min(1, len(sums)), int), np.zeros(len(sums), int)
    return first, place.ravel()


def _by_columns(reduce: Reduce, names: Sequence[str], sums: Floats) -> dict[str, Floats]:
    found: dict[str, Floats] = {}
    table = dict(zip(names, np.ascontiguousarray(sums.T), strict=True))
    waiting, parts = [np.arange(len(sums))], 0
    while waiting:
        places = waiting.pop()
        parts += 1
        if parts > _PARTS:
            raise ValueError("its conditions part the rows too often")
        whole = len(places) == len(sums)
        given = {name: Column(column if whole else column[places]) for name, column in table.items()}
        try:
            numbers: Mapping[str, Any] = reduce([given])
        except _Parted as parted:
            waiting += [places[parted.where], places[~parted.where]]
            continue
        for name, number in numbers.items():
            column = found.setdefault(name, np.full(len(sums), np.nan))
            if isinstance(number, Column):
                column[places] = number.values
            elif number is not None:
                column[places] = number
    _check(reduce, names, sums, found)
    return found


def _check(reduce: Reduce, names: Sequence[str], sums: Floats, found: Mapping[str, Floats]) -> None:
    """Raises ValueError unless some rows, reduced by themselves, are what was found."""
    places = [0, len(sums) // 3, len(sums) - 1]
    alone = columns([reduce([dict(zip(names, row, strict=True))]) for row in sums[places].tolist()])
    for name, column in found.items():
        if not np.array_equal(column[places], alone.get(name, np.full(3, np.nan)), equal_nan=True):
            raise ValueError(f"{name} is another number by columns")


class _Parted(BaseException):
    """A condition holds in some rows only. No Exception: a reduction's own handlers are not meant."""

    def __init__(self, where: npt.NDArray[np.bool_]) -> None:
        self.where = where


class Column:
    """A number per row, which computes and compares as one number does. It is no float: what needs one (fsum,
    round) refuses it."""

    __slots__ = ("values",)
    __array_ufunc__ = None  # numpy leaves the arithmetic to it

    def __init__(self, values: Floats) -> None:
        self.values = values

    def __add__(self, other: Any) -> Column:
        return Column(self.values + _values(other))

    __radd__ = __add__

    def __mul__(self, other: Any) -> Column:
        return Column(self.values * _values(other))

    __rmul__ = __mul__

    def __sub__(self, other: Any) -> Column:
        return Column(self.values - _values(other))

    def __rsub__(self, other: Any) -> Column:
        return Column(_values(other) - self.values)

    def __truediv__(self, other: Any) -> Column:
        return Column(self.values / _divisor(_values(other)))

    def __rtruediv__(self, other: Any) -> Column:
        return Column(_values(other) / _divisor(self.values))

    def __neg__(self) -> Column:
        return Column(-self.values)

    def __abs__(self) -> Column:
        return Column(np.abs(self.values))

    def __bool__(self) -> bool:
        return _agreed(self.values != 0)

    def __lt__(self, other: Any) -> bool:
        return _agreed(self.values < _values(other))

    def __le__(self, other: Any) -> bool:
        return _agreed(self.values <= _values(other))

    def __gt__(self, other: Any) -> bool:
        return _agreed(self.values > _values(other))

    def __ge__(self, other: Any) -> bool:
        return _agreed(self.values >= _values(other))

    def __eq__(self, other: object) -> bool:
        return _agreed(self.values == _values(other))

    def __ne__(self, other: object) -> bool:
        return _agreed(self.values != _values(other))

    __hash__ = None  # type: ignore[assignment]

    def __format__(self, spec: str) -> NoReturn:
        raise TypeError("a column is no text")

    __str__ = __repr__ = lambda self: self.__format__("")


def _values(number: Any) -> Any:
    if isinstance(number, Column):
        return number.values
    if isinstance(number, int | float):
        return float(number)
    raise TypeError(f"{type(number).__name__} is no number")


def _divisor(values: Any) -> Any:
    if np.any(values == 0):
        raise ZeroDivisionError("division by zero in some rows")
    return values


def _agreed(where: npt.NDArray[np.bool_]) -> bool:
    """Whether a condition holds, where it does in all rows or in none. Raises _Parted where rows differ."""
    if where.all():
        return True
    if where.any():
        raise _Parted(where)
    return False
