"""Settings as places in [0, 1]: a wide positive range in equal ratios, any other in equal steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

WIDE = 10.0  # from this ratio of its ends on, a positive range is passed through in equal ratios
EDGE = 0.1


def value_at(u: float, low: float, high: float) -> float:
    """The value at place ``u`` of a range: low (high / low)^u where that is positive and wide, linear else.

    Example:
        >>> round(value_at(0.5, 0.01, 1.0), 12), value_at(0.5, 2.0, 10.0), value_at(0.25, 0.0, 1.0)
        (0.1, 6.0, 0.25)
    """
    if low > 0 and high / low >= WIDE:
        return math.exp((1 - u) * math.log(low) + u * math.log(high))
    return low + u * (high - low)


def place_of(value: float, low: float, high: float) -> float:
    """The inverse of ``value_at``.

    Example:
        >>> round(place_of(0.1, 0.01, 1.0), 12), place_of(6.0, 2.0, 10.0)
        (0.5, 0.5)
    """
    if low > 0 and high / low >= WIDE:
        return math.log(value / low) / math.log(high / low) if value > 0 else -math.inf
    return (value - low) / (high - low)


def word_at(u: float, words: Sequence[str]) -> str:
    """The word at place ``u``, each with an equal part of [0, 1).

    Example:
        >>> [word_at(u, ("js", "alpha")) for u in (0.0, 0.49, 0.5, 0.99)]
        ['js', 'js', 'alpha', 'alpha']
    """
    return words[min(int(u * len(words)), len(words) - 1)]


def at_edge(value: float, low: float, high: float) -> str:
    """``lower`` or ``upper`` for a value in the outermost tenth of its range or beyond, else an empty text.

    Example:
        >>> at_edge(0.012, 0.01, 1.0), at_edge(0.1, 0.01, 1.0), at_edge(9.5, 2.0, 10.0)
        ('lower', '', 'upper')
    """
    place = place_of(value, low, high)
    return "lower" if place < EDGE else "upper" if place > 1 - EDGE else ""
