"""Where the trials of a loss lie: the ranges it declares and one range of rates, filled by a scrambled Sobol sequence.

A trial is a pure function of loss and index, so trials run in any order, and more of them leave those before as they
are.
All losses share the sequence, and its first coordinate is the learning rate: all meet the same rates.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import qmc

from prefopt.config.schema import Config, Variant
from prefopt.contract.labels import RATE, parse_label, with_rate
from prefopt.contract.loss import Loss
from prefopt.contract.registry import loss_class, make_loss
from prefopt.errors import UsageError, did_you_mean
from prefopt.runtime.seeding import numpy_generator
from prefopt.stats.scales import value_at, word_at

COORDINATES = 32  # of the sequence, whatever a loss uses of them, so that the first is the same for every loss
DIGITS = 3  # of a value, so that a name says it whole
BELOW, ABOVE = 0.1, 10**0.5  # the rates that all losses meet, as multiples of the comparison's
UNTUNED = frozenset({"noop"})  # a zero gradient is the same at every setting
Ends = Sequence[float | int | str]


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting that is tuned.

    Attributes:
        name: The hyperparameter, or ``lr``.
        ends: Lowest and highest value, or the words.
        whole: Whether it takes whole numbers.
    """

    name: str
    ends: tuple[float | int | str, ...]
    whole: bool = False

    def at(self, u: float) -> float | int | str:
        """The value at place ``u`` of [0, 1), to three significant digits.

        Example:
            >>> Axis("beta", (0.01, 1.0)).at(0.25), Axis("tau", (2.0, 10.0)).at(0.25)
            (0.0316, 4.0)
            >>> Axis("divergence", ("js", "alpha", "forward_kl")).at(0.5)
            'alpha'
        """
        if isinstance(self.ends[0], str):
            return word_at(u, [str(word) for word in self.ends])
        low, high = (float(end) for end in self.ends)
        value = value_at(u, low, high)
        if self.whole:
            return round(value)
        return min(max(_rounded(value), low), high)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def axes(config: Config, variant: Variant) -> tuple[Axis, ...]:
    """What is tuned of a variant's loss, the rate first: all that its label leaves open and that has a range.

    Raises:
        UsageError: If a range is given for what has none, or lies outside what the loss takes.

    Example:
        >>> from prefopt.losses import DPO
        >>> config = Config(variants=(Variant(loss="cdpo[label_smoothing=0.2]"),))
        >>> [(axis.name, axis.ends) for axis in axes(config, config.variants[0])]
        [('lr', (0.00015, 0.00474)), ('beta', (0.01, 5))]
    """
    name, fixed = parse_label(variant.recipe.loss)
    loss = variant.build()
    if loss.name in UNTUNED:
        return ()
    custom = _custom(config, variant, loss)
    around = tuple(_rounded(factor * config.train.learning_rate) for factor in (BELOW, ABOVE))
    rates = custom.get(RATE) or config.tune.learning_rate or around
    open_axes = [] if variant.learning_rate is not None else [Axis(RATE, rates)]
    for field in dataclasses.fields(loss_class(name)):
        ends = custom.get(field.name) or field.metadata.get("paper") or field.metadata.get("choices")
        if field.name not in fixed and ends:
            open_axes.append(Axis(field.name, tuple(ends), isinstance(field.default, int)))
    if not open_axes:
        raise UsageError(f"{variant.name} leaves nothing to tune: name fewer settings in its label")
    return tuple(open_axes)


def _custom(config: Config, variant: Variant, loss: Loss) -> Mapping[str, tuple[float | int | str, ...]]:
    """The ranges that ``tune.ranges`` gives for a variant, checked."""
    ranges = config.tune.ranges.get(variant.name, config.tune.ranges.get(loss.name, {}))
    known = [RATE, *(field.name for field in dataclasses.fields(loss))]
    for name, ends in ranges.items():
        where = f"tune.ranges.{loss.name}.{name}"
        if name not in known:
            raise UsageError(f"{where}: {loss.name} has no setting {name}{did_you_mean(name, known)}")
        words = [end for end in ends if isinstance(end, str)]
        if not words and not (len(ends) == 2 and float(ends[0]) < float(ends[1])):
            raise UsageError(f"{where}: give the lowest and the highest value, such as [0.05, 0.5]; got {ends}")
        if not words and name == RATE and not 0 < float(ends[0]) < float(ends[1]) < 1:
            raise UsageError(f"{where}: a learning rate lies between 0 and 1; got {ends}")
        if words and (len(words) < len(ends) or len(set(words)) < len(words)):
            raise UsageError(f"{where}: give different words, or two numbers; got {ends}")
        for end in ends if name != RATE else ():
            make_loss({**loss.spec(), name: end})
    return {name: tuple(ends) for name, ends in ranges.items()}


@functools.cache
def _points(count: int) -> np.ndarray:
    """(count, COORDINATES) first points of the sequence, in [0, 1)."""
    sequence = qmc.Sobol(COORDINATES, scramble=True, rng=numpy_generator(0, "tuning"))
    return np.asarray(sequence.random_base2(max(0, (count - 1).bit_length()))[:count])


def point(index: int) -> np.ndarray:
    """(COORDINATES,) the place of trial ``index`` in [0, 1); trial 0 is the defaults and has none.

    Example:
        >>> point(1)[:3].round(6).tolist(), bool((point(3) == _points(64)[2]).all())
        ([0.475539, 0.070437, 0.586776], True)
    """
    return np.asarray(_points(index)[index - 1])


def trial(config: Config, variant: Variant, index: int) -> Variant:
    """One trial of a variant's loss: the variant itself for index 0, else a point of its space.

    Example:
        >>> config = Config(variants=(Variant(loss="dpo"), Variant(loss="simpo")))
        >>> [trial(config, variant, 2).name for variant in config.variants]
        ['dpo[beta=1.75,lr=0.00364]', 'simpo[beta=8.65,gamma_beta_ratio=0.193,lr=0.00364]']
    """
    family = variant.family or variant.name
    if index == 0:
        return variant.model_copy(update={"family": family})
    name, fixed = parse_label(variant.recipe.loss)
    values: dict[str, Any] = {
        axis.name: axis.at(u) for axis, u in zip(axes(config, variant), point(index), strict=False)
    }
    rate = values.pop(RATE, variant.learning_rate)
    loss = _built(name, fixed, values)
    suffix = variant.recipe.suffix
    changed = {
        "loss": loss.label + suffix,
        "label": with_rate(loss.label, rate) + suffix,
        "learning_rate": rate,
        "family": family,
    }
    return Variant.model_validate({**variant.model_dump(), **changed})


def _built(name: str, fixed: Mapping[str, Any], values: Mapping[str, Any]) -> Loss:
    """The loss at a point; a setting that another one makes idle, which the loss refuses, stays at its default."""
    try:
        return make_loss({"loss": name, **fixed, **values})
    except UsageError:
        for idle in values:
            with suppress(UsageError):
                return make_loss({"loss": name, **fixed, **{k: v for k, v in values.items() if k != idle}})
        raise


def trials(config: Config, variant: Variant, count: int) -> list[Variant]:
    """The first ``count`` trials of a variant's loss; one alone where there is nothing to tune.

    Raises:
        UsageError: If two of them are one setting: a range is narrower than three digits can tell apart.
    """
    if not axes(config, variant):
        return []
    every = [trial(config, variant, index) for index in range(count)]
    names = [one.name for one in every]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UsageError(f"{variant.name}: {twice} comes twice among {count} trials; widen the ranges or try fewer")
    return every
