"""Samples of policies while they train: reward, KL and length over steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from prefopt.config.schema import Evaluation
from prefopt.evaluate.samples import Prompts, draw_samples, sampled_together, score_samples
from prefopt.model.adapted import AdaptedModel
from prefopt.model.generate import Sample
from prefopt.storage.schema import SAMPLED_COLUMNS
from prefopt.tasks.base import Task
from prefopt.train.state import Run


@dataclass(eq=False)
class SampledOnTheWay:
    """Samples from a run's policy every so many steps, as its evaluation at the end does; training is not touched.

    Attributes:
        model: The base with the runs' adapters.
        prompts: What policies are asked.
        settings: How they are sampled from, and every how many steps.
        task: Gives the reward.
        seed: Of the sampling noise.
        steps: Of the whole training; the last one's samples are the evaluation itself.
        waiting: Samples by step and slot that were drawn in one batch with another policy's.
    """

    model: AdaptedModel
    prompts: Prompts
    settings: Evaluation
    task: Task
    seed: int
    steps: int
    waiting: dict[tuple[int, int], list[Sample]] = field(default_factory=dict)

    def __call__(self, run: Run) -> None:
        """Add the rows of this step to ``run.sampled``, where one is due."""
        step = run.counters.step
        if step % self.settings.every or step >= self.steps:
            return
        scores = score_samples(self.model, run.slot, self.prompts, self._samples(run.slot, step), self.task).scores
        rows: pd.DataFrame = scores.assign(step=step)[list(SAMPLED_COLUMNS)]
        run.sampled.extend(tuple(row) for row in rows.itertuples(index=False))

    def _samples(self, slot: int, step: int) -> list[Sample]:
        if (step, slot) not in self.waiting:
            together = sampled_together(self.model.adapters, slot)
            drawn = draw_samples(self.model, together, self.prompts, self.settings, seed=self.seed)
            self.waiting = {(step, other): samples for other, samples in drawn.items()}
        return self.waiting.pop((step, slot))
