"""What somebody who wants one model is told, in a sentence or two, and in no more words than the verdicts bear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.analysis.checks import NULL_LOSS
from prefopt.analysis.sentences import listed, percent

Row = Mapping[str, Any]


def recommendation(results: Row) -> list[str]:
    """Which variant to take, or why none is recommended; verdicts alone decide, and never a broken model."""
    rows = results["versus_reference"]
    if not rows:
        return [
            "Recommendation: none, since no judge has compared the samples. "
            f"`prefopt judge results/{results['name']} --judge ...` has them compared."
        ]
    if any(row["verdict"] == "NO VERDICT" for row in rows):
        return ["Recommendation: none, until a judge that can be trusted has compared the samples."]
    controls = {entry["variant"] for entry in results["variants"] if entry["loss"] == NULL_LOSS}
    sound = [row for row in rows if row["a"] not in controls and row["verdict"] != "INCOMPLETE" and not row["broken"]]
    if not sound:
        return ["Recommendation: none, since every variant is broken or did not finish."]
    if len(results["seeds"]) == 1:
        best = sound[0]
        return [
            f"Recommendation: none between losses, since each was trained once. Of these trained models, {best['a']} "
            f"wins most often against the reference ({percent(best['value'])})."
        ]
    better = [row["a"] for row in sound if row["verdict"] == "BETTER"]
    return [_take(results, better)] if better else [_take_none(sound)]


def _take(results: Row, better: Sequence[str]) -> str:
    """The best variant, and those that cannot be told from it."""
    best, beaten = better[0], _beaten(results["pairs"])
    equals = [name for name in better[1:] if (better[0], name) not in beaten]
    if len(better) == 1:
        return f"Recommendation: {best}. It alone is shown to beat the reference, and its samples are sound."
    if not equals:
        return f"Recommendation: {best}. It beats the reference, and every other variant that does."
    nearest = _nearest(results, [best, *equals])
    return (
        f"Recommendation: {best}, or {listed(equals)}, which these runs cannot tell from it; all of them beat the "
        f"reference.{nearest}"
    )


def _beaten(pairs: Sequence[Row]) -> set[tuple[str, str]]:
    """(winner, loser) of every settled pair."""
    won = {(row["a"], row["b"]) for row in pairs if row["verdict"] == "BETTER"}
    return won | {(row["b"], row["a"]) for row in pairs if row["verdict"] == "WORSE"}


def _nearest(results: Row, names: Sequence[str]) -> str:
    known = [(row["kl"]["value"], row["variant"]) for row in results["kl"] if row["variant"] in names]
    if len(known) < 2 or any(kl is None for kl, _ in known):
        return ""
    kl, name = min(known)
    return f" Of these, {name} stays nearest to the reference (KL {kl:.1f} nats)."


def _take_none(sound: Sequence[Row]) -> str:
    first = sound[0]
    if any(row["verdict"] == "INCONCLUSIVE" for row in sound):
        needed = f" About {first['seeds_needed']} seeds would settle the one seen." if first["seeds_needed"] else ""
        return (
            f"Recommendation: none yet. No variant is shown to beat the reference; {first['a']} comes nearest "
            f"({percent(first['value'])}).{needed}"
        )
    return "Recommendation: keep the reference. No variant beats it."
