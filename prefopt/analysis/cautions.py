"""What limits the conclusions of a report, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.analysis.checks import NULL_LOSS
from prefopt.analysis.neutral import neutral_warnings
from prefopt.analysis.selftest import selftest_failures
from prefopt.analysis.sentences import counted, listed, percent
from prefopt.stats import selection_gain

Row = Mapping[str, Any]
# AlpacaEval's threshold for a suspicious effect of length.
LENGTH_ALARM = 0.10
INVALID_ALARM = 0.01
UNFINISHED_ALARM = 0.5
FEW_SEEDS = 5
TRIALS = 8  # of each loss, as prefopt tune has it


def warnings(results: Row) -> list[dict[str, Any]]:
    """What limits the conclusions, gravest first: {level: danger | warn | note, title, text}."""
    cautions = [
        *_broken_warnings(results),
        *_run_warnings(results),
        *_check_warnings(results),
        *_judge_warnings(results),
        *_data_warnings(results),
        *neutral_warnings(results["neutral"]),
    ]
    order = {"danger": 0, "warn": 1, "note": 2}
    return sorted(cautions, key=lambda warning: order[warning["level"]])


def _warning(level: str, title: str, text: str) -> dict[str, Any]:
    return {"level": level, "title": title, "text": text}


def _broken_warnings(results: Row) -> list[dict[str, Any]]:
    """Variants whose samples are no text any more, with the names for the page to show samples of."""
    broken = [row for row in results["health"] if row["problems"]]
    if not broken:
        return []
    said = [f"{row['variant']}{_where(row)}: {', '.join(row['problems'])}" for row in broken[:8]]
    more = f"; and {len(broken) - 8} more" if len(broken) > 8 else ""
    text = (
        f"{'; '.join(said)}{more}. Its win rate, accuracy and margin are then those of a model that training has "
        "broken. Usual cures are a lower learning rate, fewer steps and a stronger pull to the reference."
    )
    names = [row["variant"] for row in broken]
    return [{**_warning("danger", f"Broken models: {listed(names, 8)}", text), "variants": names}]


def _where(row: Row) -> str:
    return "" if row["all_seeds"] else f" at seed {listed([str(seed) for seed in row['seeds']])}"


def _run_warnings(results: Row) -> list[dict[str, Any]]:
    cautions = []
    seeds = len(results["seeds"])
    if seeds == 1:
        cautions.append(
            _warning(
                "danger",
                "One seed",
                "Every number is conditional on one training run of each loss. The intervals cover new prompts, "
                "not new runs; nothing here says that one loss is better than another.",
            )
        )
    bad = [run for run in results["runs"] if run["status"] != "complete"]
    absent = [run for run in bad if run["status"] == "missing"] if results["running"] else []
    if absent:
        total = len(results["runs"])
        cautions.append(
            _warning(
                "warn",
                f"Still running: {total - len(absent)} of {counted(total, 'run')} so far",
                "The comparison is under way, and this page shows what has finished. Variants with runs to come are "
                "INCOMPLETE and not ranked; `prefopt report` shows the next state, and the comparison writes the whole "
                "report when it ends.",
            )
        )
    bad = [run for run in bad if run not in absent]
    if bad:
        detail = "; ".join(f"{run['variant']} seed {run['seed']} {run['outcome']}" for run in bad[:12])
        more = f"; and {len(bad) - 12} more" if len(bad) > 12 else ""
        cautions.append(
            _warning(
                "danger",
                "Runs did not finish",
                f"{detail}{more}. Their variants are shown as INCOMPLETE and not ranked.",
            )
        )
    unknown = {row["variant"]: row["unknown"] for row in results["cost"] if row.get("unknown")}
    if unknown:
        shown = listed([f"{counted(count, 'run')} of {name}" for name, count in unknown.items()], 4)
        cautions.append(_warning("note", "Cost unknown", f"cost.json is gone from {shown}; means are over the others."))
    if 1 < seeds < FEW_SEEDS:
        verdicts = {row["verdict"] for row in (*results["versus_reference"], *results["pairs"])}
        cautions.append(
            _warning(
                "warn",
                f"Only {seeds} seeds",
                "Five or more are advised: with so few, two training runs that happen to differ widen every interval."
                + (
                    " INCONCLUSIVE means that the data cannot say, not that two losses are equal."
                    if "INCONCLUSIVE" in verdicts
                    else ""
                ),
            )
        )
    return cautions


def _check_warnings(results: Row) -> list[dict[str, Any]]:
    failed = selftest_failures(results)
    cautions = [
        _warning("danger", "Self-test failed", f"{listed(failed, 4)}. Verdicts of this code are not to be trusted.")
    ]
    return (cautions if failed else []) + [
        _warning("danger", f"Check failed: {check['name']}", check["detail"])
        for check in results["checks"]
        if not check["passed"]
    ]


def _judge_warnings(results: Row) -> list[dict[str, Any]]:
    cautions = []
    if results["setup"]["judge"] is None:
        cautions.append(
            _warning(
                "warn",
                "No judge",
                "Win rates, head-to-head matrix, ratings, length control and power need a judge or a gold reward, "
                "and these results hold none. Everything else is shown.",
            )
        )
    cautions.extend(
        _warning(
            "warn",
            f"Judge {row['judge']}: {percent(row['invalid_share'])} of its verdicts are unusable",
            "They are counted neither as wins nor as losses. Where they are more than 1 % of a comparison, its verdict "
            "is one that holds if all of them had been lost and if all had been won."
            + (_withheld(results) if row["judge"] == results["setup"]["judge"] else ""),
        )
        for row in results["judges"]
        if row["invalid_share"] and row["invalid_share"] > INVALID_ALARM
    )
    cautions.extend(
        _warning(
            "danger",
            f"Judge {row['judge']} is not to be trusted",
            "; ".join(row["problems"])
            + (". Its win rates are shown, and no verdict." if row["judge"] == results["setup"]["judge"] else "."),
        )
        for row in results["judges"]
        if row["problems"]
    )
    long = [
        row["variant"]
        for row in results["length_control"]
        if row["controlled"] is not None and abs(row["controlled"] - row["raw"]) > LENGTH_ALARM
    ]
    if long:
        cautions.append(
            _warning(
                "warn",
                "Length explains part of the win rate",
                f"At equal length the win rate of {listed(long)} moves by more than {100 * LENGTH_ALARM:.0f} points.",
            )
        )
    return cautions


def _withheld(results: Row) -> str:
    """A sentence that names the comparisons that have no verdict because of unusable answers."""
    rows = [row for row in (*results["versus_reference"], *results["pairs"]) if row["worst_case"]]
    lost = [f"{row['a']} against {row['b']}" for row in rows if row["worst_case"]["left_out"] != row["verdict"]]
    return f" That takes the verdict from {listed(lost, 6)}." if lost else ""


def _exposure_warnings(seen: Row | None) -> list[dict[str, Any]]:
    """Where runs end before they have seen every pair once."""
    if seen is None or seen["seen"] >= seen["train_pairs"]:
        return []
    most = seen["share"] < 0.5
    return [
        _warning(
            "warn" if most else "note",
            f"Trained on {percent(seen['share'], 0)} of the pairs",
            f"A run took {seen['seen']} of the {seen['train_pairs']} training pairs ({seen['epochs']:.2f} epochs); the "
            "others were never trained on. More steps, or more pairs a step, use them.",
        )
    ]


def _data_warnings(results: Row) -> list[dict[str, Any]]:
    cautions = []
    data = results["setup"]["data"]
    cut = (data.get("truncated_chosen") or 0) + (data.get("truncated_rejected") or 0)
    if cut:
        cautions.append(
            _warning(
                "note", "Truncated responses", f"{counted(cut, 'response')} of the pairs were cut at the length limit."
            )
        )
    cautions.extend(_exposure_warnings(results["exposure"]))
    if data.get("dropped_rows"):
        cautions.append(
            _warning("note", "Dropped rows", f"{counted(data['dropped_rows'], 'row')} of the data could not be used.")
        )
    unfinished = [
        row["variant"]
        for row in results["text"]
        if row["finished"]["value"] is not None and 1 - row["finished"]["value"] > UNFINISHED_ALARM
    ]
    if unfinished:
        cautions.append(
            _warning(
                "note",
                "Most samples reach the length limit",
                f"Of {listed(unfinished)} more than half of the samples end at the limit and not by themselves: "
                "length, and KL per sequence, are those of the part that was sampled.",
            )
        )
    return [*cautions, *_setting_warnings(results)]


def _setting_warnings(results: Row) -> list[dict[str, str]]:
    """How far the order of losses rests on the settings that they ran with."""
    families = [variant["family"] for variant in results["variants"]]
    several = sorted({family for family in families if families.count(family) > 1})
    if results["tuning"]:
        return _edge_warnings(results["tuning"]["families"])
    if len(families) < 2:
        return []
    cost = f" {_cost_of_tuning(results)}"
    if several:
        most = max(families.count(family) for family in several)
        return [
            _warning(
                "warn",
                "The best of several settings looks better than it is",
                f"{listed(several)} ran at several settings, judged on one set of prompts. Of {most} equal settings "
                f"the best is {selection_gain(most):.2f} standard deviations of one score above their mean by chance: "
                f"compare settings here, not losses by their best.{cost}",
            )
        ]
    return [
        _warning(
            "note",
            "One setting of each loss",
            "Each variant ran with the hyperparameters and learning rate that its row shows. Another setting of a loss "
            f"may rank differently: nothing is said about the losses as such.{cost}",
        )
    ]


def _edge_warnings(tuned: Sequence[Row]) -> list[dict[str, str]]:
    """Winners whose settings lie where their range ends, and losses that no trial within the bound stands for."""
    at_edge = [f"{row['family']} ({'; '.join(row['edges'])})" for row in tuned if row["edges"]]
    none = [row["family"] for row in tuned if row["tuned"] is None]
    cautions = []
    if at_edge:
        more = "A better one may lie beyond: widen the range under [tune.ranges] and tune again."
        cautions.append(_warning("warn", "Best settings at the edge of their range", f"{listed(at_edge, 6)}. {more}"))
    if none:
        said = f"None of the trials of {listed(none)} has a score within the bound on the KL: its defaults stand alone."
        cautions.append(_warning("warn", "No setting to choose", said))
    return cautions


def _cost_of_tuning(results: Row) -> str:
    """What ``prefopt tune`` would take, from what these runs took."""
    parts = ("train_s", "evaluate_s", "sample_s")
    seconds = [sum(row[part] or 0.0 for part in parts) for row in results["cost"]]
    losses = len({variant["family"] for variant in results["variants"] if variant["loss"] != NULL_LOSS})
    if not seconds or not losses:
        return f"`prefopt tune` tries {TRIALS} settings of each loss."
    more = TRIALS * losses + losses * len(results["seeds"])
    minutes = more * sum(seconds) / len(seconds) / 60
    return (
        f"`prefopt tune` with the same arguments tries {TRIALS} settings of each loss and trains the winners anew: "
        f"{more} more runs, about {max(1, round(minutes))} min at the time that these took."
    )
