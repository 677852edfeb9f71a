"""Trials of every loss on validation prompts, then winners and defaults anew on test prompts and fresh seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefopt.analysis.trials import CRITERIA, Trial, Tuning, read
from prefopt.comparison.dry_run import time_in_all
from prefopt.comparison.resume import refuse_other_settings
from prefopt.config.schema import Config, Variant
from prefopt.config.situation import lora_rate
from prefopt.errors import UsageError
from prefopt.model.source import local_folder, parameters_of
from prefopt.runtime.progress import Progress
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import TUNING
from prefopt.tuning.space import axes, trials

NEVER = 1_000_000_000  # steps
RunConfig = Callable[[Config, Path], ResultsFolder]


def tune(config: Config, results: Path, run: RunConfig, progress: Progress) -> Config:
    """Run the trials that are missing, and say what is to be compared then.

    Args:
        config: The comparison, with ``tune.trials`` > 0; its variants are the losses, and what their labels set stays.
        results: The folder of all comparisons.
        run: Runs a comparison below a folder.
        progress: Hears what was chosen.

    Returns:
        The comparison of every loss's defaults and winner, at fresh seeds and on test prompts.

    Raises:
        UsageError: If the losses leave nothing to tune, or the folder holds another comparison.
    """
    whole = settled(config)
    root = results / config.name
    refuse_other_settings(ResultsFolder(root), whole)
    run(of_trials(whole), root)
    tuning = read(root)
    assert tuning is not None
    for line in chosen(tuning):
        progress.say(line)
    return of_winners(whole, tuning)


def settled(config: Config) -> Config:
    """The configuration with prompts set apart, and with every range that is searched written out.

    Raises:
        UsageError: If a criterion asks for a reward that there is none of.
    """
    config = _with_rate(config)
    tuning = config.tune
    if tuning.criterion in ("reward", "win_rate") and config.task.name == "data" and not config.task.reward:
        raise UsageError(
            f"tune.criterion is {tuning.criterion}, and your own pairs bring no reward: take accuracy, which is how "
            "often held-out pairs are ordered rightly, and not the quality of samples"
        )
    families = [
        variant.model_copy(update={"family": variant.family or variant.name, "label": variant.name})
        for variant in config.variants
    ]
    ranges = {v.family: {axis.name: list(axis.ends) for axis in axes(config, v)} for v in families}
    if not any(ranges.values()):
        raise UsageError("no loss has anything to tune; name one that trains")
    apart = tuning.prompts or config.evaluation.prompts
    return _changed(
        config,
        variants=[variant.model_dump() for variant in families],
        evaluation={**config.evaluation.model_dump(exclude_unset=True), "validation_prompts": apart, "part": "test"},
        tune={**tuning.model_dump(), "ranges": {name: ends for name, ends in ranges.items() if ends}},
    )


def of_trials(config: Config) -> Config:
    """The comparison of all trials of a settled configuration: tuning seeds, validation prompts, few evaluations."""
    every = [one for variant in config.variants for one in trials(config, variant, config.tune.trials)]
    return _changed(
        config,
        name=TUNING,
        seeds=config.tune.seeds,
        variants=[variant.model_dump() for variant in every],
        evaluation={**config.evaluation.model_dump(exclude_unset=True), "part": "validation"},
        train={**config.train.model_dump(exclude_unset=True), "eval_every": _seldom(config)},
    )


def _seldom(config: Config) -> int:
    """Steps between held-out evaluations that leave those at the beginning and at the end alone."""
    return NEVER if "train.steps" in config.open_settings else config.train.steps


def _with_rate(config: Config) -> Config:
    """The configuration with the learning rate of the situation as a given one: ranges lie around it."""
    if "train.learning_rate" not in config.open_settings:
        return config
    rate = lora_rate(parameters_of(Path(local_folder(config.model.name))))
    return _changed(config, train={**config.train.model_dump(exclude_unset=True), "learning_rate": rate})


def of_winners(config: Config, tuning: Tuning) -> Config:
    """Every loss at its defaults and at its best; those that are not tuned as they are."""
    variants: list[Variant] = []
    for default in config.variants:
        variants.append(default)
        winner = tuning.best(default.family) if default.family in tuning.families else None
        if winner is not None and winner.index > 0:
            variants.append(next(v for v in trials(config, default, config.tune.trials) if v.name == winner.variant))
    return _changed(config, variants=[variant.model_dump() for variant in variants])


def with_trials(config: Config, plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan of a comparison as it is with its trials, and with a winner beside every loss's defaults."""
    whole = settled(config)
    tried, seeds = of_trials(whole), len(config.seeds)
    losses = len({variant.family for variant in tried.variants})
    n_trials, n_runs = len(tried.variants) * len(tried.seeds), (len(config.variants) + losses) * seeds
    before = len(config.variants) * seeds
    share = whole.evaluation.validation_prompts / whole.evaluation.prompts
    train, ask = (n_trials + n_runs) / before, (n_trials * share + n_runs) / before
    factors = {"time to train, s": train, "time to sample, s": ask, "time to score, s": ask, "sampled tokens": ask}
    scaled = {key: round(value * factors[key]) if key in factors else value for key, value in plan.items()}
    return {
        **scaled,
        "time in all": time_in_all(scaled),
        "runs": n_runs,
        "trials": f"{config.tune.trials} of each of {losses} losses, {n_trials} runs",
    }


def chosen(tuning: Tuning) -> list[str]:
    """A line for each loss: what its trials came to."""
    return [_chosen(tuning, family, tried) for family, tried in tuning.families.items()]


def _chosen(tuning: Tuning, family: str, tried: Sequence[Trial]) -> str:
    winner = tuning.best(family)
    lost = sum(trial.score is None for trial in tried)
    spent = f"{len(tried)} trials" + (f", {lost} without a result" if lost else "")
    by = CRITERIA[tuning.criterion] + (f" within {tuning.max_kl:g} nats" if tuning.max_kl is not None else "")
    if winner is None:
        return f"{family}: none of {spent} has a {by}; its defaults are compared alone"
    name = "its defaults" if winner.index == 0 else winner.variant
    return f"{family}: best of {spent} by {by}: {name}, {winner.score:.3f} on validation prompts"


def _changed(config: Config, **values: Any) -> Config:
    """The configuration with some sections replaced, validated anew."""
    return Config.model_validate({**config.model_dump(exclude_unset=True), **values})
