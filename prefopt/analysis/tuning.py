"""What tuning did: trials and winners, what it bought, curves, sensitivity to the rate, the reward-KL frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefopt import stats
from prefopt.analysis.load import Comparison, Scores
from prefopt.analysis.policies import Cells, interval, number
from prefopt.analysis.trials import CRITERIA, Trial, Tuning, pair_accuracies, read
from prefopt.stats.scales import at_edge
from prefopt.storage.schema import REFERENCE

TOP = 3
Row = dict[str, Any]


def tuned(comparison: Comparison, cells: Cells, judged: Scores | None) -> Row | None:
    """Everything that the report says of tuning, or None where the comparison was not tuned.

    Args:
        comparison: The one of winners and defaults.
        cells: Its samples' means.
        judged: Its win rates, where there is a judge.
    """
    tuning = read(comparison.root) if comparison.manifest.config.get("tune", {}).get("trials") else None
    if tuning is None:
        return None
    ranges = comparison.manifest.config["tune"].get("ranges", {})
    shown = [_family(tuning, name, ranges.get(name, {})) for name in tuning.families]
    for row in shown:
        row["gain"] = _gain(comparison, cells, judged, tuning.criterion, row)
    return {
        "criterion": tuning.criterion,
        "criterion_text": CRITERIA[tuning.criterion],
        "max_kl": tuning.max_kl,
        "seeds": list(tuning.comparison.seeds),
        "prompts": int(tuning.comparison.scores["prompt_id"].nunique()),
        "families": shown,
        "trials": [_trial(tuning, trial) for tried in tuning.families.values() for trial in tried],
        "curves": {name: _curve(tried) for name, tried in tuning.families.items()},
        "shares": _shares(tuning),
        "top": _top(tuning),
        "frontier": _frontier(tuning),
    }


def name_settings(results: Row) -> None:
    """Say of every variant of a tuned loss whether it is its defaults or its best, in ``setting``."""
    for row in results["tuning"]["families"] if results["tuning"] else ():
        names = {row["default"]: "default"}
        if row["tuned"] is not None:
            names[row["tuned"]] = "tuned" if row["tuned"] != row["default"] else "default, best of its trials"
        for entry in results["variants"]:
            entry["setting"] = names.get(entry["variant"], entry["setting"])


def tuning_answer(results: Row) -> list[str]:
    """What tuning bought every loss, as one sentence; none where nothing was tuned."""
    found = results["tuning"]
    if not found:
        return []
    scale, unit, digits = (1, "", 2) if found["criterion"] == "reward" else (100, " points", 1)
    said = []
    for row in found["families"]:
        if row["tuned"] is None:
            said.append(f"{row['family']} has no setting to choose")
        elif row["tuned"] == row["default"]:
            said.append(f"{row['family']} is best at its defaults")
        elif row["gain"] is not None:
            low, value, high = (
                "–" if row["gain"][end] is None else f"{scale * row['gain'][end]:+.{digits}f}".replace("-", "−")
                for end in ("low", "value", "high")
            )
            said.append(f"{row['family']} {value}{unit} [{low}, {high}]")
    trials = found["families"][0]["trials"]
    return [f"At its best of {trials} trials instead of its defaults, by {found['criterion_text']}: {'; '.join(said)}."]


def _family(tuning: Tuning, name: str, ranges: Mapping[str, Sequence[Any]]) -> Row:
    tried = tuning.families[name]
    winner = tuning.best(name)
    cost = [run.cost for trial in tried for run in tuning.comparison.finished_runs(trial.variant)]
    known = winner is not None and winner.scores is not None
    return {
        "family": name,
        "trials": len(tried),
        "lost": sum(trial.score is None for trial in tried),
        "default": tried[0].variant,
        "tuned": None if winner is None else winner.variant,
        "settings": "–" if winner is None else _settings(winner, ranges),
        "edges": [] if winner is None else _edges(winner, ranges),
        "validation": interval(winner.scores) if known and winner is not None and winner.scores is not None else None,
        "validation_default": None if tried[0].scores is None else interval(tried[0].scores),
        "kl": None if winner is None else winner.kl,
        "seconds": float(sum(one.get(key) or 0.0 for one in cost for key in ("train_s", "evaluate_s", "sample_s"))),
        "tokens": int(sum(one.get("tokens") or 0 for one in cost)),
    }


def _settings(trial: Trial, ranges: Mapping[str, Sequence[Any]]) -> str:
    """What was tuned of a trial, as text."""
    shown = ", ".join(f"{key}={_shown(trial.settings[key])}" for key in sorted(ranges, key="lr".__ne__))
    return f"{shown} (its defaults)" if trial.index == 0 else shown


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _edges(trial: Trial, ranges: Mapping[str, Sequence[Any]]) -> list[str]:
    """The settings of a winner that lie at the edge of their range, so that the best may lie beyond."""
    found = []
    for name, ends in ranges.items():
        value = trial.settings[name]
        if isinstance(value, str) or isinstance(ends[0], str):
            continue
        side = at_edge(float(value), float(ends[0]), float(ends[1]))
        if side:
            found.append(f"{name}={_shown(value)} at the {side} end of {_shown(ends[0])} to {_shown(ends[1])}")
    return found


def _gain(comparison: Comparison, cells: Cells, judged: Scores | None, criterion: str, row: Row) -> Row | None:
    """Tuned minus default on test prompts and fresh seeds, by the criterion; None where it was the default that won."""
    names = [row["tuned"], row["default"]]
    if row["tuned"] in (None, row["default"]):
        return None
    best, default = (_on_test(comparison, cells, judged, criterion, name) for name in names)
    return None if best is None or default is None or best.shape != default.shape else interval(best - default)


def _on_test(
    comparison: Comparison, cells: Cells, judged: Scores | None, criterion: str, name: str
) -> np.ndarray[Any, Any] | None:
    if not comparison.is_complete(name):
        return None
    if criterion == "reward":
        return cells.get(name, "reward")
    if criterion == "win_rate":
        return None if judged is None else judged.get(name, REFERENCE)
    return pair_accuracies(comparison, name)


def _trial(tuning: Tuning, trial: Trial) -> Row:
    winner = tuning.best(trial.family)
    return {
        "family": trial.family,
        "variant": trial.variant,
        "index": trial.index,
        "learning_rate": trial.settings["lr"],
        "score": None if trial.scores is None else interval(trial.scores),
        "kl": trial.kl,
        "outcome": trial.outcome,
        "chosen": "chosen" if winner is not None and winner.variant == trial.variant else "",
    }


def _curve(tried: Sequence[Trial]) -> Row | None:
    """Expected best score after n points of the sequence, with its band; trials without a result count as worst."""
    scores = [trial.score for trial in tried if trial.index > 0]
    known = [score for score in scores if score is not None]
    if len(known) < 2:
        return None
    filled = [min(known) if score is None else score for score in scores]
    band = stats.best_band(filled)
    return {
        "n": list(range(1, len(filled) + 1)),
        "expected": [float(value) for value in stats.expected_best(filled)],
        "low": [number(value) for value in band.low],
        "high": [number(value) for value in band.high],
        "default": tried[0].score,
    }


def _shares(tuning: Tuning) -> Row | None:
    """Shares of variance over the losses that met the same rates."""
    rates: dict[tuple[float, ...], list[str]] = {}
    for name, tried in tuning.families.items():
        rates.setdefault(tuple(float(trial.settings["lr"]) for trial in tried[1:]), []).append(name)
    names = max(rates.values(), key=len, default=[])
    table = [[np.nan if t.score is None else t.score for t in tuning.families[name][1:]] for name in names]
    shares = stats.variance_shares(table) if table and table[0] else None
    return None if shares is None else {"losses": names, **shares._asdict()}


def _top(tuning: Tuning) -> list[Row]:
    """Every loss by its best, second and third trial, each with its place among the losses."""
    sorted_scores = {
        name: sorted((trial.score for trial in tried if trial.score is not None), reverse=True)
        for name, tried in tuning.families.items()
    }
    rows: list[Row] = [{"family": name} for name in sorted_scores]
    for k in range(TOP):
        known = {name: scores[k] for name, scores in sorted_scores.items() if len(scores) > k}
        order = sorted(known, key=lambda name: -known[name])
        for row in rows:
            name = row["family"]
            row[f"score_{k + 1}"] = known.get(name)
            row[f"place_{k + 1}"] = order.index(name) + 1 if name in known else None
    return sorted(rows, key=lambda row: (row["place_1"] is None, row["place_1"]))


def _frontier(tuning: Tuning) -> Row | None:
    """All trials by KL and reward, the hull of each loss, and the mean gain up to the KL that all reach."""
    cells, seeds = Cells(tuning.comparison.scores), tuning.comparison.seeds
    base = cells.get(REFERENCE, "reward", seeds)
    if base is None:
        return None
    reference = np.nanmean(base, axis=0)
    kl: dict[str, np.ndarray] = {}
    reward: dict[str, np.ndarray] = {}
    points: list[Row] = []
    for name, tried in tuning.families.items():
        done = [trial for trial in tried if trial.score is not None]
        if not done:
            continue
        places = [place for trial in done for place in _places(tuning.comparison, cells, trial.variant)]
        kl[name], reward[name] = (np.stack([place[column] for place in places]) for column in ("kl", "reward"))
        points += [
            {"family": name, "variant": place["variant"], "kl": float(k.mean()), "reward": float(r.mean())}
            for place, k, r in zip(places, kl[name], reward[name], strict=True)
        ]
    if not points:
        return None
    start = float(reference.mean())
    areas = stats.frontier_areas(list(kl.values()), list(reward.values()), reference)
    return {
        "points": points,
        "start": start,
        "hulls": {name: _hull(kl[name].mean(axis=1), reward[name].mean(axis=1), start) for name in kl},
        "to": None if areas is None else areas.to,
        "areas": [] if areas is None else _areas(list(kl), areas),
    }


def _places(comparison: Comparison, cells: Cells, name: str) -> list[Row]:
    """KL and reward, (P,) each, of a trained policy, and of it on its way where it was sampled then."""
    seeds = comparison.seeds
    places: list[Row] = [
        {
            "variant": name,
            "kl": _by_prompt(cells, name, "kl", seeds),
            "reward": _by_prompt(cells, name, "reward", seeds),
        }
    ]
    frame = comparison.sampled
    for step, rows in frame[frame["variant"] == name].groupby("step"):
        means = rows.groupby("prompt_id")[["kl", "reward"]].mean().reindex(cells.prompts)
        places.append({"variant": f"{name} at step {step}", **{key: means[key].to_numpy(float) for key in means}})
    return places


def _by_prompt(cells: Cells, name: str, column: str, seeds: Sequence[int]) -> np.ndarray:
    """(P,) means of a column over seeds."""
    values = cells.get(name, column, seeds)
    assert values is not None
    return np.asarray(np.nanmean(values, axis=0))


def _hull(kl: np.ndarray, reward: np.ndarray, start: float) -> Row:
    x, y = stats.frontier_hull(kl, reward, start=start)
    return {"kl": x.tolist(), "reward": y.tolist()}


def _areas(names: Sequence[str], areas: stats.FrontierAreas) -> list[Row]:
    """Mean gains, the largest first, each with its distance from the largest."""
    best = int(np.argmax(areas.value))
    rows = [
        {
            "family": name,
            "gain": _ends(areas.value[i], areas.low[i], areas.high[i]),
            "behind": None if i == best else _ends(*areas.difference[best, i]),
        }
        for i, name in enumerate(names)
    ]
    return sorted(rows, key=lambda row: -row["gain"]["value"])


def _ends(value: float, low: float, high: float) -> Row:
    return {"value": number(value), "low": number(low), "high": number(high)}
