"""How many rows are worked on at a time, wherever memory has to stay bounded: one budget for all.

A block holds at most 2^23 numbers, 32 MiB in float32:

    rows of a block = 2^23 / (numbers of a row).

A row that passes through a network takes more than its features: the parameters of a spline are some 2^5 numbers for
each of them, and hidden layers 2^11 as a rule. So blocks have 4096 rows or, if there are more than 64 features, fewer.
A tangent takes as much as a row does. The speed of networks does not depend on it between some 500 and 30,000 rows.

Densities and means do not depend on the size of blocks but for rounding. Random draws do: what draws block by block
gives other numbers with other blocks.
"""

__all__ = ["rows_at_work"]

NUMBERS = 2**23
"""Of a block at most."""

LAYER, FEATURE = 2**11, 2**5
"""Numbers that a row takes in a network at least, and for each of its features."""


def rows_at_work(features: int, tangents: int = 1) -> int:
    """Return how many rows a network works on at a time, at least one.

    Arguments:
        features: of a row
        tangents: how many directions are followed through the network at each row
    """
    return max(1, NUMBERS // (max(FEATURE * features, LAYER) * tangents))
