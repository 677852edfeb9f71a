"""What follows from all comparisons together: head-to-head matrix, ratings, length control, power."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from prefopt import stats
from prefopt.analysis.load import Comparison, Scores
from prefopt.analysis.policies import Cells, as_interval, number
from prefopt.analysis.verdicts import ALPHA
from prefopt.storage.schema import REFERENCE

FIGURE_SEEDS = (3, 4, 5, 8, 12)
EFFECTS = (0.02, 0.03, 0.05, 0.10)
Row = dict[str, Any]


def matrix(order: Sequence[str], versus_reference: Sequence[Row], pairs: Sequence[Row]) -> Row | None:
    """Win rate of every row name against every column name, the reference last."""
    met = {(row["a"], row["b"]): row for row in [*versus_reference, *pairs]}
    names = [*order, *([REFERENCE] if versus_reference else [])]
    if len(names) < 2 or not met:
        return None
    cells: list[list[Row | None]] = []
    for one in names:
        line: list[Row | None] = []
        for two in names:
            if (one, two) in met:
                line.append(met[one, two]["win_rate"])
            elif (two, one) in met:
                line.append({key: _flip(met[two, one]["win_rate"][other]) for key, other in _SIDES})
            else:
                line.append(None)
        cells.append(line)
    decided = {frozenset(pair) for pair, row in met.items() if row["verdict"] in ("BETTER", "WORSE")}
    return {
        "names": names,
        "cells": cells,
        "win_rate": [[None if cell is None else cell["value"] for cell in line] for line in cells],
        "settled": [[frozenset((one, two)) in decided for two in names] for one in names],
    }


_SIDES = (("value", "value"), ("low", "high"), ("high", "low"))


def _flip(value: float | None) -> float | None:
    return None if value is None else 1 - value


def ratings(
    comparison: Comparison, scores: Scores, order: Sequence[str], *, ranked: bool = True
) -> tuple[list[Row], float | None]:
    """Bradley-Terry ratings of the variants that finished, best first, and the model's worst misfit.

    Ranks are given only where ``ranked``, and not from one seed.
    """
    names = [REFERENCE, *(name for name in order if comparison.is_complete(name))]
    met = [(a, b, y) for a, b in combinations(names, 2) if (y := scores.get(a, b)) is not None]
    joined = {name for a, b, _ in met for name in (a, b)}
    if REFERENCE not in joined or len(joined) < 3:
        return [], None
    names = [name for name in names if name in joined]
    place = {name: i for i, name in enumerate(names)}
    fitted = stats.bradley_terry(
        np.stack([y for _, _, y in met]),
        [place[a] for a, _, _ in met],
        [place[b] for _, b, _ in met],
        tuple(names),
        anchor=REFERENCE,
    )
    rows = []
    for i, name in enumerate(names):
        best, worst = int(fitted.rank_low[i]), int(fitted.rank_high[i])
        unranked = not ranked or len(comparison.seeds) == 1
        rows.append(
            {
                "variant": name,
                "rating": {
                    "value": number(fitted.value[i]),
                    "low": number(fitted.low[i]),
                    "high": number(fitted.high[i]),
                },
                "rank": "–" if unranked else str(best) if best == worst else f"{best}–{worst}",
            }
        )
    return sorted(rows, key=lambda row: -row["rating"]["value"]), fitted.misfit


def length_control(scores: Scores, cells: Cells, names: Sequence[str]) -> list[Row]:
    """Win rate against the reference as it would be at equal length."""
    met = [(name, y) for name in names if (y := scores.get(name, REFERENCE)) is not None]
    gaps = [cells.difference(name, REFERENCE, "n_tokens", scores.seeds, scores.prompts) for name, _ in met]
    if not met or any(gap is None for gap in gaps):
        return []
    fitted = stats.length_controlled(np.stack([y for _, y in met]), np.stack([gap for gap in gaps if gap is not None]))
    return [
        {
            "variant": name,
            "raw": one.raw,
            "controlled": number(one.win_rate.value),
            "low": number(one.win_rate.low),
            "high": number(one.win_rate.high),
            "controlled_interval": as_interval(one.win_rate),
            "slope": {"value": one.phi, "low": number(one.phi_low), "high": number(one.phi_high)},
            "overlap": one.overlap,
            "extreme": one.extreme,
            "ratio": cells.ratio(cells.get(name, "n_tokens"), cells.get(REFERENCE, "n_tokens")),
        }
        for (name, _), one in zip(met, fitted, strict=True)
    ]


def power(scores: Scores, versus_reference: Sequence[Row]) -> Row:
    """What a comparison of this kind can see, from the variance found here."""
    tables = [scores.get(row["a"], REFERENCE) for row in versus_reference if row["verdict"] != "INCOMPLETE"]
    varied = [y for y in tables if y is not None and np.nanstd(y) > 0]
    if not varied:
        return dict(NO_POWER)
    parts = [stats.variance_components(y) for y in varied]
    seeds, prompts = len(scores.seeds), len(scores.prompts)
    single = seeds == 1
    seed_variance = stats.Components.assumed().seed if single else float(np.mean([part.seed for part in parts]))
    typical = stats.Components(
        seed_variance, float(np.mean([part.prompt for part in parts])), float(np.mean([part.rest for part in parts]))
    )
    alpha = ALPHA / len(tables)
    counts = [prompts, 2 * prompts, 4 * prompts]
    sizes = sorted({*FIGURE_SEEDS, *([] if single else [seeds])})

    def mde(s: int, n: int) -> float:
        return float(stats.minimum_detectable_effect(typical, seeds=s, prompts=n, alpha=alpha))

    return {
        "curves": [{"prompts": n, "seeds": sizes, "mde": [mde(s, n) for s in sizes]} for n in counts],
        "seeds": sizes,
        "here": None if single else {"seeds": seeds, "prompts": prompts, "mde": mde(seeds, prompts)},
        "needed": [
            {
                "effect": effect,
                **{f"n{n}": stats.seeds_needed(effect, typical, prompts=n, alpha=alpha) for n in counts[:2]},
            }
            for effect in EFFECTS
        ],
        "prompts": counts[:2],
        "seed_sd": float(np.sqrt(typical.seed)),
        "assumed_seed_sd": single,
        "tests": len(tables),
    }


NO_POWER: Mapping[str, Any] = {
    "curves": [], "seeds": [], "here": None, "needed": [], "prompts": [], "seed_sd": None, "assumed_seed_sd": False,
    "tests": 0,
}  # fmt: skip
