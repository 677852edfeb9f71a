"""Claims about a comparison, to be checked in continuous integration, such as ``ipo >= dpo - 0.02``.

A name stands for a variant's win rate against the reference, from 0 to 1; ``reference`` stands for 0.5. Claims are
about the estimates, over the prompts and seeds that both sides have; the interval of the difference is printed beside
the answer.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from prefopt import stats
from prefopt.analysis.leading import judge_facts, judges_in_order, problems_of
from prefopt.errors import ClaimError, UsageError, did_you_mean
from prefopt.storage.records import Manifest
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import REFERENCE

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_OFFSET = re.compile(r"(?P<term>.*\S)\s+(?P<sign>[+-])\s*(?P<number>\d*\.?\d+(?:[eE][+-]?\d+)?)")
_EXAMPLE = 'write such as "ipo >= dpo - 0.02" or "simpo[beta=2.5] > 0.55", with spaces around + and -'
_ROUNDING = 1e-9  # of a difference of win rates: 0.52 - 0.02 is not quite 0.5 in binary


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a claim: a win rate or a constant, and what is added to it."""

    name: str | None
    plus: float


@dataclass(frozen=True, slots=True)
class Claim:
    """``left`` ``relation`` ``right``, and the text it was read from."""

    text: str
    left: Side
    relation: str
    right: Side

    @property
    def names(self) -> set[str]:
        """The variants that it speaks of."""
        return {side.name for side in (self.left, self.right) if side.name is not None and side.name != REFERENCE}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A claim's answer, and a sentence with the numbers behind it."""

    claim: Claim
    holds: bool
    sentence: str


def parse(text: str, names: Collection[str]) -> Claim:
    """A claim about variants of a comparison.

    Args:
        text: Such as ``ipo >= dpo - 0.02``; either side is a name or a number, with or without ``+`` or ``-`` a number.
        names: Of the variants; brackets, commas and ``=`` belong to a name.

    Raises:
        UsageError: If it is no claim, or names a variant that is not there.
    """
    parts = re.split(r"(>=|<=|>|<)", text)
    if len(parts) != 3:
        raise UsageError(f'--assert "{text}": {_EXAMPLE}')
    left, right = (_side(part.strip(), names, text) for part in (parts[0], parts[2]))
    claim = Claim(text, left, parts[1], right)
    if not claim.names:
        raise UsageError(f'--assert "{text}": names no variant; {_EXAMPLE}')
    return claim


def _side(text: str, names: Collection[str], whole: str) -> Side:
    if text in names or text == REFERENCE:
        return Side(text, 0.0)
    if (number := _number(text)) is not None:
        return Side(None, number)
    if parts := _OFFSET.fullmatch(text):
        inner = _side(parts["term"], names, whole)
        return Side(inner.name, inner.plus + float(parts["sign"] + parts["number"]))
    if not text:
        raise UsageError(f'--assert "{whole}": {_EXAMPLE}')
    raise UsageError(f'--assert "{whole}": no variant {text!r}{did_you_mean(text, [*names])}')


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def check(folder: ResultsFolder, claims: Sequence[Claim]) -> list[Outcome]:
    """Look claims up in a folder's judgements: those of the judge that leads its report.

    Raises:
        ClaimError: If a claim cannot be looked up: nothing was judged, the judge is not to be trusted, or a variant
            has not finished.
    """
    frame = folder.judgements()
    judge = next(iter(judges_in_order(folder, frame)), None)
    if judge is None:
        raise ClaimError(
            f"{folder.root}: no claim can be checked, since no judge compared the samples; judge them first"
        )
    if problems := problems_of(judge_facts(folder).get(judge, {})):
        raise ClaimError(
            f"{folder.root}: no claim can be checked, since the judge {judge} is not to be trusted: "
            + "; ".join(problems)
        )
    frame = frame[(frame["judge"] == judge) & (frame["opponent"] == REFERENCE)]
    manifest = folder.manifest()
    return [_outcome(claim, frame, manifest) for claim in claims]


def _outcome(claim: Claim, frame: pd.DataFrame, manifest: Manifest) -> Outcome:
    for name in sorted(claim.names):
        there = frame[(frame["variant"] == name) & (frame["n"] > 0)]["seed"].unique()
        lacking = sorted({*(manifest.planned_seeds(name) or manifest.seeds)} - {*map(int, there)})
        if lacking or not len(there):
            where = f" at seed {lacking[0]}" if lacking else ""
            raise ClaimError(f'"{claim.text}" cannot be checked: {name} has no win rate{where}')
    wide = (
        frame[frame["variant"].isin(claim.names)]
        .pivot(index=["seed", "prompt_id"], columns="variant", values="score")
        .dropna()
    )
    left, right = (_values(side, wide) for side in (claim.left, claim.right))
    cells = stats.to_cells(left - right, wide.index.get_level_values(0), wide.index.get_level_values(1))[0]
    difference = stats.two_way(cells)
    value = 0.0 if abs(difference.value) < _ROUNDING else difference.value
    holds = _COMPARE[claim.relation](value, 0.0)
    rates = ", ".join(f"{name} {100 * wide[name].mean():.1f} %" for name in sorted(claim.names))
    low, high = 100 * difference.low, 100 * difference.high
    answer = "holds" if holds else "fails"
    return Outcome(
        claim,
        holds,
        f'"{claim.text}" {answer}: {rates}; left minus right {100 * value:+.1f} points, 95 % [{low:+.1f}, {high:+.1f}]',
    )


def _values(side: Side, wide: pd.DataFrame) -> pd.Series:
    """A side's value in every (seed, prompt) cell."""
    if side.name is None or side.name == REFERENCE:
        start = 0.5 if side.name == REFERENCE else 0.0
        return pd.Series(start + side.plus, index=wide.index)
    return wide[side.name] + side.plus


def require(outcomes: Sequence[Outcome]) -> None:
    """Raise unless every claim holds.

    Raises:
        ClaimError: With a line for each that fails.
    """
    failed = [outcome.sentence for outcome in outcomes if not outcome.holds]
    if failed:
        raise ClaimError("\n".join(failed))
