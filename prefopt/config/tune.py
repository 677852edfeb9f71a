"""How the settings of each loss are chosen: how many trials, where they lie, and by what they are judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from prefopt.config.strict import Count, Seed, Strict

Criterion = Literal["auto", "reward", "win_rate", "accuracy"]


class Tune(Strict):
    """Equal budgets: the same number of trials for every loss, then the best setting of each against its defaults.

    Attributes:
        trials: Settings tried of each loss, its defaults first; 0 compares the variants as they are written.
        seeds: Of the trials; none of them is a seed of the comparison.
        criterion: What the best setting has most of, on validation prompts: mean gold ``reward``, ``win_rate`` over
            the reference, or ``accuracy`` on held-out pairs; ``auto`` is the reward where there is one, else the
            accuracy.
        max_kl: The best setting is sought among those whose KL to the reference is at most this, nats.
        prompts: Validation prompts; 0 for as many as ``evaluation.prompts``.
        learning_rate: Lowest and highest rate, which every loss meets; one decade below and half a decade above
            ``train.learning_rate`` where empty.
        ranges: Lowest and highest value, or the words, of a loss's settings, by loss: ``{dpo = {beta = [0.05, 0.5],
            lr = [1e-4, 1e-3]}}``. The ranges that the loss declares hold for the others.
    """

    trials: Count = 0
    seeds: tuple[Seed, ...] = (1000,)
    criterion: Criterion = "auto"
    max_kl: Annotated[float, Field(gt=0)] | None = None
    prompts: Count = 0
    learning_rate: tuple[float, ...] = ()
    ranges: dict[str, dict[str, list[float | int | str]]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _tuples(cls, value: Any) -> Any:
        """Lists, which is what TOML has, to the tuples that frozen models hold."""
        if isinstance(value, Mapping):
            return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Tune:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("tune.seeds: give at least one seed, and none twice")
        if self.learning_rate and not (len(self.learning_rate) == 2 and _rising(self.learning_rate)):
            raise ValueError("tune.learning_rate: give the lowest and the highest rate, such as [1e-4, 3e-3]")
        return self


def _rising(rates: tuple[float, ...]) -> bool:
    return 0 < rates[0] < rates[1] < 1
