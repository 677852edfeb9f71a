"""The trials of a tuned comparison, read from its folder ``tuning``: each with its score, and the best of each loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefopt import stats
from prefopt.analysis.load import Comparison, Scores, load
from prefopt.analysis.policies import Cells, number
from prefopt.analysis.sentences import run_outcome
from prefopt.errors import UsageError
from prefopt.storage.schema import ORACLE, REFERENCE, TUNING

CRITERIA = {"reward": "mean gold reward", "win_rate": "win rate over the reference", "accuracy": "held-out accuracy"}


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting of a loss, as it was tried.

    Attributes:
        variant: Its name, which rebuilds it.
        family: The loss that it is a setting of.
        index: Its place in the sequence; 0 is the defaults.
        settings: Every hyperparameter, and ``lr``.
        outcome: ``complete``, or what became of the first run that is not.
        scores: (S, P) of the criterion by tuning seed and validation prompt; None where a run has no result.
        kl: Mean KL to the reference, nats.
    """

    variant: str
    family: str
    index: int
    settings: Mapping[str, Any]
    outcome: str
    scores: np.ndarray | None
    kl: float | None

    @property
    def score(self) -> float | None:
        """Mean over seeds and prompts, larger is better; None for a trial that was spent without a result."""
        return None if self.scores is None else number(np.nanmean(self.scores))


@dataclass(frozen=True)
class Tuning:
    """All trials of a comparison.

    Attributes:
        comparison: The folder of the trials.
        criterion: A key of ``CRITERIA``.
        max_kl: Bound on the winner's KL, nats, or None.
        families: The trials of each loss, by index.
    """

    comparison: Comparison
    criterion: str
    max_kl: float | None
    families: Mapping[str, Sequence[Trial]]

    def best(self, family: str) -> Trial | None:
        """The winner among a loss's trials, or None where none has a result within the bound on the KL."""
        return best(self.families[family], self.max_kl)


def best(trials: Sequence[Trial], max_kl: float | None) -> Trial | None:
    """The trial of the largest score among those within ``max_kl``; of equal ones the first."""
    known = [trial for trial in trials if trial.score is not None]
    inside = [trial for trial in known if max_kl is None or (trial.kl is not None and trial.kl <= max_kl)]
    return max(inside, key=lambda trial: (trial.score, -trial.index), default=None)


def read(root: Path) -> Tuning | None:
    """The trials below a comparison's folder, or None where there are none.

    Raises:
        UsageError: If the folder is damaged, no trial has a result, or the criterion cannot be told from them.
    """
    if not (root / TUNING / "manifest.json").is_file():
        return None
    comparison = load(root / TUNING)
    settings = comparison.manifest.config.get("tune", {})
    criterion = _criterion(comparison, settings.get("criterion", "auto"))
    cells, judged = Cells(comparison.scores), _judged(comparison)
    families: dict[str, list[Trial]] = {}
    described = {str(facts["variant"]): facts for facts in comparison.manifest.variants}
    for name in comparison.variants:
        facts = described[name]
        family = str(facts["family"])
        of_family = families.setdefault(family, [])
        complete = comparison.is_complete(name)
        kl = cells.get(name, "kl", comparison.seeds) if complete else None
        trial = Trial(
            name,
            family,
            len(of_family),
            {**{key: value for key, value in facts["spec"].items() if key != "loss"}, "lr": facts["learning_rate"]},
            _outcome(comparison, name),
            _scores(comparison, cells, judged, name, criterion) if complete else None,
            None if kl is None else number(np.nanmean(kl)),
        )
        of_family.append(trial)
    return Tuning(comparison, criterion, settings.get("max_kl"), families)


def _criterion(comparison: Comparison, wanted: str) -> str:
    rewarded = bool(comparison.manifest.task.get("reward"))
    if wanted == "auto":
        return "reward" if rewarded else "accuracy"
    if wanted != "accuracy" and not rewarded:
        raise UsageError(f"{comparison.root}: tune.criterion {wanted} needs a reward, and there is none; take accuracy")
    return wanted


def _judged(comparison: Comparison) -> Scores | None:
    rows = comparison.judgements[comparison.judgements["judge"] == ORACLE]
    return Scores(rows) if len(rows) else None


def _outcome(comparison: Comparison, name: str) -> str:
    for seed in comparison.seeds:
        if (status := comparison.status(name, seed)) != "complete":
            return run_outcome(status, comparison.runs.get((name, seed)))
    return "complete"


def _scores(
    comparison: Comparison, cells: Cells, judged: Scores | None, name: str, criterion: str
) -> np.ndarray | None:
    if criterion == "reward":
        return cells.get(name, "reward", comparison.seeds)
    if criterion == "win_rate":
        return None if judged is None else judged.get(name, REFERENCE)
    return pair_accuracies(comparison, name)


def pair_accuracies(comparison: Comparison, name: str) -> np.ndarray:
    """(S, P) share of held-out pairs that a variant's log-ratio orders rightly, by seed and prompt."""
    own = comparison.pairs[comparison.pairs["variant"] == name]
    margin = (own["logps_chosen"] - own["ref_logps_chosen"]) - (own["logps_rejected"] - own["ref_logps_rejected"])
    table, _, _ = stats.to_cells(stats.accuracies(margin), own["seed"], own["prompt_id"])
    return np.asarray(table)
