"""A results folder as the runs that a tracker is sent: settings, metrics by step, and what came of each.

Names of metrics are TRL's, ``loss``, ``rewards/margins`` and so on; those of held-out pairs begin with ``eval_``, and
what the trained policy came to with ``final/``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from prefopt.judges.gold import oracle_judgements
from prefopt.launch.trackers import ID, TrackedRun, Value
from prefopt.storage.hashing import digest
from prefopt.storage.records import Manifest, RunRecord
from prefopt.storage.redact import portable
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import HISTORY_COLUMNS, REFERENCE

METRICS = tuple(name for name in HISTORY_COLUMNS if name not in ("step", "split"))
# Of the report's leaderboard, each with an interval; its reward is the gain over the reference.
MEASURES = {
    "win_rate": "win_rate",
    "reward": "reward_gain",
    "kl": "kl",
    "accuracy": "accuracy",
    "length": "length_ratio",
}


@dataclass(frozen=True, slots=True)
class Finished:
    """What a tracker is to have, read only if it has it not.

    Attributes:
        name: Such as ``dpo/seed-0``, or ``dpo/final``.
        content: A hash of all that it is made of.
        load: Reads it.
    """

    name: str
    content: str
    load: Callable[[], TrackedRun]


def finished(folder: ResultsFolder, *, ending: bool) -> Iterator[Finished]:
    """The runs of a folder that have numbers, then, at the end, each variant's line of the report's leaderboard.

    Args:
        folder: The results folder.
        ending: Nothing more will finish, and the report is written.
    """
    if not folder.manifest_path.is_file():
        return
    manifest, records = folder.manifest(), folder.runs()
    for (variant, seed), record in sorted(records.items(), key=lambda item: (item[0][1], item[0][0])):
        reference = records.get((REFERENCE, seed))
        if variant != REFERENCE and record.has_numbers and (ending or reference is not None):
            content = digest([record.as_dict(), reference.as_dict() if reference else None])
            yield Finished(f"{variant}/seed-{seed}", content, partial(_trained, folder, manifest, record))
    report = folder.root / "results.json"
    if ending and report.is_file():
        for row in json.loads(report.read_text(encoding="utf-8"))["leaderboard"]:
            yield Finished(f"{row['variant']}/final", digest(row), partial(_final, folder, manifest, row))


def _trained(folder: ResultsFolder, manifest: Manifest, record: RunRecord) -> TrackedRun:
    """One run with its whole history; what its policy came to stands at the last step."""
    history = dict(by_step(pd.read_csv(folder.run(record.variant, record.seed) / "history.csv")))
    last = max(history, default=0)
    steps = {**history, last: {**history.get(last, {}), **_outcome(folder, manifest, record)}}
    own = {
        "seed": record.seed,
        "status": record.status,
        "diverged_at": record.diverged_at,
        "reason": record.reason or None,
        "steps": record.steps,
        "learning_rate": record.learning_rate,
        "loss": record.loss.get("loss"),
        "hyperparameters": {name: value for name, value in record.loss.items() if name != "loss"},
    }
    return _tracked(folder, manifest, f"{record.variant}/seed-{record.seed}", own, steps)


def _final(folder: ResultsFolder, manifest: Manifest, row: Mapping[str, Any]) -> TrackedRun:
    """A variant's line of the report's final table, so that a tracker's own table of runs shows it."""
    values = {}
    for measure, name in MEASURES.items():
        interval = row.get(measure) or {}
        ends = {name: interval.get("value"), f"{name}_low": interval.get("low"), f"{name}_high": interval.get("high")}
        values.update({f"final/{key}": float(value) for key, value in ends.items() if value is not None})
    own = {key: row.get(key) for key in ("verdict", "broken", "rank", "seeds", "learning_rate", "hyperparameters")}
    return _tracked(folder, manifest, f"{row['variant']}/final", own, {None: values})


def _tracked(
    folder: ResultsFolder,
    manifest: Manifest,
    name: str,
    own: Mapping[str, Any],
    steps: Mapping[int, Mapping[str, float]] | Mapping[None, Mapping[str, float]],
) -> TrackedRun:
    """A run under its name, with what is its own and what all runs of the comparison have in common."""
    variant = name.partition("/")[0]
    run_id = digest([manifest.name, manifest.created, name])
    shared = {key: value for key, value in manifest.config.items() if key not in ("seeds", "variants", "track")}
    about = {
        ID: run_id,
        "variant": variant,
        "report": portable(str((folder.root / "report.html").resolve())),
        "prefopt_version": manifest.prefopt_version,
        "commit": manifest.commit or None,
        "model_hash": manifest.model.get("hash"),
    }
    settings = {**flat(shared), **flat(own), **flat(about)}
    return TrackedRun(project=manifest.name, name=name, group=variant, id=run_id, settings=settings, steps=steps)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Nested settings under dotted names; a list as JSON, and what is not set left out."""
    plain: dict[str, Value] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            plain |= flat(item, f"{name}.")
        elif isinstance(item, list | tuple):
            plain[name] = json.dumps(item)
        elif item is not None:
            plain[name] = item
    return plain


def by_step(history: pd.DataFrame) -> Iterator[tuple[int, dict[str, float]]]:
    """The metrics of each step in order, those of held-out pairs as ``eval_...``; empty cells are left out."""
    for step, rows in history.groupby("step", sort=True):
        values = {}
        for row in rows.to_dict("records"):
            prefix = "eval_" if row["split"] == "heldout" else ""
            values.update({f"{prefix}{name}": float(row[name]) for name in METRICS if pd.notna(row[name])})
        yield int(step), values


def _outcome(folder: ResultsFolder, manifest: Manifest, record: RunRecord) -> dict[str, float]:
    """What a complete run's policy came to: gold reward, KL (nats), tokens, and win rate over the seed's reference."""
    if not record.is_complete:
        return {}
    keys = ((record.variant, record.seed), (REFERENCE, record.seed))
    places = {key: folder.run(*key) / "scores.parquet" for key in keys}
    scores = {key: pd.read_parquet(path) for key, path in places.items() if path.is_file()}
    own = scores[keys[0]]
    values = {"reward": own["reward"].mean(), "kl": own["kl"].mean(), "tokens": own["n_tokens"].mean()}
    if manifest.task.get("reward") and len(scores) == 2:
        values["win_rate"] = oracle_judgements(scores, [record.variant])["score"].mean()
    return {f"final/{name}": float(value) for name, value in values.items() if pd.notna(value)}
