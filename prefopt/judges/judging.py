"""Judge the samples of a finished comparison, again and by another judge, without training anything again.

Below ``results/<name>/judge/<judge>/`` it leaves ``verdicts.parquet`` (VERDICT_COLUMNS, a row for each comparison and
order; ``scores.parquet`` for judges of single responses), ``judge.json`` (what the report says about the judge: the
controls, position, unusable share) and ``unusable.jsonl`` (replies that were no verdict); and it puts the judge's rows
into ``judgements.parquet`` beside those of other judges.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefopt import stats
from prefopt.errors import UsageError
from prefopt.judges import Limits, controls, make_judge, parse_spec
from prefopt.judges.cache import Cache, key_of
from prefopt.judges.contract import PairwiseJudge, PointwiseJudge, Shown, Verdict, question_text
from prefopt.judges.imported import FileJudge
from prefopt.judges.quality import estimate_tokens, folder_name, problems, unusable_shares
from prefopt.judges.questions import CELL, Questions, questions, to_ask, write_questions
from prefopt.runtime.progress import Progress
from prefopt.storage.cache import cache_dir
from prefopt.storage.formats import write_frame, write_json, write_text
from prefopt.storage.hashing import seal
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import JUDGEMENT_COLUMNS, REFERENCE
from prefopt.tasks import load_task

# order: "ab" showed the variant first, "ba" the opponent; score: how far the variant won, 0 to 1, missing where the
# reply was unusable, for the reason in error; identical: both texts are one, a tie that nobody was asked about.
VERDICT_COLUMNS = (
    "variant",
    "opponent",
    "seed",
    "prompt_id",
    "sample",
    "order",
    "score",
    "error",
    "cached",
    "identical",
)


def missing(judge: PairwiseJudge, wanted: Iterable[Shown], cache: Cache) -> list[Shown]:
    """Those questions that the cache cannot answer."""
    keys = {question: _key(judge, question) for question in wanted}
    known = cache.get(keys.values())
    return [question for question, key in keys.items() if key not in known]


def judge_folder(
    folder: ResultsFolder,
    judge: PairwiseJudge | PointwiseJudge,
    asked: Questions,
    *,
    cache: Cache,
    pairs: str = "reference",
    progress: Progress,
) -> dict[str, Any]:
    """Judge, and write everything down.

    Args:
        folder: The comparison.
        judge: Who judges.
        asked: From ``questions`` of that folder.
        cache: Verdicts known before; new ones are added as they come in.
        pairs: As for ``questions``; judges of single responses compare every sample with every other.
        progress: Told how many verdicts are in.

    Returns:
        What ``judge.json`` holds.
    """
    place = folder.root / "judge" / folder_name(judge.name)
    if isinstance(judge, PointwiseJudge):
        frame, checks = _pointwise(judge, asked, pairs)
        write_frame(place / "scores.parquet", frame.pop("scores"))
        found: dict[str, Any] = {"kind": "pointwise", "position_consistency": None, "first_position": None}
        judgements = frame["judgements"]
    else:
        verdicts = _collect(judge, asked, cache, progress)
        table = _table(asked, verdicts)
        checks = [controls.row(name, _both(group, verdicts)) for name, group in _control_groups(judge, asked).items()]
        judgements = _judgements(judge.name, table)
        both = _both_orders(_by_order(table[~table["identical"]]))
        found = {
            "kind": "pairwise",
            "position_consistency": both.consistency if (both.invalid == 0).any() else None,
            "first_position": both.first_position if (both.invalid == 0).any() else None,
            "errors": dict(Counter(error for error in table["error"] if error).most_common(8)),
            "cached_share": float(table["cached"].mean()) if len(table) else None,
        }
        write_frame(place / "verdicts.parquet", table)
        unusable = [{"error": v.error, "reply": v.reply} for v in verdicts.values() if v.first is None]
        write_text(place / "unusable.jsonl", "".join(json.dumps(row) + "\n" for row in unusable))
    found |= {"judge": judge.name, "fingerprint": judge.fingerprint, "facts": judge.facts(), "pairs": pairs}
    found |= unusable_shares(judgements) | {"controls": [row.as_dict() for row in checks]}
    found["problems"] = problems(found)
    write_json(place / "judge.json", seal(found))
    merge_judgements(folder, judgements)
    return found


def _collect(judge: PairwiseJudge, asked: Questions, cache: Cache, progress: Progress) -> dict[Shown, Verdict]:
    """A verdict for every question in both orders, from the cache or asked and cached."""
    wanted = to_ask(asked, with_controls=not isinstance(judge, FileJudge))
    known = cache.get(_key(judge, question) for question in wanted)
    verdicts: dict[Shown, Verdict] = {}
    for question in wanted:
        if (key := _key(judge, question)) in known:
            verdicts[question] = Verdict(known[key], cached=True)
    new = [question for question in wanted if question not in verdicts]
    progress.stage(f"judging by {judge.name}", len(verdicts), len(wanted))
    for i, verdict in judge.ask(new):
        verdicts[new[i]] = verdict
        if verdict.first is not None:
            cache.put({_key(judge, new[i]): verdict.first})
        progress.stage(f"judging by {judge.name}", len(verdicts), len(wanted))
    return verdicts


def _key(judge: PairwiseJudge, question: Shown) -> str:
    return key_of(judge.fingerprint, question.prompt, question.first, question.second)


def _control_groups(judge: PairwiseJudge, asked: Questions) -> dict[str, list[Shown]]:
    return {} if isinstance(judge, FileJudge) else controls.questions(*asked.control_texts())


def _both(group: Sequence[Shown], verdicts: dict[Shown, Verdict]) -> np.ndarray:
    """(n,) how far each question's first text won over both orders, NaN where either is unusable."""
    nothing = Verdict(None)
    first = [verdicts.get(question, nothing).first for question in group]
    second = [verdicts.get(question.swapped(), nothing).first for question in group]
    pairs = zip(first, second, strict=True)
    return np.array([np.nan if a is None or b is None else (a + 1 - b) / 2 for a, b in pairs], dtype=np.float64)


def _table(asked: Questions, verdicts: dict[Shown, Verdict]) -> pd.DataFrame:
    """VERDICT_COLUMNS; comparisons that a file of verdicts does not hold are left out."""
    rows = []
    tie = Verdict(0.5)
    keys = asked.frame[[*CELL, "sample"]].itertuples(index=False, name=None)
    for key, question in zip(keys, asked.shown(), strict=True):
        for order, shown in (("ab", question), ("ba", question.swapped())):
            verdict = tie if question.first == question.second else verdicts.get(shown)
            if verdict is None:
                continue
            score = verdict.first
            if score is not None and order == "ba":
                score = 1 - score
            value = np.nan if score is None else score
            rows.append((*key, order, value, verdict.error, verdict.cached, question.first == question.second))
    frame = pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))
    return frame.astype({"seed": int, "score": float, "cached": bool, "identical": bool, "error": str})


def _by_order(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each comparison, its score in both orders as columns ab and ba."""
    return table.pivot(index=[*CELL, "sample"], columns="order", values="score").reindex(columns=["ab", "ba"])


def _both_orders(wide: pd.DataFrame) -> stats.BothOrders:
    return stats.both_orders(wide["ab"], wide["ba"])


def _judgements(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """JUDGEMENT_COLUMNS from verdicts; a comparison counts where both orders are usable, else it is unusable.

    One order alone would let a taste for a position through.
    """
    wide = _by_order(table)
    both = _both_orders(wide)
    wide = wide.reset_index()
    usable = both.invalid == 0
    wide["score"] = np.where(usable, both.score, np.nan)
    wide["ties"] = np.where(usable, (both.score == 0.5).astype(float), np.nan)
    wide["n"], wide["invalid"] = usable.astype(int), (~usable).astype(int)
    grouped = wide.groupby(CELL, as_index=False, sort=False)
    frame = grouped.agg(score=("score", "mean"), n=("n", "sum"), ties=("ties", "mean"), invalid=("invalid", "sum"))
    frame["judge"] = name
    return frame[list(JUDGEMENT_COLUMNS)]


def _pointwise(
    judge: PointwiseJudge, asked: Questions, pairs: str
) -> tuple[dict[str, pd.DataFrame], list[controls.ControlRow]]:
    """Scores of every sample, judgements from them, and the control rows."""
    from prefopt.judges.gold import oracle_judgements

    samples = asked.samples
    distinct = samples[["prompt", "response"]].drop_duplicates()
    distinct = distinct.assign(reward=judge.score(distinct["prompt"].tolist(), distinct["response"].tolist()))
    scored = samples.merge(distinct, on=["prompt", "response"])[["variant", "seed", "prompt_id", "sample", "reward"]]
    by_run = {(str(name), int(seed)): part for (name, seed), part in scored.groupby(["variant", "seed"])}
    judgements = oracle_judgements(by_run, asked.variants).assign(judge=judge.name)
    if pairs != "all":
        judgements = judgements[judgements["opponent"] == REFERENCE]
    rows = []
    for name, group in controls.questions(*asked.control_texts()).items():
        prompts = [question.prompt for question in group]
        one = judge.score(prompts, [question.first for question in group])
        two = judge.score(prompts, [question.second for question in group])
        rows.append(controls.row(name, (np.sign(one - two) + 1) / 2))
    return {"scores": scored.rename(columns={"reward": "score"}), "judgements": judgements}, rows


def merge_judgements(folder: ResultsFolder, judgements: pd.DataFrame) -> None:
    """Replace one judge's rows in ``judgements.parquet`` and keep all others."""
    before = folder.judgements()
    kept = before[~before["judge"].isin(judgements["judge"].unique())]
    merged = pd.concat([part for part in (kept, judgements) if len(part)] or [judgements], ignore_index=True)
    folder.write_frame("judgements.parquet", merged[list(JUDGEMENT_COLUMNS)])


def run(
    root: Path,
    spec: str,
    *,
    pairs: str,
    prompts: int | None,
    base_url: str,
    key_variable: str,
    limits: Limits,
    device: str,
    questions_file: Path | None,
    dry_run: bool,
    progress: Progress,
) -> dict[str, Any]:
    """The command ``prefopt judge``; arguments as there.

    Returns:
        What to print: what is known of the judge and where it was written, or the plan.

    Raises:
        PrefoptError: If the folder, the judge or the limits do not allow it.
    """
    if pairs not in ("reference", "all"):
        raise UsageError(f"--pairs {pairs}: write reference or all")
    folder = ResultsFolder(root)
    parse_spec(spec)
    asked = questions(folder, pairs=pairs, prompts=prompts)
    if questions_file is not None:
        write_text(questions_file, write_questions(asked))
        return {"questions": str(questions_file), "comparisons": len(asked.frame)}
    task = str(folder.manifest().task.get("name", "data"))
    judge = make_judge(
        spec,
        task=lambda: load_task(task, cache=cache_dir() / "tasks"),
        device=device,
        base_url=base_url,
        key_variable=key_variable,
        limits=limits,
    )
    cache = Cache(cache_dir() / "judgements.sqlite")
    try:
        plan = _plan(judge, asked, cache)
        if dry_run:
            return plan
        if limits.max_calls is not None and plan["calls"] > limits.max_calls:
            raise UsageError(
                f"judge {judge.name}: needs {plan['calls']} calls, and --max-calls allows {limits.max_calls}; "
                "raise it, or take fewer prompts with --prompts. Nothing was asked."
            )
        found = judge_folder(folder, judge, asked, cache=cache, pairs=pairs, progress=progress)
    finally:
        cache.close()
    rate = "; ".join(
        f"{row['control']} {'-' if row['win_rate'] is None else format(100 * row['win_rate'], '.0f') + ' %'}"
        for row in found["controls"]
    )
    shown = {"controls": rate or "not asked", "report": f"prefopt report {root}"}
    return {**{key: value for key, value in found.items() if key != "controls"}, **shown}


def _plan(judge: PairwiseJudge | PointwiseJudge, asked: Questions, cache: Cache) -> dict[str, Any]:
    """Calls and tokens that judging would take now."""
    plan: dict[str, Any] = {"judge": judge.name, "comparisons": len(asked.frame)}
    if isinstance(judge, PointwiseJudge):
        return plan | {"texts": len(asked.samples[["prompt", "response"]].drop_duplicates()), "calls": 0}
    if isinstance(judge, FileJudge):
        there = sum(judge.holds(question) for question in asked.shown() if question.first != question.second)
        return plan | {"comparisons in the file": there, "calls": 0}
    wanted = to_ask(asked)
    new = missing(judge, wanted, cache)
    tokens = estimate_tokens([question_text(question) for question in new])
    return plan | {"verdicts": len(wanted), "in the cache": len(wanted) - len(new), "calls": len(new), "tokens": tokens}
