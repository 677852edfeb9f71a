"""A judge held against labels: how often it agrees with people, and how far position and length sway it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefopt import stats
from prefopt.data import load_pairs
from prefopt.data.plain import conversation_text
from prefopt.errors import DataError, UsageError
from prefopt.judges import make_judge
from prefopt.judges.cache import Cache
from prefopt.judges.contract import Floats, PairwiseJudge, PointwiseJudge, Shown
from prefopt.judges.controls import wilson
from prefopt.judges.imported import FileJudge
from prefopt.judges.judging import collect
from prefopt.judges.request import JudgeRequest
from prefopt.runtime.progress import Progress
from prefopt.storage.cache import cache_dir
from prefopt.tasks import load_task


@dataclass(frozen=True, slots=True)
class Labelled:
    """A comparison with a known verdict.

    Attributes:
        question: Its texts.
        label: How far the first one wins by the label: 1, 0, or between them.
    """

    question: Shown
    label: float


def check(request: JudgeRequest, path: Path, progress: Progress) -> dict[str, Any]:
    """Ask a judge about labelled pairs in both orders; nothing is written but the cache of verdicts.

    Args:
        request: Names the judge; ``prompts`` takes the first so many pairs.
        path: Preference pairs in any form that ``prefopt compare`` reads, whose chosen response is the label; or lines
            with prompt, a, b and verdict, as ``prefopt judge --questions`` writes them, filled in by people.
        progress: Told how many verdicts are in.

    Returns:
        What was found, by what it is called; shares from 0 to 1.

    Raises:
        PrefoptError: If the judge or the file cannot be had.
    """
    pairs = read_labelled(path)[: request.prompts]
    judge = make_judge(request, task=lambda: load_task("data"))
    connections = judge if isinstance(judge, AbstractContextManager) else nullcontext()
    with connections, closing(Cache(cache_dir() / "judgements.sqlite")) as cache:
        if isinstance(judge, PointwiseJudge):
            verdicts, errors = _by_scores(judge, pairs), Counter[str]()
        else:
            verdicts, errors = _by_verdicts(judge, pairs, cache, progress)
        return {"judge": judge.name, "labels": str(path), **agreement(pairs, *verdicts), "errors": dict(errors)}


def read_labelled(path: Path) -> list[Labelled]:
    """The labelled pairs of a file.

    Raises:
        PrefoptError: If it cannot be read, or holds no label.
    """
    if _has_verdicts(path):
        pairs = [Labelled(question, label) for question, label in FileJudge(path).labelled()]
    else:
        texts = (
            (conversation_text(part) for part in (p.prompt, p.chosen, p.rejected)) for p in load_pairs(str(path)).pairs
        )
        pairs = [Labelled(Shown(*three), 1.0) for three in texts]
    distinct = [pair for pair in pairs if pair.question.first != pair.question.second]
    if not distinct:
        raise DataError(f"{path}: holds no two different responses with a label to check a judge by")
    return distinct


def _has_verdicts(path: Path) -> bool:
    """Whether a file has lines with a verdict, rather than preference pairs."""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            first = json.loads(next((line for line in lines if line.strip()), ""))
    except (OSError, ValueError):  # not text, or no JSON in a line: left to the reader of pairs
        return False
    return isinstance(first, dict) and "verdict" in first


def _by_verdicts(
    judge: PairwiseJudge, pairs: Sequence[Labelled], cache: Cache, progress: Progress
) -> tuple[tuple[Floats, Floats], Counter[str]]:
    questions = [pair.question for pair in pairs]
    verdicts = collect(
        judge, list(dict.fromkeys(q for one in questions for q in (one, one.swapped()))), cache, progress
    )
    if not verdicts:
        raise UsageError(f"{judge.name}: knows none of these pairs")
    errors = Counter(verdict.error for verdict in verdicts.values() if verdict.error)

    def first(question: Shown) -> float:
        verdict = verdicts.get(question)
        return np.nan if verdict is None or verdict.first is None else verdict.first

    as_first = np.array([first(question) for question in questions], dtype=np.float64)
    as_second = np.array([1 - first(question.swapped()) for question in questions], dtype=np.float64)
    return (as_first, as_second), errors


def _by_scores(judge: PointwiseJudge, pairs: Sequence[Labelled]) -> tuple[Floats, Floats]:
    """A judge of single responses knows no order: both verdicts are the same."""
    prompts = [pair.question.prompt for pair in pairs]
    first, second = (
        judge.score(prompts, [getattr(pair.question, side) for pair in pairs]) for side in ("first", "second")
    )
    wins = np.asarray((np.sign(first - second) + 1) / 2, dtype=np.float64)
    return wins, wins


def agreement(pairs: Sequence[Labelled], as_first: Floats, as_second: Floats) -> dict[str, Any]:
    """How a judge's verdicts compare with labels.

    Args:
        pairs: (n,) labelled comparisons.
        as_first: (n,) how far each pair's first response won when it stood first; NaN where unusable.
        as_second: (n,) likewise when it stood second.

    Returns:
        Counts, and shares from 0 to 1: of labels that are no tie and were judged in both orders, how many the mean of
        both orders agrees with, a tie of the judge counting half, with its 95 % interval (Wilson); the same of always
        taking the longer response; how often both orders name one winner; the preference for what stands first; and the
        share of preferences for the longer response, of the judge and of the labels.
    """
    both = stats.both_orders(as_first, as_second)
    label = np.array([pair.label for pair in pairs])
    longer = np.array([np.sign(len(p.question.first) - len(p.question.second)) for p in pairs]) / 2 + 0.5
    usable = both.invalid == 0
    counted = usable & (label != 0.5)
    n = int(counted.sum())
    rate = _agrees(both.score[counted], label[counted])
    low, high = wilson(rate, n) if rate is not None else (None, None)
    lean = {
        "takes the longer one": _agrees(both.score[usable & (longer != 0.5)], longer[usable & (longer != 0.5)]),
        "labels take the longer one": _agrees(label[longer != 0.5], longer[longer != 0.5]),
    }
    return {
        "pairs": len(pairs),
        "ties among the labels": int((label == 0.5).sum()),
        "unusable": int((~usable).sum()),
        "compared": n,
        "agreement": rate,
        "agreement_low": low,
        "agreement_high": high,
        "agreement of the longer one": _agrees(longer[counted], label[counted]),
        "position_consistency": _number(both.consistency),
        "first_position": _number(both.first_position),
        **lean,
    }


def _agrees(scores: Floats, labels: Floats) -> float | None:
    """Share of scores on the same side of one half as the labels, half for those in the middle."""
    if not len(scores):
        return None
    return float(np.mean((np.sign(scores - 0.5) * np.sign(labels - 0.5) + 1) / 2))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def problems(record: dict[str, Any]) -> list[str]:
    """What a reader must know before they let this judge decide; empty where there is nothing."""
    said = []
    if record["agreement"] is None:
        said.append("nothing was judged in both orders")
    elif record["agreement_low"] <= 0.5:
        said.append(
            f"it agrees with {100 * record['agreement']:.0f} % of {record['compared']} labels, which chance may explain"
        )
    elif record["agreement"] <= record["agreement of the longer one"]:
        said.append("always taking the longer response agrees with the labels as often")
    if record["unusable"] > 0.05 * record["pairs"]:
        said.append(f"{record['unusable']} of {record['pairs']} pairs are unusable")
    return said
