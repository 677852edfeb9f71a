"""Which judge's verdicts count, where several judged the same samples: the best one, or the one that was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from prefopt import stats
from prefopt.errors import UsageError, did_you_mean
from prefopt.storage import durable
from prefopt.storage.formats import write_json
from prefopt.storage.hashing import seal
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import ORACLE

CHOICE = "judge/lead.json"
PEOPLE = "file:"  # verdicts that were read from a file, by people as a rule


def judge_facts(folder: ResultsFolder) -> dict[str, dict[str, Any]]:
    """What each judge's own run found about it (``judge.json``), by the judge's name."""
    each = [folder.read_json(path) for path in sorted(folder.root.glob("judge/*/judge.json"))]
    return {str(facts["judge"]): facts for facts in each if "judge" in facts}


def controls_of(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A judge's controls by today's rule; an earlier one let judges pass that do not read."""
    return [
        {
            **row,
            "passed": bool(row["passed"])
            and stats.stands_control(identical=row["control"] == "identical", rate=row["win_rate"], high=row["high"]),
        }
        for row in facts.get("controls", [])
    ]


def problems_of(facts: Mapping[str, Any]) -> list[str]:
    """What a reader must know before they believe a judge, empty where there is nothing.

    That is what the judge's own run wrote down, and the controls that it let pass and that today's rule does not.
    """
    let_pass = {row["control"] for row in facts.get("controls", []) if row["passed"]}
    lenient = [row for row in controls_of(facts) if not row["passed"] and row["control"] in let_pass]
    said = [f"its control “{row['control']}” wins {100 * row['win_rate']:.0f} % and should lose" for row in lenient]
    return [*facts.get("problems", []), *said]


def judges_in_order(folder: ResultsFolder, judgements: pd.DataFrame) -> list[str]:
    """The judges of JUDGEMENT_COLUMNS, the one whose verdicts count first.

    That is the chosen one, then the gold reward, then people, then by quality: without a problem, the same winner in
    both orders, few unusable replies; by name where that does not tell them apart.
    """
    known, chosen = judge_facts(folder), _chosen(folder)
    judges = {str(judge) for judge in judgements["judge"].unique()}
    return sorted(judges, key=lambda judge: (judge != chosen, *_rank(judge, known.get(judge, {}))))


def _rank(judge: str, facts: Mapping[str, Any]) -> tuple[Any, ...]:
    """What sorts judges, the best first; a judge of single responses has no order to depend on."""
    kind = 0 if judge == ORACLE else 1 if judge.startswith(PEOPLE) else 2
    consistency = facts.get("position_consistency")
    steady = consistency if consistency is not None else float(facts.get("kind") == "pointwise")
    return kind, bool(problems_of(facts)), -steady, facts.get("invalid_share") or 0.0, judge


def choose(folder: ResultsFolder, judge: str | None) -> None:
    """Let one judge's verdicts count in this folder from now on, or with None the best one's again.

    Raises:
        UsageError: If no judge of that name judged there.
    """
    path = folder.root / CHOICE
    if judge is None:
        if path.is_file():
            durable.remove(path)
        return
    there = judges_in_order(folder, folder.judgements())
    if judge not in there:
        raise UsageError(f"{folder.root}: no judge {judge!r} judged there{did_you_mean(judge, there)}")
    write_json(path, seal({"judge": judge}))


def _chosen(folder: ResultsFolder) -> str | None:
    path = folder.root / CHOICE
    return str(folder.read_json(path).get("judge")) if path.is_file() else None
