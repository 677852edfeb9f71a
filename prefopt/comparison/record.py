"""What a finished, diverged or failed run leaves in the results folder, and the gold reward's judgements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from prefopt.evaluate.samples import PolicySamples
from prefopt.judges.gold import oracle_judgements
from prefopt.model.adapted import AdaptedModel
from prefopt.model.adapters import AdapterBank
from prefopt.runtime import memory
from prefopt.runtime.progress import Progress
from prefopt.storage import durable
from prefopt.storage.conditions import Conditions
from prefopt.storage.formats import write_frame, write_json
from prefopt.storage.hashing import file_hashes, seal
from prefopt.storage.records import RunRecord
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import BEST_OF, HISTORY_COLUMNS, ORACLE, REFERENCE, SAMPLED_COLUMNS
from prefopt.train.state import Run

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose result it is: variant, seed, the run's key and its conditions."""

    variant: str
    seed: int
    key: dict[str, Any]
    conditions: Conditions

    def record(self, **facts: Any) -> RunRecord:
        """The record of this run; facts as there."""
        return RunRecord(variant=self.variant, seed=self.seed, key=self.key, conditions=self.conditions, **facts)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of evaluating one policy.

    Attributes:
        samples: Its samples and their scores.
        pairs: Its held-out pairs; None for the reference.
        cost: Seconds of sampling and of evaluating.
        neutral: Log-probabilities of plain sentences; empty for the reference.
    """

    samples: PolicySamples
    pairs: pd.DataFrame | None
    cost: dict[str, float]
    neutral: Mapping[str, Sequence[float]]


def write_reference(
    folder: ResultsFolder, origin: Origin, evaluation: Evaluation, best_of: pd.DataFrame | None
) -> None:
    """Write the result of evaluating the reference policy.

    Args:
        folder: The results folder.
        origin: Which seed's.
        evaluation: What its evaluation gave.
        best_of: The samples of which the best is taken, or None.
    """
    path = folder.run(origin.variant, origin.seed)
    files = _write_evaluation(path, evaluation)
    if best_of is not None:
        write_frame(path / BEST_OF, best_of)
        files.append(BEST_OF)
    _finish(folder, origin.record(diversity=evaluation.samples.diversity), files, evaluation.cost)


def write_run(
    folder: ResultsFolder, origin: Origin, run: Run, model: AdaptedModel, evaluation: Evaluation | None
) -> None:
    """Write one trained run's files, its record last, then drop its checkpoints.

    Args:
        folder: The results folder.
        origin: Whose result it is.
        run: The trained run.
        model: Has its adapter, and the tokenizer that lies beside it.
        evaluation: What its evaluation gave; None for a run that diverged.
    """
    path = folder.run(origin.variant, origin.seed)
    files = _write_evaluation(path, evaluation) if evaluation is not None else []
    write_frame(path / "history.csv", pd.DataFrame(run.history, columns=list(HISTORY_COLUMNS)))
    if run.sampled:
        write_frame(path / "sampled.parquet", pd.DataFrame(run.sampled, columns=list(SAMPLED_COLUMNS)))
        files.append("sampled.parquet")
    model.adapters.save(run.slot, path / "adapter", model.base.tokenizer)
    record = origin.record(
        status="complete" if run.outcome.diverged_at is None else "diverged",
        diverged_at=run.outcome.diverged_at,
        reason=run.outcome.reason,
        loss=run.loss.spec(),
        learning_rate=run.learning_rate,
        steps=run.counters.step,
        diversity=evaluation.samples.diversity if evaluation is not None else {},
        neutral=evaluation.neutral if evaluation is not None else {},
    )
    cost = {**(evaluation.cost if evaluation is not None else {}), **_training_cost(run, model.adapters)}
    _finish(folder, record, [*files, "history.csv", "adapter"], cost)


def _write_evaluation(path: Path, evaluation: Evaluation) -> list[str]:
    """Write an evaluation's tables; their names."""
    tables = {"scores.parquet": evaluation.samples.scores, "samples.parquet": evaluation.samples.texts}
    if evaluation.pairs is not None:
        tables["pairs.parquet"] = evaluation.pairs
    for name, frame in tables.items():
        write_frame(path / name, frame)
    return list(tables)


def _finish(folder: ResultsFolder, record: RunRecord, files: Sequence[str], cost: Mapping[str, float]) -> None:
    """Write what a run has cost and, last, its record; then drop its checkpoints."""
    path = folder.run(record.variant, record.seed)
    write_json(path / "cost.json", seal(cost))
    folder.write_record(replace(record, files=dict(file_hashes(path, files))))
    drop_checkpoints(folder, record.variant, record.seed)


def _training_cost(run: Run, bank: AdapterBank) -> dict[str, float]:
    spent = run.counters
    seconds = max(spent.seconds, 1e-9)
    return {
        "train_s": spent.seconds,
        "pairs": spent.pairs,
        "tokens": spent.tokens,
        "pairs_per_s": spent.pairs / seconds,
        "tokens_per_s": spent.tokens / seconds,
        "peak_memory_gib": memory.peak_gib(bank.params.device),
    }


def drop_checkpoints(folder: ResultsFolder, variant: str, seed: int) -> None:
    """Remove a finished run's checkpoints, which a killed process may have left."""
    path = folder.run(variant, seed) / CHECKPOINTS
    if path.is_dir():
        durable.remove(path)


def set_aside(folder: ResultsFolder, variant: str, seed: int, damage: str, progress: Progress) -> None:
    """Rename a finished run whose files are damaged, so that it is made anew; verdicts on it go first."""
    judgements = folder.judgements(may_be_missing=True)
    of_run = ((judgements["variant"] == variant) | (judgements["opponent"] == variant)) & (judgements["seed"] == seed)
    if of_run.any():
        folder.write_frame("judgements.parquet", judgements[~of_run].reset_index(drop=True))
    aside = durable.set_aside(folder.run(variant, seed))
    progress.say(f"run set aside as {aside}, and made again: {damage}")


def judge(folder: ResultsFolder) -> None:
    """Write the gold reward's judgements of every complete run, beside those of other judges."""
    manifest = folder.manifest()
    before = folder.judgements(may_be_missing=True)
    kept = before[before["judge"] != ORACLE]
    parts = [kept] if len(kept) else []
    if manifest.task.get("reward"):
        complete = [key for key, run in folder.runs().items() if run.is_complete]
        others = sorted({name for name, _ in complete if name != REFERENCE})
        names = list(dict.fromkeys([*manifest.variant_names, *others]))
        paths = {key: folder.run(*key) / "scores.parquet" for key in complete}
        parts.append(oracle_judgements({key: pd.read_parquet(path) for key, path in paths.items()}, names))
    if parts:
        folder.write_frame("judgements.parquet", pd.concat(parts, ignore_index=True))
