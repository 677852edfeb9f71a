"""Turns a results folder into one plain dictionary with everything that tables, figures and pages show."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from prefopt import stats
from prefopt.analysis import verdicts, winrates
from prefopt.analysis.board import leaderboard, seed_table
from prefopt.analysis.cautions import warnings
from prefopt.analysis.checks import soundness
from prefopt.analysis.exposure import exposure
from prefopt.analysis.health import health
from prefopt.analysis.heldout import heldout_tables
from prefopt.analysis.judges import judge_quality
from prefopt.analysis.load import Comparison, Scores
from prefopt.analysis.neutral import neutral
from prefopt.analysis.on_the_way import over_steps
from prefopt.analysis.policies import (
    Cells,
    as_interval,
    cost,
    divergence,
    frontier,
    rewards,
    text_quality,
    trajectories,
)
from prefopt.analysis.ranking import ranking, ranking_answers
from prefopt.analysis.recommendation import recommendation
from prefopt.analysis.selftest import selftest_facts
from prefopt.analysis.sentences import answers, comparison_sentence, pair_context, reference_context, run_outcome
from prefopt.analysis.tuning import name_settings, tuned, tuning_answer
from prefopt.storage import hashing, results, schema
from prefopt.storage.conditions import NAMES

SCHEMA = 1
DELTA = 0.02
Row = dict[str, Any]


def analyse(comparison: Comparison, *, running: bool = False) -> Row:
    """Compute the report of one comparison.

    Args:
        comparison: A loaded results folder.
        running: Another process is at work in it.

    Returns:
        Plain values only, ready for ``results.write_json``; no text of prompts or samples among them.
    """
    manifest = comparison.manifest
    names = list(comparison.variants)
    cells = Cells(comparison.scores)
    delta = float(manifest.config.get("evaluation", {}).get("delta", DELTA))
    judge = next(iter(comparison.judges()), None)
    results: Row = {
        "schema": SCHEMA,
        "name": manifest.name or comparison.root.name,
        "running": running,
        "settings": {"alpha": verdicts.ALPHA, "delta": delta},
        "setup": _setup(comparison, judge),
        "variants": _variants(comparison),
        "seeds": list(comparison.seeds),
        "runs": _runs(comparison),
        "rewards": rewards(cells, names),
        "kl": divergence(cells, comparison.scores, names),
        "text": text_quality(comparison, cells, names),
        "health": health(comparison, names),
        "neutral": neutral(comparison, names),
        "exposure": exposure(comparison),
        "cost": cost(comparison, names),
        "trajectories": trajectories(comparison, names),
        "over_steps": over_steps(comparison, names),
        "selftest": selftest_facts(comparison.selftest),
        "condition_fields": list(NAMES),
        "conditions": _conditions(comparison),
        **heldout_tables(comparison.pairs, names),
        "ranking": ranking(comparison, names),
        **_judged(comparison, cells, judge, names, delta),
    }
    _add_frontier(results, comparison, cells, names)
    _mark_broken(results)
    _add_sentences(results)
    results["tuning"] = tuned(comparison, cells, None if judge is None else Scores(_of_judge(comparison, judge)))
    name_settings(results)
    results["leaderboard"] = leaderboard(comparison, results)
    results["seed_table"] = seed_table(comparison, results)
    results["checks"] = soundness(comparison, results)
    results["warnings"] = warnings(results)
    results["answers"] = [*answers(results), *([] if judge else ranking_answers(results)), *tuning_answer(results)]
    results["recommendation"] = recommendation(results)
    return results


def _add_frontier(results: Row, comparison: Comparison, cells: Cells, names: Sequence[str]) -> None:
    """Reward or win rate against KL, by seed and at equal KL."""
    per_seed = {
        row["a"]: dict(zip(row["per_seed_at"], row["per_seed"], strict=True)) for row in results["versus_reference"]
    }
    results["frontier"] = frontier(comparison, cells, names, per_seed)
    results["matched_kl"] = matched_kl(comparison, cells)


def _judged(comparison: Comparison, cells: Cells, judge: str | None, names: Sequence[str], delta: float) -> Row:
    """Everything that needs verdicts; the same keys with nothing in them where there are none."""
    judges, bounds = judge_quality(comparison)
    results: Row = {
        "versus_reference": [],
        "pairs": [],
        "families": [],
        "matrix": None,
        "ratings": [],
        "misfit": None,
        "length_control": [],
        "power": dict(winrates.NO_POWER),
        "judges": judges,
        "judge_bounds": bounds,
    }
    if judge is None:
        return results
    scores = Scores(_of_judge(comparison, judge))
    trusted = not judges[0]["problems"]
    matches = [(name, schema.REFERENCE) for name in names]
    against = verdicts.compare(comparison, scores, matches, delta, trusted=trusted)
    against.sort(key=lambda row: (row["verdict"] == "INCOMPLETE", -row["value"]))
    judged = [row["a"] for row in against]
    order = [*judged, *(name for name in names if name not in judged)]
    results["versus_reference"] = against
    results["pairs"] = verdicts.every_pair(comparison, scores, order, delta, trusted=trusted)
    results["families"] = verdicts.families(against, results["pairs"])
    results["matrix"] = winrates.matrix(
        [name for name in order if any(name in (row["a"], row["b"]) for row in [*against, *results["pairs"]])],
        against,
        results["pairs"],
    )
    results["ratings"], results["misfit"] = winrates.ratings(comparison, scores, order, ranked=trusted)
    results["length_control"] = winrates.length_control(scores, cells, judged)
    results["power"] = winrates.power(scores, against)
    return results


def _of_judge(comparison: Comparison, judge: str) -> pd.DataFrame:
    return comparison.judgements[comparison.judgements["judge"] == judge]


def _setup(comparison: Comparison, judge: str | None) -> Row:
    manifest = comparison.manifest
    scores = comparison.scores
    samples = int(scores.groupby(["variant", "seed", "prompt_id"]).size().max()) if len(scores) else 0
    return {
        "judge": judge,
        "model": manifest.model,
        "reference": manifest.reference,
        "task": manifest.task,
        "data": manifest.data,
        "device": manifest.device,
        "packages": manifest.packages,
        "hashes": manifest.hashes,
        "command": manifest.command_line,
        "earlier_commands": list(manifest.earlier_commands),
        "commit": manifest.commit,
        "version": manifest.prefopt_version,
        "determinism": _described(manifest.determinism),
        "created": manifest.created,
        "config": manifest.config,
        "manifest_hash": hashing.sha256_file(results.ResultsFolder(comparison.root).manifest_path)[:16],
        "evaluation_prompts": int(scores["prompt_id"].nunique()),
        "samples_per_prompt": samples,
        "heldout_pairs": int(comparison.pairs["pair_id"].nunique()),
    }


def _described(value: Any) -> str:
    """A value of the manifest as text: a word, or some facts with their names; empty where there is none."""
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {part}" for key, part in value.items() if part not in (None, ""))
    return "" if value is None else str(value)


def _variants(comparison: Comparison) -> list[Row]:
    described = {str(entry["variant"]): entry for entry in comparison.manifest.variants}
    rows = []
    for name in comparison.variants:
        entry = described.get(name) or _from_a_run(comparison, name)
        spec = dict(entry.get("spec", {}))
        rate = entry.get("learning_rate")
        rows.append(
            {
                "variant": name,
                "loss": str(entry.get("loss", spec.get("loss", "?"))),
                "hyperparameters": ", ".join(f"{key}={value}" for key, value in spec.items() if key != "loss"),
                "settings": {**{key: value for key, value in spec.items() if key != "loss"}, "learning rate": rate},
                "learning_rate": "–" if rate is None else f"{rate:g}",
                "source": str(entry.get("source", "")),
                "summary": str(entry.get("summary", "")),
                "needs_reference": bool(entry.get("needs_reference", False)),
                "length_normalized": bool(entry.get("length_normalized", False)),
                "batch_coupled": bool(entry.get("batch_coupled", False)),
                "family": str(entry.get("family") or entry.get("loss") or name),
                "setting": "",
                "complete": comparison.is_complete(name),
                "finished": len(comparison.complete_seeds(name)),
            }
        )
    return rows


def _from_a_run(comparison: Comparison, name: str) -> Row:
    """What a run's own record says of a variant that the manifest does not describe."""
    records = [run for (variant, _), run in sorted(comparison.runs.items()) if variant == name and run.loss]
    return {"spec": records[0].loss, "learning_rate": records[0].learning_rate} if records else {}


def _runs(comparison: Comparison) -> list[Row]:
    return [
        {
            "variant": name,
            "seed": seed,
            "status": comparison.status(name, seed),
            "outcome": run_outcome(comparison.status(name, seed), comparison.runs.get((name, seed))),
        }
        for name in comparison.variants
        for seed in comparison.planned[name]
    ]


def _conditions(comparison: Comparison) -> list[Row]:
    """One row a seed; loading has checked that all variants agree."""
    rows: dict[int, Row] = {}
    for (_, seed), run in sorted(comparison.runs.items(), key=lambda item: (item[0][1], item[0][0])):
        rows.setdefault(seed, {"seed": str(seed), **dataclasses.asdict(run.conditions)})
    return list(rows.values())


def matched_kl(comparison: Comparison, cells: Cells) -> list[Row]:
    """Difference of gold rewards of every two finished variants at the largest KL that both reach."""
    if cells.get(schema.REFERENCE, "reward") is None:
        return []
    rows = []
    for a, b in combinations(filter(comparison.is_complete, comparison.variants), 2):
        seeds = sorted({*comparison.complete_seeds(a)} & {*comparison.complete_seeds(b)})
        curves = [_reward_curve(cells, name, seeds) for name in (a, b)] if len(seeds) > 1 else []
        known = [curve for curve in curves if curve is not None]
        results = stats.reward_at_matched_kl(*known[0], *known[1]) if len(known) == 2 else None
        if results is not None:
            rows.append({"a": a, "b": b, "at": results.at, "difference": as_interval(results.difference)})
    return rows


def _reward_curve(cells: Cells, name: str, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """(2, S) KL and (2, S, N) rewards from the reference to a variant, or None where either is unknown."""
    columns = ((schema.REFERENCE, "reward"), (name, "reward"), (name, "kl"))
    reference, reward, kl = (cells.get(variant, column, seeds) for variant, column in columns)
    if reference is None or reward is None or kl is None:
        return None
    per_seed = np.nanmean(kl, axis=1)
    return np.stack([np.zeros_like(per_seed), per_seed]), np.stack([reference, reward])


def _mark_broken(results: Row) -> None:
    """Say beside every comparison which of the two writes text that is broken."""
    brief = {row["variant"]: row["brief"] for row in results["health"] if row["brief"]}
    for row in (*results["versus_reference"], *results["pairs"]):
        row["broken"] = {name: brief[name] for name in (row["a"], row["b"]) if name in brief}


def _add_sentences(results: Row) -> None:
    """A sentence on every comparison, which says how far length and KL explain it."""
    controlled = {row["variant"]: row["controlled_interval"] for row in results["length_control"]}
    gain = {row["variant"]: row["gain"] for row in results["rewards"]}
    kl = {row["variant"]: row["kl"] for row in results["kl"]}
    matched = {frozenset((row["a"], row["b"])): row for row in results["matched_kl"]}
    for row in results["versus_reference"]:
        name = row["a"]
        row["sentence"] = comparison_sentence(row) + reference_context(
            controlled.get(name), gain.get(name), kl.get(name)
        )
    for row in results["pairs"]:
        at = matched.get(frozenset((row["a"], row["b"])))
        if at is not None and at["a"] != row["a"]:
            low, high = at["difference"]["low"], at["difference"]["high"]
            turned = {"value": -at["difference"]["value"], "low": -high, "high": -low}
            at = {**at, "difference": turned}
        row["sentence"] = comparison_sentence(row) + pair_context(at, settled=row["verdict"] == "BETTER")
