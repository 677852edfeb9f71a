"""The tables of a report whose rows are computed, each by a function of ``results.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefopt.analysis.sentences import listed, spread_over
from prefopt.report.selftest import selftest_table
from prefopt.report.tables.plain import PLAIN
from prefopt.report.tables.table import VARIANT, Column, Table
from prefopt.report.tuning import frontier_table, top_table, trials_table, tuned_table

Row = Mapping[str, Any]


BROKEN = (Column("broken", "broken samples", "text", help="What is wrong with its samples; see the warning."),)
UNUSABLE = (Column("unusable", "unusable, %", "percent", 1, "Above 1 %, the verdict is that of the worst case."),)


SETTING = Column("setting", "setting", "text", help="Of a loss that was tuned: its defaults, or its best trial.")


def leaderboard(r: Row) -> Table:
    """One row a variant: what is known of it against the reference, and how it was trained.

    What is read first stands first: a screen of 1280 points shows it without scrolling. With one seed there are no
    verdicts, and no column of them.
    """
    judged, several = bool(r["versus_reference"]), len(r["seeds"]) > 1
    gold, broken = bool(r["rewards"]), any(row["broken"] for row in r["leaderboard"])
    varied = varied_settings(r["variants"])
    columns = (
        VARIANT,
        *((SETTING,) if any(row["setting"] for row in r["leaderboard"]) else ()),
        *((VERDICT,) if judged and several else ()),
        *(BROKEN if broken else ()),
        *((WIN_RATE,) if judged else ()),
        *((REWARD,) if gold else ()),
        Column("kl", "KL, nats", "number", 2, "To the reference, per sequence, on its own samples."),
        Column("accuracy", "pair accuracy, %", "percent", 1, "Held-out pairs ordered rightly by the log-ratio."),
        *(Column(f"setting {name}", name, "setting", help="A setting that variants of one loss differ in.")
          for name in varied),
        Column("seeds", "seeds", "text", help="Finished of planned."),
        *(one for one in MORE_WINS if any(row[one.key] not in (None, "–") for row in r["leaderboard"])),
        Column("length", "length ratio", "number", 2, "Tokens of a sample, relative to the reference."),
        *(() if "learning rate" in varied else (Column("learning_rate", "learning rate", "text"),)),
        Column("hyperparameters", "hyperparameters", "text"),
        Column("train_s", "training, s", "number", 0, "Per run, mean over seeds."),
    )  # fmt: skip
    rows = [{**row, **{f"setting {key}": row["settings"].get(key) for key in varied}} for row in r["leaderboard"]]
    order = "Against the reference, best first" if judged else "In the order of the configuration"
    return Table("leaderboard", "Leaderboard", columns, rows, f"{order}. Intervals are 95 %, over {spread_over(r)}.")


VERDICT = Column("verdict", "verdict", "verdict", help="Against the reference, after Holm's correction.")
WIN_RATE = Column("win_rate", "win rate, %", "percent", 1, "Against the reference, ties one half; 95 % interval.")
REWARD = Column("reward", "reward gain", "number", 2, "Mean gold reward of samples minus the reference's, paired.")
MORE_WINS = (
    Column("controlled", "at equal length, %", "percent", 1, "Win rate with the effect of length taken out."),
    Column("rank", "rank", "text", help="Places that the ratings leave open, corrected for the number of pairs."),
    Column("mde", "visible from, points", "points", 1, "A true difference seen in four of five repetitions."),
)


def varied_settings(variants: Sequence[Row]) -> list[str]:
    """The hyperparameters, and the learning rate, that variants of one loss differ in."""
    names: dict[str, None] = {}
    for loss in dict.fromkeys(entry["loss"] for entry in variants):
        own = [entry["settings"] for entry in variants if entry["loss"] == loss]
        keys = dict.fromkeys(key for settings in own for key in settings)
        names.update(dict.fromkeys(key for key in keys if len({str(one.get(key)) for one in own}) > 1))
    return list(names)


def _pairwise(name: str, title: str, rows: Sequence[Row], note: str) -> Table:
    return Table(
        name,
        title,
        (
            Column("a", "variant", "text"),
            Column("b", "opponent", "text"),
            Column("verdict", "verdict", "verdict"),
            Column("win_rate", "win rate, %", "percent", 1, "Of the variant against the opponent, ties one half."),
            Column("p_holm", "p (Holm)", "p", help="Two-way clustered test, corrected within this table."),
            Column("p_sign", "p (sign-flip)", "p", help="Exact test over paired seeds, not corrected."),
            Column(
                "df", "df", "number", 1, "Satterthwaite's degrees of freedom: the size of the evidence in one number."
            ),
            Column("n_seeds", "seeds", "count"),
            Column("n_prompts", "prompts", "count"),
            Column("ties", "ties, %", "percent", 1),
            *(UNUSABLE if any(row["unusable"] for row in rows) else ()),
            Column("mde", "visible from, points", "points", 1, "Difference seen in four of five repetitions."),
            Column("seeds_needed", "seeds to settle", "count", 0, "If the true difference were the one seen."),
            Column("prompts_needed", "prompts to settle", "count", 0, "If the true difference were the one seen."),
        ),
        rows,
        note,
    )


def _versus_reference(r: Row) -> Table:
    return _pairwise(
        "versus_reference", "Against the reference", r["versus_reference"],
        "p-values are corrected by Holm's method over the rows of this table.",
    )  # fmt: skip


def _pairs(r: Row) -> Table:
    return _pairwise(
        "pairs", "Every pair of variants", r["pairs"],
        "Paired by seed and prompt; p-values are corrected by Holm's method over the rows of this table.",
    )  # fmt: skip


def _matrix(r: Row) -> Table:
    if not r["matrix"]:
        return Table("matrix", "Head to head", ())
    names = r["matrix"]["names"]
    rows = [
        {"variant": name, **{f"vs_{i}": cell for i, cell in enumerate(r["matrix"]["cells"][k])}}
        for k, name in enumerate(names)
    ]
    columns = tuple(Column(f"vs_{i}", f"vs {name}", "percent", 1) for i, name in enumerate(names))
    return Table("matrix", "Head to head, win rate of the row in %", (VARIANT, *columns), rows, "95 % intervals.")


def _power(r: Row) -> Table:
    seeds = [f"s{n}" for n in r["power"]["seeds"]]
    return Table(
        "power",
        "Smallest difference seen in four of five repetitions, points",
        (
            Column("prompts", "prompts", "count"),
            *(Column(key, f"{key[1:]} seeds", "points", 1) for key in seeds),
        ),
        [
            {"prompts": curve["prompts"], **dict(zip(seeds, curve["mde"], strict=True))}
            for curve in r["power"]["curves"]
        ],
    )


def _seeds_needed(r: Row) -> Table:
    return Table(
        "seeds_needed",
        "Seeds that show a difference in four of five repetitions",
        (
            Column("effect", "difference, points", "points", 0),
            *(Column(f"n{n}", f"with {n} prompts", "count") for n in r["power"]["prompts"]),
        ),
        r["power"]["needed"],
        "A dash: not even 200 seeds would.",
    )


def _judge_controls(r: Row) -> Table:
    return Table(
        "judge_controls",
        "Responses with a known verdict, put before each judge",
        (
            Column("judge", "judge", "text"),
            Column("control", "control", "text"),
            Column("win_rate", "wins, %", "percent", 1, "Identical texts must tie; the others must lose."),
            Column("low", "from, %", "percent", 1),
            Column("high", "to, %", "percent", 1),
            Column("n", "comparisons", "count"),
            Column("verdict", "passed", "text"),
        ),
        [
            {"judge": row["judge"], **control, "verdict": "yes" if control["passed"] else "NO"}
            for row in r["judges"]
            for control in row["controls"]
        ],
    )


def _conditions(r: Row) -> Table:
    return Table(
        "conditions",
        "Conditions, equal for all variants of a seed",
        (
            Column("seed", "seed", "text"),
            *(Column(key, key.replace("_", " "), "text") for key in r["condition_fields"]),
        ),
        r["conditions"],
    )


def _checks(r: Row) -> Table:
    rows = [{**check, "outcome": "passed" if check["passed"] else "FAILED"} for check in r["checks"]]
    return Table(
        "checks",
        "Checks",
        (
            Column("name", "check", "text"),
            Column("outcome", "outcome", "text"),
            Column("detail", "found", "text"),
        ),
        rows,
    )


def _variants(r: Row) -> Table:
    return Table(
        "variants",
        "What was compared",
        (
            VARIANT,
            Column("loss", "loss", "text"),
            Column("hyperparameters", "hyperparameters", "text"),
            Column("learning_rate", "learning rate", "text"),
            Column("needs", "reads", "text"),
            Column("source", "source", "text"),
            Column("summary", "what it is", "text"),
        ),
        [
            {
                **entry,
                "needs": listed(
                    [
                        *(["reference"] if entry["needs_reference"] else ["policy only"]),
                        *(["lengths"] if entry["length_normalized"] else []),
                        *(["whole batch"] if entry["batch_coupled"] else []),
                    ]
                ),
            }
            for entry in r["variants"]
        ],
    )


COMPUTED: Mapping[str, Callable[[Row], Table]] = {
    "leaderboard": leaderboard,
    "versus_reference": _versus_reference,
    "pairs": _pairs,
    "matrix": _matrix,
    "power": _power,
    "seeds_needed": _seeds_needed,
    "judge_controls": _judge_controls,
    "variants": _variants,
    "conditions": _conditions,
    "checks": _checks,
    "selftest": selftest_table,
    "tuned": tuned_table,
    "trials": trials_table,
    "top_trials": top_table,
    "frontier_area": frontier_table,
}
BUILDERS: Mapping[str, Callable[[Row], Table]] = {**{one.name: one for one in PLAIN}, **COMPUTED}


def build_tables(results: Row) -> dict[str, Table]:
    """Every table that has rows, by name."""
    tables = {name: builder(results) for name, builder in BUILDERS.items()}
    return {name: table for name, table in tables.items() if table.rows}
