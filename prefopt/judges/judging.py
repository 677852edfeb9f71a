"""Judge the samples of a finished comparison, again and by another judge, without training anything again.

Below ``results/<name>/judge/<judge>/`` it leaves ``verdicts.parquet`` (VERDICT_COLUMNS, a row for each comparison and
order; ``scores.parquet`` for judges of single responses), ``judge.json`` (what the report says about the judge: the
controls, position, unusable share) and ``unusable.jsonl`` (replies that were no verdict); and it puts the judge's rows
into ``judgements.parquet`` beside those of other judges.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefopt.errors import UsageError
from prefopt.judges import controls, make_judge
from prefopt.judges.cache import Cache, key_of
from prefopt.judges.contract import PairwiseJudge, PointwiseJudge, Shown, Verdict, question_text
from prefopt.judges.endpoint import EndpointJudge
from prefopt.judges.imported import FileJudge
from prefopt.judges.quality import estimate_tokens, folder_name, problems, unusable_shares
from prefopt.judges.questions import Questions, questions, to_ask, write_questions
from prefopt.judges.request import JudgeRequest
from prefopt.judges.tables import first_wins, judgements, position, verdict_table
from prefopt.runtime.progress import Progress
from prefopt.storage.cache import cache_dir, require_writable
from prefopt.storage.durable import write_bytes
from prefopt.storage.formats import write_frame, write_json, write_text
from prefopt.storage.hashing import seal
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import JUDGEMENT_COLUMNS, ORACLE, REFERENCE
from prefopt.tasks import load_task
from prefopt.tasks.base import DataTask, Task
from prefopt.tasks.rewards import RewardedTask

Judge = PairwiseJudge | PointwiseJudge


@dataclass(frozen=True, slots=True)
class Plan:
    """The calls and tokens that a judging would take now.

    Attributes:
        judge: Its name.
        comparisons: Pairs of samples that are compared.
        facts: More counts by what they count, as the kind of judge has them.
        calls: Questions that the judge would have to be asked.
    """

    judge: str
    comparisons: int
    facts: dict[str, int]
    calls: int


@dataclass(frozen=True, slots=True)
class Findings:
    """One judge's verdicts and what is known of the judge, before they are written.

    Attributes:
        facts: The part of ``judge.json`` that depends on the kind of judge.
        judgements: JUDGEMENT_COLUMNS.
        controls: Outcomes of the controls; empty where the judge cannot be asked any.
        tables: Frames by the name of their file.
        unusable: Replies that were no verdict, and why; None for a judge that does not reply in words.
    """

    facts: dict[str, Any]
    judgements: pd.DataFrame
    controls: list[controls.ControlRow]
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    unusable: list[dict[str, str]] | None = None


def run(request: JudgeRequest, progress: Progress) -> dict[str, Any]:
    """Judge, and write everything down.

    Returns:
        What ``judge.json`` holds.

    Raises:
        PrefoptError: If the folder, the judge or the limits do not allow it.
    """
    with _opened(request) as (folder, comparisons, judge, cache):
        calls, allowed = _plan(judge, comparisons, cache).calls, request.limits.max_calls
        if allowed is not None and calls > allowed:
            raise UsageError(
                f"judge {judge.name}: needs {calls} calls, and --max-calls allows {allowed}; "
                "raise it, or take fewer prompts with --prompts. Nothing was asked."
            )
        return judge_folder(folder, judge, comparisons, cache=cache, pairs=request.pairs, progress=progress)


def plan(request: JudgeRequest) -> Plan:
    """What ``run`` would take now; no question is asked, and nothing is written.

    Raises:
        PrefoptError: If the folder or the judge does not allow it.
    """
    with _opened(request) as (_, comparisons, judge, cache):
        return _plan(judge, comparisons, cache)


def write_blank(request: JudgeRequest, path: Path, sample: int | None = None) -> int:
    """Write the comparisons as JSONL for people or other tools to fill in; how many lines there are.

    Args:
        request: Names the folder and the comparisons.
        path: The file to write.
        sample: So many of them, drawn evenly; all without.

    Raises:
        PrefoptError: If the folder has nothing to judge, or the file cannot be written.
    """
    comparisons = questions(ResultsFolder(request.root), pairs=request.pairs, prompts=request.prompts)
    text = write_questions(comparisons, sample)
    write_bytes(path, text.encode("utf-8"))  # verdicts are looked up by these very texts
    return text.count("\n")


@contextmanager
def _opened(request: JudgeRequest) -> Iterator[tuple[ResultsFolder, Questions, Judge, Cache]]:
    """The folder, its comparisons, the judge and the cache of a request; judge and cache are closed at the end."""
    folder = ResultsFolder(request.root)
    comparisons = questions(folder, pairs=request.pairs, prompts=request.prompts)
    judge = make_judge(request, task=lambda: _task(folder, request.device))
    connections = judge if isinstance(judge, AbstractContextManager) else nullcontext()
    with connections, closing(Cache(require_writable() / "judgements.sqlite")) as cache:
        yield folder, comparisons, judge, cache


def _task(folder: ResultsFolder, device: str) -> Task:
    """The task of a finished comparison, with the reward that evaluated it."""
    manifest = folder.manifest()
    settings = manifest.config.get("task", {})
    cache = cache_dir() / "tasks"
    name = str(manifest.task.get("name", "data"))
    task = DataTask() if name == "prompts" else load_task(name, cache=cache)
    if not settings.get("reward"):
        return task
    from prefopt.judges.rewards import make_reward
    from prefopt.runtime.device import pick_device

    reward = make_reward(settings["reward"], device=pick_device(device), cache=cache, seconds=settings["reward_s"])
    reward.probe()
    return RewardedTask(task, reward)


def _plan(judge: Judge, comparisons: Questions, cache: Cache) -> Plan:
    count = len(comparisons.frame)
    if isinstance(judge, PointwiseJudge):
        texts = comparisons.samples[["prompt", "response"]].drop_duplicates()
        return Plan(judge.name, count, {"texts": len(texts)}, 0)
    if isinstance(judge, FileJudge):
        judge.require_any(comparisons.shown())
        there = sum(judge.holds(question) for question in comparisons.shown() if question.first != question.second)
        return Plan(judge.name, count, {"comparisons in the file": there}, 0)
    wanted = to_ask(comparisons)
    keys = {question: _key(judge, question) for question in wanted}
    known = cache.get(keys.values())
    new = [question for question, key in keys.items() if key not in known]
    tokens = estimate_tokens([question_text(question) for question in new])
    facts = {"verdicts": len(wanted), "in the cache": len(wanted) - len(new), "tokens": tokens}
    return Plan(judge.name, count, facts, len(new))


def judge_folder(
    folder: ResultsFolder,
    judge: Judge,
    comparisons: Questions,
    *,
    cache: Cache,
    pairs: str = "reference",
    progress: Progress,
) -> dict[str, Any]:
    """Judge, and write everything down.

    Args:
        folder: The comparison.
        judge: Who judges.
        comparisons: From ``questions`` of that folder.
        cache: Verdicts known before; new ones are added as they come in.
        pairs: As for ``questions``; judges of single responses compare every sample with every other.
        progress: Told how many verdicts are in.

    Returns:
        What ``judge.json`` holds.
    """
    if isinstance(judge, PointwiseJudge):
        findings = _by_scores(judge, comparisons, pairs)
    else:
        findings = _by_verdicts(judge, comparisons, cache, progress)
    record = {
        **findings.facts,
        "judge": judge.name,
        "fingerprint": judge.fingerprint,
        "facts": judge.facts(),
        "pairs": pairs,
        **unusable_shares(findings.judgements),
        "controls": [row.as_dict() for row in findings.controls],
    }
    record["problems"] = problems(record)
    _write(folder, judge.name, findings, record)
    return record


def _by_verdicts(judge: PairwiseJudge, comparisons: Questions, cache: Cache, progress: Progress) -> Findings:
    """What a judge of two responses says."""
    if isinstance(judge, FileJudge):
        judge.require_any(comparisons.shown())
    wanted = to_ask(comparisons, with_controls=not isinstance(judge, FileJudge))
    verdicts = collect(judge, wanted, cache, progress)
    table = verdict_table(comparisons, verdicts)
    consistency, first_position = position(table)
    groups = {} if isinstance(judge, FileJudge) else controls.questions(*comparisons.control_texts())
    return Findings(
        facts={
            "kind": "pairwise",
            "position_consistency": consistency,
            "first_position": first_position,
            "errors": dict(Counter(error for error in table["error"] if error).most_common(8)),
            "cached_share": float(table["cached"].mean()) if len(table) else None,
        },
        judgements=judgements(judge.name, table),
        controls=[controls.row(name, first_wins(group, verdicts)) for name, group in groups.items()],
        tables={"verdicts.parquet": table},
        unusable=[{"error": v.error, "reply": v.reply} for v in verdicts.values() if v.first is None],
    )


def collect(judge: PairwiseJudge, wanted: Sequence[Shown], cache: Cache, progress: Progress) -> dict[Shown, Verdict]:
    """A verdict for every question as it is shown, from the cache or asked and cached."""
    known = cache.get(_key(judge, question) for question in wanted)
    verdicts: dict[Shown, Verdict] = {}
    for question in wanted:
        if (key := _key(judge, question)) in known:
            verdicts[question] = Verdict(known[key], cached=True)
    new = [question for question in wanted if question not in verdicts]
    progress.stage(f"judging by {judge.name}", len(verdicts), len(wanted))

    def keep(question: Shown, verdict: Verdict) -> None:
        if verdict.first is not None:
            cache.put({_key(judge, question): verdict.first})

    if isinstance(judge, EndpointJudge):
        judge.keep = keep  # as replies come in, several at once
    for i, verdict in judge.ask(new):
        if not isinstance(judge, EndpointJudge):
            keep(new[i], verdict)
        verdicts[new[i]] = verdict
        progress.stage(f"judging by {judge.name}", len(verdicts), len(wanted))
    return verdicts


def _key(judge: PairwiseJudge, question: Shown) -> str:
    return key_of(judge.fingerprint, question.prompt, question.first, question.second)


def _by_scores(judge: PointwiseJudge, comparisons: Questions, pairs: str) -> Findings:
    """What a judge of single responses says: its scores of every sample, and who wins by them."""
    from prefopt.judges.gold import oracle_judgements

    samples = comparisons.samples
    distinct = samples[["prompt", "response"]].drop_duplicates()
    distinct = distinct.assign(reward=judge.score(distinct["prompt"].tolist(), distinct["response"].tolist()))
    scored = samples.merge(distinct, on=["prompt", "response"])[["variant", "seed", "prompt_id", "sample", "reward"]]
    by_run = {(str(name), int(seed)): part for (name, seed), part in scored.groupby(["variant", "seed"])}
    rows = oracle_judgements(by_run, comparisons.variants).assign(judge=judge.name)
    if pairs != "all":
        rows = rows[rows["opponent"] == REFERENCE]
    # The gold reward is what wins by definition: there is no right answer that it could miss.
    groups = {} if judge.name == ORACLE else controls.questions(*comparisons.control_texts())
    return Findings(
        facts={"kind": "pointwise", "position_consistency": None, "first_position": None},
        judgements=rows,
        controls=[controls.row(name, _wins_by_score(judge, group)) for name, group in groups.items()],
        tables={"scores.parquet": scored.rename(columns={"reward": "score"})},
    )


def _wins_by_score(judge: PointwiseJudge, group: Sequence[Shown]) -> np.ndarray:
    """(n,) 1 where the first text scores higher, 0 where the second does, 1/2 where they are equal."""
    prompts = [question.prompt for question in group]
    first = judge.score(prompts, [question.first for question in group])
    second = judge.score(prompts, [question.second for question in group])
    return np.asarray((np.sign(first - second) + 1) / 2)


def _write(folder: ResultsFolder, judge: str, findings: Findings, record: dict[str, Any]) -> None:
    """The judge's own folder, and its rows beside those of other judges."""
    place = folder.root / "judge" / folder_name(judge)
    for name, table in findings.tables.items():
        write_frame(place / name, table)
    if findings.unusable is not None:
        write_text(place / "unusable.jsonl", "".join(json.dumps(row) + "\n" for row in findings.unusable))
    write_json(place / "judge.json", seal(record))
    merge_judgements(folder, findings.judgements)


def merge_judgements(folder: ResultsFolder, rows: pd.DataFrame) -> None:
    """Replace one judge's rows in ``judgements.parquet`` and keep all others."""
    before = folder.judgements()
    kept = before[~before["judge"].isin(rows["judge"].unique())]
    merged = pd.concat([part for part in (kept, rows) if len(part)] or [rows], ignore_index=True)
    folder.write_frame("judgements.parquet", merged[list(JUDGEMENT_COLUMNS)])
