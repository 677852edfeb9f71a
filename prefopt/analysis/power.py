"""The differences that a comparison of given size can detect, and the size that a difference needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefopt import stats
from prefopt.analysis.leading import judges_in_order
from prefopt.errors import UsageError
from prefopt.stats.power import MOST_SEEDS
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import REFERENCE

EFFECTS = (0.01, 0.02, 0.03, 0.05, 0.10)
ALPHA = 0.05
POWER = 0.8


@dataclass(frozen=True, slots=True)
class Origin:
    """Where variances were measured: results folder, judge, and how many variants, seeds and prompts there were."""

    source: str
    judge: str
    variants: int
    measured_seeds: int
    measured_prompts: int


@dataclass(frozen=True, slots=True)
class Effect:
    """What one difference needs.

    Attributes:
        difference: Distance of a win rate from one half.
        power: Chance in [0, 1] that the comparison detects it.
        seeds_needed: Seeds for a power of 80 % at the comparison's prompts; None beyond ``MOST_SEEDS``.
        prompts_needed: Prompts for it at the comparison's seeds; None where no number suffices.
    """

    difference: float
    power: float
    seeds_needed: int | None
    prompts_needed: int | None


@dataclass(frozen=True, slots=True)
class Power:
    """What a comparison of given size can detect.

    Attributes:
        seeds: Its seeds.
        prompts: Its evaluation prompts.
        tests: Comparisons of one family.
        alpha: Level of each test: that of the family over ``tests``.
        seed_sd: Standard deviation of win rates over seeds; the next two are over prompts, and of what is left.
        prompt_sd: Likewise.
        rest_sd: Likewise.
        minimum_detectable: The smallest distance of a win rate from one half with a power of 80 %.
        effects: What each difference needs.
    """

    seeds: int
    prompts: int
    tests: int
    alpha: float
    seed_sd: float
    prompt_sd: float
    rest_sd: float
    minimum_detectable: float
    effects: tuple[Effect, ...]

    def as_dict(self, origin: Origin | None = None) -> dict[str, Any]:
        """Plain values for JSON, with where the variances are from in front."""
        return {**(asdict(origin) if origin else {}), **asdict(self)}


def measured(root: Path) -> tuple[stats.Components, Origin]:
    """Variance components of win rates against the reference, averaged over a folder's variants.

    Raises:
        UsageError: If nothing there was judged, or no variant has two seeds to measure the spread over seeds with.
    """
    folder = ResultsFolder(root)
    folder.manifest()
    frame = folder.judgements()
    judge = next(iter(judges_in_order(folder, frame)), None)
    if judge is None:
        raise UsageError(f"{root}: holds no judgements to measure variances from; judge it first, or assume some")
    frame = frame[(frame["judge"] == judge) & (frame["opponent"] == REFERENCE) & (frame["n"] > 0)]
    parts, sizes = [], []
    for _, rows in frame.groupby("variant"):
        cells = stats.to_cells(rows["score"], rows["seed"], rows["prompt_id"])[0]
        if cells.shape[0] > 1 and cells.shape[1] > 1 and np.nanvar(cells) > 0:
            parts.append(stats.variance_components(cells))
            sizes.append(cells.shape)
    if not parts:
        raise UsageError(f"{root}: no variant has win rates at two seeds or more; assume variances with --seed-sd")
    mean = stats.Components(*(float(value) for value in np.mean(np.array(parts), axis=0)))
    seeds, prompts = (max(sizes) for sizes in zip(*sizes, strict=True))
    return mean, Origin(str(root), judge, len(parts), seeds, prompts)


def answer(
    components: stats.Components, *, seeds: int, prompts: int, tests: int = 1, effects: Sequence[float] = EFFECTS
) -> Power:
    """The power of this size, and the seeds and prompts that each difference needs.

    Args:
        components: Measured or assumed.
        seeds: Of the comparison.
        prompts: Of the comparison.
        tests: Comparisons of one family; the error rate is divided by it, as for the smallest p value in Holm's method.
        effects: Distances of a win rate from one half.

    Raises:
        UsageError: If a size or an effect is out of range.
    """
    if seeds < 1 or prompts < 2 or tests < 1 or not all(0 < effect < 0.5 for effect in effects):
        raise UsageError("prefopt power: needs a seed, 2 prompts, a test, and effects between 0 and 0.5")
    alpha = ALPHA / tests
    return Power(
        seeds=seeds,
        prompts=prompts,
        tests=tests,
        alpha=alpha,
        seed_sd=components.seed**0.5,
        prompt_sd=components.prompt**0.5,
        rest_sd=components.rest**0.5,
        minimum_detectable=stats.minimum_detectable_effect(
            components, seeds=seeds, prompts=prompts, alpha=alpha, power=POWER
        ),
        effects=tuple(
            Effect(
                difference=effect,
                power=float(stats.power(effect, components, seeds=seeds, prompts=prompts, alpha=alpha)),
                seeds_needed=stats.seeds_needed(effect, components, prompts=prompts, alpha=alpha),
                prompts_needed=stats.prompts_needed(effect, components, seeds=seeds, alpha=alpha),
            )
            for effect in effects
        ),
    )


def as_text(power: Power, origin: Origin | None = None) -> str:
    """The answer for people: a sentence, then a table."""
    sizes = f"{power.seeds} seed{'s' * (power.seeds > 1)} and {power.prompts} prompts"
    lines = [
        f"With {sizes}, a win rate {100 * power.minimum_detectable:.1f} points from one half is found with 80 % "
        f"power (two-sided, {100 * power.alpha:.2g} % level).",
        f"Standard deviations {f'measured in {origin.source}' if origin else 'assumed'}: seeds "
        f"{100 * power.seed_sd:.1f}, prompts {100 * power.prompt_sd:.1f}, the rest {100 * power.rest_sd:.1f} points.",
    ]
    if power.seeds == 1:
        lines.append("One seed speaks about one trained model; of the loss it says nothing.")
    lines += ["", f"{'difference':>12}{'power':>9}{'seeds needed':>15}{'prompts needed':>17}"]
    for effect in power.effects:
        seeds = effect.seeds_needed or f"> {MOST_SEEDS}"
        prompts = effect.prompts_needed or "none suffices"
        lines.append(f"{100 * effect.difference:>10.1f} p{100 * effect.power:>7.0f} %{seeds:>15}{prompts:>17}")
    lines += [
        "",
        f"Seeds needed: at {power.prompts} prompts. Prompts needed: at {power.seeds} seeds; more prompts cannot "
        "make up for seeds that differ.",
    ]
    return "\n".join(lines)
