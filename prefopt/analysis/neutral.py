"""How likely plain text is before and after training: what a policy lost that no pair asked it to lose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prefopt.analysis.load import Comparison
from prefopt.analysis.policies import interval, number
from prefopt.analysis.sentences import listed

LARGE = 0.1  # nats a token: the perplexity of plain text a tenth higher
Row = dict[str, Any]


def neutral(comparison: Comparison, names: Sequence[str]) -> list[Row]:
    """For each variant nats per token of plain sentences before and after, and the rise, over seeds and sentences.

    Variants none of whose runs measured it, as in folders of earlier versions, are left out.
    """
    rows = []
    for name in names:
        runs = [run.neutral for run in comparison.finished_runs(name) if run.neutral]
        if not runs:
            continue
        tokens, logps, before = (
            np.array([run[key] for run in runs], dtype=np.float64) for key in ("tokens", "logps", "ref_logps")
        )  # (S, N) each
        rows.append(
            {
                "variant": name,
                "before": number(-before.sum() / tokens.sum()),
                "after": number(-logps.sum() / tokens.sum()),
                "rise": interval((before - logps) / tokens.mean()),  # every run has the same sentences
            }
        )
    return rows


def neutral_warnings(rows: Sequence[Row]) -> list[Row]:
    """A warning that names variants under which plain text has become a good deal less likely."""
    worse = [row for row in rows if row["rise"]["low"] is not None and row["rise"]["low"] > LARGE]
    if not worse:
        return []
    shown = listed([f"{row['variant']} by {row['rise']['value']:.2f}" for row in worse], 8)
    text = (
        f"The cross-entropy of plain sentences, which no pair is about, rose under {shown} nats a token. That is what "
        "forgetting looks like: before a policy of theirs is used, measure what it has to be able to do."
    )
    return [
        {
            "level": "warn",
            "title": f"Plain text became less likely: {listed([r['variant'] for r in worse], 8)}",
            "text": text,
        }
    ]
