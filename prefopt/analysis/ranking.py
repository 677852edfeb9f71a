"""How variants rank held-out pairs, compared with each other and with the reference: needs no judge.

It is about ranking responses that somebody else wrote. A policy may rank well and write badly, so these comparisons
have words of their own and never stand for a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from prefopt import stats
from prefopt.analysis.load import Comparison
from prefopt.analysis.policies import as_interval, number
from prefopt.analysis.sentences import counted, listed, percent_interval
from prefopt.analysis.verdicts import ALPHA
from prefopt.storage.schema import REFERENCE

Row = dict[str, Any]
NEEDED = ("logps_chosen", "ref_logps_chosen", "logps_rejected", "ref_logps_rejected")


def ranking(comparison: Comparison, names: Sequence[str]) -> list[Row]:
    """Differences of accuracy and of log-ratio margin (nats) on the same held-out pairs and seeds.

    Two families, each corrected by Holm's method: every variant against the reference, whose margins are 0 and whose
    accuracy is one half by definition, and every pair of variants. Variants that did not finish are left out.

    Returns:
        A row for each comparison: a, b, accuracy, margin, p_accuracy, p_margin, outcome, n_seeds, n_prompts.
    """
    tables = _tables(comparison.pairs, [name for name in names if comparison.is_complete(name)])
    families = ([(name, REFERENCE) for name in tables], list(combinations(tables, 2)))
    return [row for family in families for row in _family(tables, family)]


def _tables(pairs: pd.DataFrame, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Mean accuracy and margin of each variant by (seed, prompt)."""
    finite = pairs[np.isfinite(pairs[list(NEEDED)]).all(axis=1)] if len(pairs) else pairs
    tables = {}
    for name in names:
        own = finite[finite["variant"] == name] if len(finite) else finite
        if not len(own):
            continue
        margin = own["logps_chosen"] - own["ref_logps_chosen"] - own["logps_rejected"] + own["ref_logps_rejected"]
        values = own[["seed", "prompt_id"]].assign(margin=margin, accuracy=stats.accuracies(margin))
        tables[name] = values.groupby(["seed", "prompt_id"])[["accuracy", "margin"]].mean()
    return tables


def _family(tables: Mapping[str, pd.DataFrame], matches: Sequence[tuple[str, str]]) -> list[Row]:
    rows = [row for a, b in matches if (row := _compared(tables, a, b)) is not None]
    tested = [row for row in rows if row["n_seeds"] > 1]
    for key in ("accuracy", "margin"):
        adjusted = stats.holm([row[f"p_{key}"] for row in tested])
        for row, p in zip(tested, adjusted, strict=True):
            row[f"p_{key}"] = float(p)
    for row in rows:
        if row["n_seeds"] == 1:
            row.update(p_accuracy=None, p_margin=None, outcome="one seed")
        elif row["p_accuracy"] < ALPHA:
            row["outcome"] = "ranks better" if row["accuracy"]["value"] > 0 else "ranks worse"
        else:
            row["outcome"] = "not settled"
    return rows


def _compared(tables: Mapping[str, pd.DataFrame], a: str, b: str) -> Row | None:
    """The paired differences of two, over what both have; None where that is one cell or nothing."""
    half = pd.DataFrame({"accuracy": 0.5, "margin": 0.0}, index=tables[a].index)
    gap = (tables[a] - (half if b == REFERENCE else tables[b])).dropna()
    if len(gap) < 2:
        return None
    seeds, prompts = gap.index.get_level_values(0), gap.index.get_level_values(1)
    accuracy, margin = (stats.two_way(stats.to_cells(gap[key], seeds, prompts)[0]) for key in ("accuracy", "margin"))
    return {
        "a": a,
        "b": b,
        "accuracy": as_interval(accuracy),
        "margin": as_interval(margin),
        "p_accuracy": number(accuracy.p),
        "p_margin": number(margin.p),
        "n_seeds": accuracy.n_seeds,
        "n_prompts": accuracy.n_prompts,
    }


def ranking_answers(results: Mapping[str, Any]) -> list[str]:
    """What held-out pairs say where no judge has spoken, as what it is."""
    rows = results["ranking"]
    if not rows:
        return []
    accuracy = {row["variant"]: row["accuracy"] for row in results["margins"] if row.get("accuracy")}
    ranked = {row["a"] for row in rows} & accuracy.keys()
    best = max(sorted(ranked), key=lambda name: accuracy[name]["value"])
    said = [
        f"On held-out pairs, {best} ranks most rightly ({percent_interval(accuracy[best])}; chance is 50 %). That is "
        "about ranking given responses, not about writing."
    ]
    between = [row for row in rows if row["b"] != REFERENCE and row["outcome"] != "one seed"]
    settled = [row for row in between if row["outcome"] != "not settled"]
    if between:
        shown = [
            f"{row['a']} over {row['b']}" if row["outcome"] == "ranks better" else f"{row['b']} over {row['a']}"
            for row in settled
        ]
        said.append(
            f"Of {counted(len(between), 'pair')} of variants, {len(settled)} differ for certain in accuracy"
            + (f": {listed(shown, 5)}." if shown else ".")
        )
    return said
