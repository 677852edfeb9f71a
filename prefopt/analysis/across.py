"""Several comparisons as one table: losses by comparisons, mean ranks, probability of improvement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from prefopt import stats
from prefopt.analysis.policies import number
from prefopt.errors import UsageError

Row = dict[str, Any]
FEW_SEEDS = 5


def across(comparisons: Mapping[str, Row]) -> Row:
    """What several comparisons say of the losses that they share.

    Args:
        comparisons: From ``analyse``, by the name that each has in the report.

    Returns:
        Plain values only.

    Raises:
        UsageError: If nobody has judged one of them.
    """
    for name, results in comparisons.items():
        if not results["versus_reference"]:
            raise UsageError(f"{name}: nobody has judged it, so its losses have no win rate; run prefopt judge on it")
    shared = _shared(comparisons)
    scores = [_scores(results, shared) for results in comparisons.values()]
    ranked = stats.across_tasks(scores) if len(shared) > 1 else None
    return {
        "comparisons": [_described(name, results) for name, results in comparisons.items()],
        "losses": _losses(comparisons, shared, ranked),
        "shared": shared,
        "improvement": _improvement(shared, ranked),
        "cautions": [
            *_distrusted(comparisons),
            *_differences(comparisons),
            *_repeated(comparisons),
            *_thin(comparisons, shared),
        ],
    }


def _shared(comparisons: Mapping[str, Row]) -> list[str]:
    """Variants that finished, and were judged, at every seed of every comparison; in the order of the first."""
    per_comparison = []
    for results in comparisons.values():
        complete = {entry["variant"] for entry in results["variants"] if entry["complete"]}
        per_comparison.append([row["a"] for row in results["versus_reference"] if row["a"] in complete])
    return [name for name in per_comparison[0] if all(name in names for names in per_comparison)]


def _scores(results: Row, shared: Sequence[str]) -> np.ndarray:
    """(M, S) win rates against the reference, at the seeds that all shared losses were judged at."""
    rows = {
        row["a"]: dict(zip(row["per_seed_at"], row["per_seed"], strict=True)) for row in results["versus_reference"]
    }
    seeds = sorted(set.intersection(*(set(rows[name]) for name in shared))) if shared else []
    return np.array([[rows[name][seed] for seed in seeds] for name in shared])


def _described(name: str, results: Row) -> Row:
    setup = results["setup"]
    data = setup["config"].get("data", {}).get("source") or setup["task"].get("name")
    facts = {"comparison": name, "model": setup["model"].get("name"), "data": data, "judge": setup["judge"]}
    return {**facts, "seeds": len(results["seeds"]), "prompts": setup["evaluation_prompts"]}


def _losses(comparisons: Mapping[str, Row], shared: Sequence[str], ranked: stats.AcrossTasks | None) -> list[Row]:
    """A row for each loss of any comparison: its win rate in each, and its mean rank where it is in all of them."""
    rows = []
    for name in dict.fromkeys(row["a"] for results in comparisons.values() for row in results["versus_reference"]):
        each = {
            place: {key: row[key] for key in ("win_rate", "verdict")}
            for place, results in comparisons.items()
            for row in results["versus_reference"]
            if row["a"] == name
        }
        rank = None
        if ranked is not None and name in shared:
            at = shared.index(name)
            rank = _interval(ranked.rank[at], ranked.rank_low[at], ranked.rank_high[at])
        rows.append({"variant": name, "rank": rank, "each": each})
    return sorted(rows, key=lambda row: (row["rank"] is None, row["rank"]["value"] if row["rank"] else 0.0))


def _improvement(shared: Sequence[str], ranked: stats.AcrossTasks | None) -> list[Row]:
    """A row for each two losses, the likelier winner first, the clearest at the top."""
    rows = []
    for i, j in combinations(range(len(shared)), 2) if ranked is not None else ():
        assert ranked is not None
        a, b = (i, j) if ranked.improvement[i, j] >= 0.5 else (j, i)
        ends = (ranked.improvement[a, b], ranked.improvement_low[a, b], ranked.improvement_high[a, b])
        rows.append({"a": shared[a], "b": shared[b], "probability": _interval(*ends)})
    return sorted(rows, key=lambda row: -row["probability"]["value"])


def _interval(value: float, low: float, high: float) -> dict[str, float | None]:
    return {"value": number(value), "low": number(low), "high": number(high)}


def _distrusted(comparisons: Mapping[str, Row]) -> list[str]:
    """Comparisons whose judge is not to be trusted, and models that write broken text, whoever judges them."""
    said = []
    for place, results in comparisons.items():
        if any(row["verdict"] == "NO VERDICT" for row in results["versus_reference"]):
            said.append(
                f"The judge of {place} ({results['setup']['judge']}) is not to be trusted, nor are its win rates."
            )
        broken = [f"{row['variant']} ({row['brief']})" for row in results["health"] if row["brief"]]
        if broken:
            said.append(f"Broken models in {place}: {', '.join(broken)}.")
    return said


def _differences(comparisons: Mapping[str, Row]) -> list[str]:
    """Variants of one name that are not the same loss with the same settings everywhere."""
    said = []
    kinds: dict[str, dict[str, list[str]]] = {}
    for place, results in comparisons.items():
        for entry in results["variants"]:
            kind = f"{entry['loss']} with {entry['hyperparameters'] or 'no hyperparameters'}"
            kinds.setdefault(entry["variant"], {}).setdefault(kind, []).append(place)
    for name, places in kinds.items():
        if len(places) > 1:
            each = "; ".join(f"{kind} in {', '.join(where)}" for kind, where in places.items())
            said.append(f"{name} is not the same everywhere: {each}.")
    return said


def _repeated(comparisons: Mapping[str, Row]) -> list[str]:
    """Comparisons of the same pairs and model, which are no independent evidence."""
    said = []
    for (one, first), (two, second) in combinations(comparisons.items(), 2):
        facts = [(r["setup"]["hashes"].get("data"), r["setup"]["model"].get("hash")) for r in (first, second)]
        if None not in facts[0] and facts[0] == facts[1]:
            said.append(f"{one} and {two} have the same pairs and model: they are one setting, which counts twice.")
    return said


def _thin(comparisons: Mapping[str, Row], shared: Sequence[str]) -> list[str]:
    """What limits the intervals, or why there are none."""
    said = []
    if len(shared) < 2:
        said.append("Fewer than two losses finished and were judged in every comparison, so there are no ranks.")
    few = [name for name, results in comparisons.items() if len(results["seeds"]) < FEW_SEEDS]
    if few:
        said.append(
            f"Fewer than {FEW_SEEDS} seeds in {', '.join(few)}: resampling so few runs gives intervals that are too "
            "narrow, and with one seed none at all."
        )
    return said
