"""Sentences: verdicts, answers and warnings in plain words, made from ``results.json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prefopt.storage.records import RunRecord

Row = Mapping[str, Any]
MOST_NAMED = 6
LONGEST_REASON = 160


def percent(value: float | None, digits: int = 1) -> str:
    """``0.579`` as ``57.9 %``; a dash where there is no value."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def percent_interval(row: Row) -> str:
    """``57.9 % [53.6, 62.1]``."""
    if row["value"] is None:
        return "–"
    if row["low"] is None:
        return percent(row["value"])
    return f"{percent(row['value'])} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def p_value(value: float | None) -> str:
    """``p = .004``, or ``p < .001``."""
    if value is None:
        return "p not defined"
    return "p < .001" if value < 0.001 else f"p = {value:.3f}".replace("0.", ".", 1)


def listed(names: Sequence[str], most: int = 12) -> str:
    """``a, b and c``; a long list ends in how many more there are."""
    names = list(names)
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def counted(count: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def spread_over(results: Row) -> str:
    """What intervals cover: new seeds and prompts, or from one seed new prompts alone."""
    return "seeds and prompts" if len(results["seeds"]) > 1 else "prompts alone"


def run_outcome(status: str, run: RunRecord | None) -> str:
    """What became of one run: ``complete``, ``missing``, ``diverged at step 37``, ``failed: out of memory``."""
    at = f" at step {run.diverged_at}" if run is not None and run.diverged_at is not None else ""
    reason = " ".join(run.reason.split()) if run is not None else ""
    cut = reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON] + " …"
    return f"{status}{at}" + (f": {cut}" if cut and status != "complete" else "")


def comparison_sentence(row: Row) -> str:
    """What one comparison says, with interval, test and what it could have seen, and whose text is broken."""
    broken = [f"{name} writes broken text ({what})" for name, what in row.get("broken", {}).items()]
    return _outcome(row) + (f" But {' and '.join(broken)}, whatever the judge says of it." if broken else "")


def _outcome(row: Row) -> str:
    a, b = row["a"], "the reference" if row["b"] == "reference" else row["b"]
    size = f"{counted(row['n_seeds'], 'seed')} x {counted(row['n_prompts'], 'prompt')}"
    won = f"{a} wins {percent_interval(row)} of comparisons with {b}"
    if row["verdict"] == "INCOMPLETE":
        return f"{won} over the runs that finished ({size}); not every run did, so nothing is claimed."
    if row["verdict"] == "NO VERDICT":
        return f"{won} ({size}) by a judge that is not to be trusted; nothing is claimed."
    if row["verdict"] == "ONE SEED":
        return f"{won} ({counted(row['n_prompts'], 'prompt')})."
    facts = f"Holm {p_value(row['p_holm'])}, {size}{_worst_case(row)}"
    seen = "" if row["mde"] is None else f" {points_from(row['mde'])}"
    if row["verdict"] == "BETTER":
        return f"{a} beats {b}: {percent_interval(row)} of comparisons won ({facts}).{seen}"
    if row["verdict"] == "WORSE":
        return f"{a} loses to {b}: {percent_interval(row)} of comparisons won ({facts}).{seen}"
    if row["verdict"] == "EQUIVALENT":
        return f"{a} equals {b} within the band of equivalence: {percent_interval(row)} of comparisons won ({facts})."
    alone = not row["low"] <= 0.5 <= row["high"]
    family = " By itself the interval excludes 50 %; with so many comparisons that is not enough." if alone else ""
    return (
        f"{a} against {b} is not settled: {percent_interval(row)} of comparisons won "
        f"({facts}).{family}{seen}{_settle(row)}"
    )


def _worst_case(row: Row) -> str:
    """How unusable answers changed a verdict, where there are too many to leave them out."""
    case = row["worst_case"]
    if case is None:
        return ""
    said = (
        f"; {percent(row['unusable'])} of its comparisons are unusable: the verdict is the one that holds whichever "
        f"way they had gone, [{100 * case['low']:.1f}, {100 * case['high']:.1f}]"
    )
    return said if case["left_out"] == row["verdict"] else f"{said}; without them it would be {case['left_out']}"


def points_from(effect: float) -> str:
    """What difference a comparison would settle in four of five repetitions, in a sentence."""
    if effect > 0.5:
        return "A comparison of this size settles no difference, however large, in four of five repetitions."
    return f"A comparison of this size settles a difference of {100 * effect:.1f} points in four of five repetitions."


def signed_interval(value: Row, digits: int = 2) -> str:
    """``+0.12 [-0.02, +0.27]``."""
    low, high = value["low"], value["high"]
    ends = "" if low is None else f" [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"{value['value']:+.{digits}f}{ends}".replace("-", "−")


def reference_context(controlled: Row | None, gain: Row | None, kl: Row | None) -> str:
    """How far length and KL explain a win rate against the reference."""
    said = []
    if controlled is not None and controlled["value"] is not None:
        said.append(f"at equal length {percent_interval(controlled)}")
    if gain is not None and gain["value"] is not None:
        said.append(f"reward {signed_interval(gain)}")
    if kl is not None and kl["value"] is not None:
        said.append(f"at KL {kl['value']:.1f} nats")
    return f" Also: {', '.join(said)}." if said else ""


def pair_context(matched: Row | None, *, settled: bool) -> str:
    """Whether a difference between two variants remains at equal KL."""
    if matched is None:
        return ""
    gap = matched["difference"]
    said = f" At equal KL ({matched['at']:.1f} nats) the reward differs by {signed_interval(gap)}"
    if settled and gap["low"] is not None and gap["low"] <= 0 <= gap["high"]:
        return f"{said}, not resolved: the lead may be bought by distance from the reference."
    return f"{said}."


def _settle(row: Row) -> str:
    """How many seeds or prompts would show a difference as large as the one seen."""
    ways = []
    if row.get("seeds_needed"):
        ways.append(f"{row['seeds_needed']} seeds")
    if row.get("prompts_needed"):
        ways.append(f"{row['prompts_needed']} prompts")
    return f" A true difference of this size would take about {' or '.join(ways)} to see." if ways else ""


def answers(results: Row) -> list[str]:
    """At most three sentences: against the reference, between the losses, what could be seen."""
    said = []
    rows = results["versus_reference"]
    distrusted = [row for row in rows if row["verdict"] == "NO VERDICT"]
    if distrusted:
        said.append(
            f"No verdict: the judge {results['setup']['judge']} is not to be trusted (see the warning), and nothing is "
            "claimed from what it said."
        )
    elif rows and len(results["seeds"]) == 1:
        won = [f"{row['a']} wins {percent_interval(row)}" for row in rows if row["value"] is not None]
        said.append(f"Against the reference, in one training run of each: {listed(won, 3)}.")
    elif rows:
        said.append(_against_reference(rows))
    pairs = results["pairs"]
    if pairs and not distrusted and len(results["seeds"]) > 1:
        said.append(_between(pairs))
    here = results["power"].get("here")
    if here and len(results["seeds"]) > 1 and not distrusted:
        said.append(
            f"With {counted(here['seeds'], 'seed')} and {counted(here['prompts'], 'prompt')}, corrected for "
            f"{counted(results['power']['tests'], 'comparison')}, "
            + (
                "no difference of a typical variant from the reference would be settled in four of five repetitions: "
                "that takes more seeds."
                if here["mde"] > 0.5
                else "a typical variant's difference from the reference would be settled in four of five repetitions "
                f"if it were {100 * here['mde']:.0f} points, and less often if it were smaller."
            )
        )
    if not rows:
        said.append("No judge has compared the samples of these runs, so no loss is called better.")
    return said


def _against_reference(rows: Iterable[Row]) -> str:
    groups: dict[str, list[str]] = {}
    for row in rows:
        broken = " (broken)" if row.get("broken") else ""
        groups.setdefault(row["verdict"], []).append(row["a"] + broken)
    phrases = {
        "BETTER": ("beats the reference", "beat the reference"),
        "WORSE": ("loses to the reference", "lose to the reference"),
        "EQUIVALENT": ("equals the reference", "equal the reference"),
        "INCONCLUSIVE": ("is not settled", "are not settled"),
        "INCOMPLETE": ("did not finish all its runs", "did not finish all their runs"),
        "ONE SEED": ("was trained only once", "were trained only once each"),
        "NO VERDICT": ("has no verdict", "have no verdict"),
    }
    total = sum(len(names) for names in groups.values())
    parts = []
    for verdict, (one, several) in phrases.items():
        names = groups.get(verdict, [])
        if len(names) > MOST_NAMED:
            parts.append(f"{len(names)} of {total} variants {several} ({listed(names, 3)})")
        elif names:
            parts.append(f"{listed(names)} {several if len(names) > 1 else one}")
    return "; ".join(parts) + "."


def _between(pairs: Sequence[Row]) -> str:
    judged = [row for row in pairs if row["verdict"] not in ("INCOMPLETE", "ONE SEED", "NO VERDICT")]
    if not judged:
        return "No pair of losses can be ranked from these runs."
    settled = [row for row in judged if row["verdict"] in ("BETTER", "WORSE")]
    equal = sum(row["verdict"] == "EQUIVALENT" for row in judged)
    tail = f"; {equal} equal within the band" if equal else ""
    if not settled:
        return f"None of the {counted(len(judged), 'pair')} of losses is settled{tail}."
    verb = "is" if len(settled) == 1 else "are"
    shown = [
        f"{row['a']} > {row['b']}" if row["verdict"] == "BETTER" else f"{row['b']} > {row['a']}" for row in settled
    ]
    total = counted(len(judged), "pair")
    return f"Between the losses, {len(settled)} of {total} {verb} settled: {listed(shown, 5)}{tail}."
