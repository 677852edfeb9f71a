"""Verdicts as tables: one row for each comparison and order, and the judgements that the report reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from prefopt import stats
from prefopt.judges.contract import Shown, Verdict
from prefopt.judges.questions import CELL, Questions
from prefopt.storage.schema import JUDGEMENT_COLUMNS

# order: "ab" showed the variant first, "ba" the opponent; score: how far the variant won, 0 to 1, missing where the
# reply was unusable, for the reason in error; identical: both texts are one, a tie that no judge was asked about;
# mirrored: seen in the other order alone, so that it says nothing about a taste for a position.
VERDICT_COLUMNS = (
    "variant",
    "opponent",
    "seed",
    "prompt_id",
    "sample",
    "order",
    "score",
    "error",
    "cached",
    "identical",
    "mirrored",
)


def verdict_table(comparisons: Questions, verdicts: Mapping[Shown, Verdict]) -> pd.DataFrame:
    """VERDICT_COLUMNS; comparisons that a file of verdicts does not hold are left out."""
    rows = []
    tie = Verdict(0.5)
    keys = comparisons.frame[[*CELL, "sample"]].itertuples(index=False, name=None)
    for key, question in zip(keys, comparisons.shown(), strict=True):
        identical = question.first == question.second
        for order, shown in (("ab", question), ("ba", question.swapped())):
            verdict = tie if identical else verdicts.get(shown)
            if verdict is None:
                continue
            first = np.nan if verdict.first is None else verdict.first
            score = first if order == "ab" else 1 - first
            rows.append((*key, order, score, verdict.error, verdict.cached, identical, verdict.mirrored))
    frame = pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))
    return frame.astype(
        {"seed": int, "score": float, "cached": bool, "identical": bool, "mirrored": bool, "error": str}
    )


def position(table: pd.DataFrame) -> tuple[float | None, float | None]:
    """How often both orders name one winner, and the share of preference for the text shown first.

    Args:
        table: From ``verdict_table``. Identical texts are left out, and so is what was seen in one order only; both are
            None where nothing is left.
    """
    wide = _by_order(table[~table["identical"] & ~table["mirrored"]])
    both = stats.both_orders(wide["ab"], wide["ba"])
    return (both.consistency, both.first_position) if (both.invalid == 0).any() else (None, None)


def judgements(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """JUDGEMENT_COLUMNS from verdicts; a comparison counts where both orders are usable, else it is unusable.

    One order alone would let a taste for a position through.
    """
    wide = _by_order(table)
    both = stats.both_orders(wide["ab"], wide["ba"])
    wide = wide.reset_index()
    usable = both.invalid == 0
    wide["score"] = np.where(usable, both.score, np.nan)
    wide["ties"] = np.where(usable, (both.score == 0.5).astype(float), np.nan)
    wide["n"], wide["invalid"] = usable.astype(int), (~usable).astype(int)
    grouped = wide.groupby(CELL, as_index=False, sort=False)
    frame = grouped.agg(score=("score", "mean"), n=("n", "sum"), ties=("ties", "mean"), invalid=("invalid", "sum"))
    frame["judge"] = name
    return frame[list(JUDGEMENT_COLUMNS)]


def first_wins(group: Sequence[Shown], verdicts: Mapping[Shown, Verdict]) -> np.ndarray:
    """(n,) how far each question's first text won over both orders, NaN where either is unusable."""
    nothing = Verdict(None)
    first = [verdicts.get(question, nothing).first for question in group]
    second = [verdicts.get(question.swapped(), nothing).first for question in group]
    orders = zip(first, second, strict=True)
    return np.array([np.nan if a is None or b is None else (a + 1 - b) / 2 for a, b in orders], dtype=np.float64)


def _by_order(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each comparison, its score in both orders as columns ab and ba."""
    return table.pivot(index=[*CELL, "sample"], columns="order", values="score").reindex(columns=["ab", "ba"])
