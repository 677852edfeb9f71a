"""Tuning as sections of the report: what was tried, what it bought, how far the order of losses rests on settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.analysis.sentences import counted, listed
from prefopt.analysis.tuning import TOP
from prefopt.report.tables.table import Column, Table
from prefopt.stats import selection_gain

Row = Mapping[str, Any]
TUNING_CAPTIONS = {
    "over_steps": (
        "Samples during training on the evaluation prompts, from the reference at step 0; mean and range over seeds."
    ),
    "tuned_forest": (
        "Every loss at its defaults (hollow) and at its best setting (filled), with 95 % intervals over fresh seeds "
        "and test prompts. One marker alone: no trial was better than the defaults, or none had a result."
    ),
    "tuning_curves": (
        "Expected best score after n trials of the sequence, over all subsets of those that were run; dashed: the "
        "defaults. The band holds the median best score at every n at once with 95 % confidence were the trials "
        "independent; it is open above where so few trials bound nothing."
    ),
    "score_rate": (
        "Every trial by its learning rate. Stars: the defaults. Filled: the one that was chosen. Grey: the trials of "
        "the other losses."
    ),
    "tuning_frontier": (
        "All trials, by KL and gold reward, and the frontier of each loss: the most reward that its trials, or "
        "mixtures of them, have within a budget of KL. Dashed: the largest KL that trials of every loss reach."
    ),
}


def tuning_text(results: Row) -> tuple[str, ...]:
    """What tuning did, in sentences."""
    found = results["tuning"]
    if found is None:
        return ()
    families = found["families"]
    spent = sum(row["trials"] for row in families)
    lost = sum(row["lost"] for row in families)
    bound = "" if found["max_kl"] is None else f" among settings within {found['max_kl']:g} nats of the reference"
    n, seeds = families[0]["trials"], listed([str(seed) for seed in found["seeds"]])
    text = [
        f"Every loss had {counted(n, 'trial')}: its defaults, and points of one Sobol sequence over the ranges that it "
        f"declares, so that all met the same learning rates. The best by {found['criterion_text']}{bound}, at seed "
        f"{seeds} on {found['prompts']} validation prompts, and the defaults were then trained anew at the seeds of "
        "this report and judged on other prompts. "
        f"In all {counted(spent, 'trial')} were spent"
        + (f", {lost} of them without a result, which counts as the worst." if lost else ".")
    ]
    gain = selection_gain(n)
    text.append(
        f"The score on validation prompts is that of a winner: of {n} equal settings the best looks {gain:.2f} "
        "standard deviations better than it is, which is why it is not the number that is reported."
    )
    if found["criterion"] == "accuracy":
        text.append(
            "The settings were chosen by held-out accuracy, how often the log-ratio orders a pair as its label does. "
            "That is not the quality of what a policy writes: a policy may rank well and write badly."
        )
    if found["shares"]:
        text.append(_shares_text(found["shares"]))
    text.append(_top_text(found["top"]))
    return tuple(one for one in text if one)


def _shares_text(shares: Row) -> str:
    return (
        f"Of the variance of the trials' scores ({listed(shares['losses'], 8)}) the loss explains "
        f"{100 * shares['loss']:.0f} %, the learning rate {100 * shares['rate']:.0f} %; the rest, "
        f"{100 * shares['rest']:.0f} %, is other settings, the interplay of loss and rate, and noise."
    )


def _top_text(rows: Sequence[Row]) -> str:
    known = [row for row in rows if all(row[f"place_{k + 1}"] is not None for k in range(TOP))]
    if len(known) < 2:
        return ""
    orders = [[row["family"] for row in sorted(known, key=lambda row: row[f"place_{k + 1}"])] for k in range(TOP)]
    if orders[0] == orders[1] == orders[2]:
        return "The order of the losses is the same by their best, second and third trial."
    firsts = list(dict.fromkeys(order[0] for order in orders))
    if len(firsts) == 1:
        return f"{firsts[0]} is first by its best, second and third trial; the order behind it changes."
    return f"Which loss is first depends on the trial that stands for it: {listed(firsts)} by best, second or third."


def tuned_table(results: Row) -> Table:
    """Every loss at its defaults and at its best, on test prompts and fresh seeds."""
    found = results["tuning"] or {"families": [], "criterion": "reward", "criterion_text": ""}
    board = {row["variant"]: row for row in results["leaderboard"]}
    key = {"reward": "reward", "win_rate": "win_rate", "accuracy": "accuracy"}[found["criterion"]]
    unit: dict[str, Any] = {"kind": "number", "digits": 2} if key == "reward" else {"kind": "percent", "digits": 1}
    what = {"reward": "reward gain", "win_rate": "win rate, %", "accuracy": "pair accuracy, %"}[key]
    rows = [
        {
            **row,
            "at_default": board.get(row["default"], {}).get(key),
            "at_best": board.get(row["tuned"], {}).get(key),
            "kl_default": board.get(row["default"], {}).get("kl"),
            "kl_best": board.get(row["tuned"], {}).get("kl"),
            "spent": f"{row['trials']}" + (f" ({row['lost']} lost)" if row["lost"] else ""),
            "edge": "; ".join(row["edges"]) or "–",
        }
        for row in found["families"]
    ]
    return Table(
        "tuned",
        "Every loss at its defaults and at its best",
        (
            Column("family", "loss", "text"),
            Column("at_default", f"default: {what}", **unit),
            Column("at_best", f"tuned: {what}", **unit),
            Column("gain", "what tuning bought", **unit, help="Tuned minus default, paired by seed and prompt."),
            Column("kl_default", "default: KL, nats", "number", 2),
            Column("kl_best", "tuned: KL, nats", "number", 2),
            Column("settings", "chosen", "text"),
            Column("spent", "trials", "text", help="Settings tried; lost are those that diverged or failed."),
            Column("edge", "at the edge of its range", "text"),
            Column("seconds", "trials, s", "number", 0, "Seconds that all trials of the loss took."),
        ),
        rows,
        "On test prompts and fresh seeds, which the choice never saw. A dash in what tuning bought: the defaults won.",
    )


def trials_table(results: Row) -> Table:
    """Every trial with its score on validation prompts."""
    found = results["tuning"] or {"trials": [], "criterion": "reward"}
    unit: dict[str, Any] = (
        {"kind": "number", "digits": 2} if found["criterion"] == "reward" else {"kind": "percent", "digits": 1}
    )
    return Table(
        "trials",
        "Every trial, on validation prompts",
        (
            Column("variant", "setting", "text"),
            Column("family", "loss", "text"),
            Column("index", "trial", "count", help="0 is the defaults; the others are points of the sequence."),
            Column("learning_rate", "learning rate", "number", 6),
            Column("score", found.get("criterion_text") or "score", **unit),
            Column("kl", "KL, nats", "number", 2),
            Column("outcome", "outcome", "text"),
            Column("chosen", "chosen", "text"),
        ),
        found["trials"],
        "The best of several looks better than it is: read the table of tuned losses for what it is worth.",
    )


def frontier_table(results: Row) -> Table:
    """Mean gain of every loss over budgets of KL."""
    found = (results["tuning"] or {}).get("frontier") or {"areas": [], "to": None}
    reach = "" if found["to"] is None else f"{found['to']:.2f} nats"
    return Table(
        "frontier_area",
        f"Mean reward gain of the frontier up to {reach}",
        (
            Column("family", "loss", "text"),
            Column("gain", "mean gain", "number", 3, "Area between hull and reference up to that KL, over the KL."),
            Column("behind", "behind the first", "number", 3, "Difference from the first, paired by prompt."),
        ),
        found["areas"],
        "Up to the largest KL that trials of every loss reach. Intervals are 95 %, over validation prompts; they hold "
        "for these trials at their seeds, and every loss had as many.",
    )


def top_table(results: Row) -> Table:
    """Every loss by its best, second and third trial."""
    found = results["tuning"] or {"top": [], "criterion": "reward"}
    unit: dict[str, Any] = (
        {"kind": "number", "digits": 2} if found["criterion"] == "reward" else {"kind": "percent", "digits": 1}
    )
    names = ("best", "second", "third")
    return Table(
        "top_trials",
        "Does the order rest on one setting?",
        (
            Column("family", "loss", "text"),
            *(Column(f"score_{k + 1}", f"{name}: score", **unit) for k, name in enumerate(names)),
            *(Column(f"place_{k + 1}", f"{name}: place", "count") for k, name in enumerate(names)),
        ),
        found["top"],
        "Scores on validation prompts, as in arXiv:2502.01237; places among the losses.",
    )
