"""Tables in the look that users of NNCF know: ruled cells, floats with three decimals, shapes as lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Cell = str | float | Sequence[int] | None
"""Text, a count or a ratio (numpy's numbers, too), a shape, or nothing."""


def grid(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table with ruled cells; columns of numbers are set flush right. ASCII, so that every terminal shows it.

    Parameters
    ----------
    header
        One name per column.
    rows
        As many cells each. None, which stands for what has no value, becomes `-`.

    Examples
    --------
    >>> print(grid(["Layer's name", "Level"], [["conv", 0.5], ["head", 0]]))
    +----------------+---------+
    | Layer's name   |   Level |
    +================+=========+
    | conv           |   0.500 |
    +----------------+---------+
    | head           |       0 |
    +----------------+---------+
    """
    texts = [[_text(cell) for cell in row] for row in rows]
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]
    # two blanks more on the side that is not flush, as NNCF's tables have them
    widths = [max([len(name) + 2, *(len(row[i]) for row in texts)]) for i, name in enumerate(header)]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [rule, _line(header, widths, numeric), rule.replace("-", "=")]
    for row in texts:
        lines += [_line(row, widths, numeric), rule]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = [
        cell.rjust(width) if flush else cell.ljust(width)
        for cell, width, flush in zip(cells, widths, right, strict=True)
    ]
    return f"| {' | '.join(parts)} |"


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Sequence):
        return str([int(extent) for extent in cell])
    return str(cell) if _is_whole(cell) else f"{cell:.3f}"


def _is_whole(cell: object) -> bool:
    return isinstance(cell, int | np.integer)


def _is_number(cell: Cell) -> bool:
    return cell is None or isinstance(cell, int | float | np.number)
