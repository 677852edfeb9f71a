"""What a finished, diverged or failed run leaves in the results folder, and the gold reward's judgements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from prefopt.evaluate.samples import PolicySamples
from prefopt.judges.gold import oracle_judgements
from prefopt.model.adapters import AdapterBank
from prefopt.runtime import memory
from prefopt.runtime.progress import Progress
from prefopt.storage import durable
from prefopt.storage.formats import write_frame, write_json
from prefopt.storage.hashing import file_hashes, seal
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import HISTORY_COLUMNS, ORACLE, REFERENCE
from prefopt.train.state import Run

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose result it is: variant, seed, the run's key and its conditions."""

    variant: str
    seed: int
    key: dict[str, Any]
    conditions: dict[str, str]

    def record(self, **facts: Any) -> dict[str, Any]:
        """The content of ``run.json``."""
        whole = {"variant": self.variant, "seed": self.seed, "key": self.key, "conditions": self.conditions}
        return seal({**whole, "diverged_at": None, "reason": "", "files": {}, **facts})


def write_run(
    folder: ResultsFolder,
    origin: Origin,
    *,
    scored: PolicySamples | None,
    cost: dict[str, float],
    run: Run | None = None,
    pairs: pd.DataFrame | None = None,
    bank: AdapterBank | None = None,
) -> None:
    """Write one run's files, ``run.json`` last, then drop its checkpoints.

    Args:
        folder: The results folder.
        origin: Whose result it is.
        scored: Its samples; None for a run that diverged.
        cost: Seconds of sampling and evaluating.
        run: The trained run; None for the reference.
        pairs: Its held-out pairs; None for the reference and for a run that diverged.
        bank: Where its adapter is.
    """
    path = folder.run(origin.variant, origin.seed)
    files = []
    if scored is not None:
        write_frame(path / "scores.parquet", scored.scores)
        write_frame(path / "samples.parquet", scored.texts)
        files += ["scores.parquet", "samples.parquet"]
    if pairs is not None:
        write_frame(path / "pairs.parquet", pairs)
        files += ["pairs.parquet"]
    facts: dict[str, Any] = {"status": "complete", "diversity": scored.diversity if scored is not None else {}}
    if run is not None and bank is not None:
        write_frame(path / "history.csv", pd.DataFrame(run.history).reindex(columns=list(HISTORY_COLUMNS)))
        bank.save(run.slot, path / "adapter")
        files += ["history.csv", "adapter"]
        cost = {**cost, **_training_cost(run, bank)}
        facts |= {"loss": run.loss.spec(), "learning_rate": run.learning_rate, "steps": run.step, "reason": run.reason}
        facts |= {"diverged_at": run.diverged_at, "status": "complete" if run.diverged_at is None else "diverged"}
    write_json(path / "cost.json", seal(cost))
    write_json(path / "run.json", origin.record(**facts, files=dict(file_hashes(path, files))))
    drop_checkpoints(folder, origin.variant, origin.seed)


def _training_cost(run: Run, bank: AdapterBank) -> dict[str, float]:
    seconds = max(run.seconds, 1e-9)
    return {
        "train_s": run.seconds,
        "pairs": run.pairs,
        "tokens": run.tokens,
        "pairs_per_s": run.pairs / seconds,
        "tokens_per_s": run.tokens / seconds,
        "peak_memory_gib": memory.peak_gib(bank.params.device),
    }


def drop_checkpoints(folder: ResultsFolder, variant: str, seed: int) -> None:
    """Remove what a finished run no longer needs; a killed process may have left it."""
    path = folder.run(variant, seed) / CHECKPOINTS
    if path.is_dir():
        durable.remove(path)


def set_aside(folder: ResultsFolder, variant: str, seed: int, damage: str, progress: Progress) -> None:
    """Rename a finished run whose files are damaged, so that it is made anew; verdicts on it go first."""
    judged = folder.judgements(lacking=True)
    theirs = ((judged["variant"] == variant) | (judged["opponent"] == variant)) & (judged["seed"] == seed)
    if theirs.any():
        folder.write_frame("judgements.parquet", judged[~theirs].reset_index(drop=True))
    aside = durable.set_aside(folder.run(variant, seed))
    progress.say(f"run set aside as {aside}, and made again: {damage}")


def judge(folder: ResultsFolder) -> None:
    """Write the gold reward's judgements of every run that is there, beside those of other judges."""
    manifest = folder.manifest()
    before = folder.judgements(lacking=True)
    kept = before[before["judge"] != ORACLE]
    parts = [kept] if len(kept) else []
    if manifest["task"].get("reward"):
        done = [key for key, run in folder.runs().items() if run.get("status", "complete") == "complete"]
        planned = [str(entry["variant"]) for entry in manifest["variants"]]
        names = list(dict.fromkeys([*planned, *sorted({name for name, _ in done if name != REFERENCE})]))
        paths = {key: folder.run(*key) / "scores.parquet" for key in done}
        parts.append(oracle_judgements({key: pd.read_parquet(path) for key, path in paths.items()}, names))
    if parts:
        folder.write_frame("judgements.parquet", pd.concat(parts, ignore_index=True))
