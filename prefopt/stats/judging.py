"""Arithmetic of pairwise judges: both orders, their agreement, and what a judge's errors do to a win rate."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from prefopt.stats.clusters import Array


class BothOrders(NamedTuple):
    """Two verdicts on each comparison, made into one.

    Attributes:
        score: (R,) how far the first text won: mean of the usable verdicts, 0 to 1; NaN where neither is usable.
        invalid: (R,) unusable verdicts, 0 to 2.
        consistency: Share, among comparisons with two verdicts, where both orders name the same winner; NaN where there
            is none with two.
        first_position: Mean preference for whichever text stood first; 1/2 is fair, and NaN as above.
    """

    score: Array
    invalid: Array
    consistency: float
    first_position: float


def both_orders(as_first: ArrayLike, as_second: ArrayLike) -> BothOrders:
    """Combine the verdicts of the two orders; their mean removes any additive taste for a position.

    Args:
        as_first: (R,) how far text a won when it stood first: 1, 1/2, 0 or a probability; NaN where unusable.
        as_second: (R,) how far text a won when it stood second.

    Example:
        >>> taste = both_orders([1.0, 1.0], [0.0, 1.0])  # the first text wins whatever it is, then the better one
        >>> taste.score.tolist(), taste.consistency
        ([0.5, 1.0], 0.5)
    """
    pair = np.stack([np.asarray(as_first, dtype=np.float64), np.asarray(as_second, dtype=np.float64)])
    usable = ~np.isnan(pair)
    count = usable.sum(0)
    total = np.where(usable, pair, 0.0).sum(0)
    score = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    both = count == 2
    agree = np.sign(pair[0, both] - 0.5) == np.sign(pair[1, both] - 0.5)
    lean = (pair[0, both] + 1 - pair[1, both]) / 2
    return BothOrders(
        score,
        2.0 - count,
        float(agree.mean()) if both.any() else np.nan,
        float(lean.mean()) if both.any() else np.nan,
    )


IDENTICAL_WITHIN = 0.1


def stands_control(*, identical: bool, rate: float | None, high: float | None) -> bool:
    """Whether a judge stands a control: identical texts must balance, and any other control's text must lose.

    Args:
        identical: Both texts are the same.
        rate: Share that the control's text won, ties half; None where nothing was usable.
        high: Upper end of its 95 % interval; below one half for a text that loses beyond chance.

    Example:
        >>> stands_control(identical=False, rate=0.5, high=0.72)  # an empty answer that wins half is no lost one
        False
    """
    if rate is None or high is None:
        return False
    return abs(rate - 0.5) <= IDENTICAL_WITHIN if identical else high < 0.5


def attenuated(win_rate: ArrayLike, accuracy: float) -> Array:
    """The win rate that a judge shows who is right with probability ``accuracy`` whatever the texts.

    Example:
        >>> round(float(attenuated(0.7, accuracy=0.8)), 4)
        0.62
    """
    return np.asarray(0.5 + (2 * accuracy - 1) * (np.asarray(win_rate, dtype=np.float64) - 0.5))


def unattenuated(win_rate: ArrayLike, accuracy: float) -> Array:
    """The true win rate behind a noisy judge's, where its accuracy is known from comparisons with known answers.

    Args:
        win_rate: (...,) as judged, 0 to 1.
        accuracy: Of the judge, above 1/2.

    Returns:
        (...,) within [0, 1].

    Raises:
        ValueError: If the judge is no better than chance: its verdicts then say nothing about the truth.

    Source:
        Rogan and Gladen 1978, with equal sensitivity and specificity.

    Example:
        >>> round(float(unattenuated(0.62, accuracy=0.8)), 4)
        0.7
    """
    if accuracy <= 0.5:
        raise ValueError(f"accuracy must exceed 0.5; got {accuracy}: these verdicts say nothing about the truth")
    centred = np.asarray(win_rate, dtype=np.float64) - 0.5
    return np.clip(0.5 + centred / (2 * accuracy - 1), 0.0, 1.0)
