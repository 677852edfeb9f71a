"""How much of the training data a comparison's runs have seen."""

from __future__ import annotations

from typing import Any

from prefopt.analysis.load import Comparison

Row = dict[str, Any]


def exposure(comparison: Comparison) -> Row | None:
    """Training pairs there are, those a run saw at least once, and how many times it went through all of them.

    Runs go through the pairs in a new order each time, none twice before all were seen once. None where the folder does
    not say how many there are, or no run how many it took.
    """
    manifest = comparison.manifest
    there = manifest.data.get("train_pairs")
    train = manifest.config.get("train", {})
    taken = {int(run.cost["pairs"]) for run in comparison.runs.values() if run.is_complete and run.cost.get("pairs")}
    planned = int(train.get("steps") or 0) * int(train.get("pairs_per_step") or 0)
    most = max(taken, default=planned)
    if not there or not most:
        return None
    return {
        "train_pairs": int(there),
        "seen": min(most, int(there)),
        "share": min(1.0, most / int(there)),
        "epochs": most / int(there),
        "dropped_rows": int(manifest.data.get("dropped_rows") or 0),
    }
