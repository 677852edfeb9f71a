"""Decides who wins by the gold reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from prefopt.storage.schema import JUDGEMENT_COLUMNS, ORACLE, REFERENCE


def oracle_judgements(scores: Mapping[tuple[str, int], pd.DataFrame], variants: Sequence[str]) -> pd.DataFrame:
    """JUDGEMENT_COLUMNS by the gold reward: every sample of one policy against every sample of the other.

    Args:
        scores: SCORE_COLUMNS by (variant, seed), the reference among them.
        variants: In the order of the comparison; each is judged against those after it and the reference.
    """
    matrices = {
        key: frame.sort_values(["prompt_id", "sample"])["reward"].to_numpy().reshape(frame["prompt_id"].nunique(), -1)
        for key, frame in scores.items()
    }
    parts = []
    for first, second in combinations([*variants, REFERENCE], 2):
        for seed in sorted({seed for _, seed in matrices}):
            if (first, seed) not in matrices or (second, seed) not in matrices:
                continue
            a, b = matrices[first, seed][:, :, None], matrices[second, seed][:, None, :]
            ties = (a == b).mean((1, 2))
            part = pd.DataFrame({"score": (a > b).mean((1, 2)) + ties / 2, "ties": ties})
            part["judge"], part["variant"], part["opponent"], part["seed"] = ORACLE, first, second, seed
            part["prompt_id"] = np.sort(scores[first, seed]["prompt_id"].unique())
            part["n"], part["invalid"] = a.shape[1] * b.shape[2], 0
            parts.append(part)
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(JUDGEMENT_COLUMNS))
    return frame[list(JUDGEMENT_COLUMNS)]
