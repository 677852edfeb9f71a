"""The contract between a preference loss and everything else.

A loss sees log-probabilities and lengths and returns one number a pair. It never sees a model, a batch
size or a device, so the same object serves training, evaluation and a test with a pencil.

Shapes: B pairs, T response tokens (padded).
"""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from prefopt.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


TokenField = Literal["logps", "log_collision", "ref_kl", "uniform"]


class OffScaleWarning(UserWarning):
    """A hyperparameter lies outside the range that its paper and its users take."""


def hyper(
    default: Any,
    within: str = "(-inf, inf)",
    *,
    paper: tuple[float, float] | None = None,
    choices: tuple[str, ...] = (),
    tries: tuple[str, ...] = (),
) -> Any:
    """A hyperparameter: a dataclass field that refuses values out of range and warns about those off the scale.

    Args:
        default: Its default, on the loss's own scale.
        within: The values it may take, as an interval: ``"(0, inf)"``, ``"[0, 0.5)"``.
        paper: Least and greatest value that the paper and its users take; outside there is an ``OffScaleWarning``.
        choices: The words it may take, for a hyperparameter that is not a number.
        tries: Other values that must change the loss, for a text that is free; ``check_loss`` tries them.
    """
    rule = {"within": within, "paper": paper, "choices": choices, "tries": tries}
    return dataclasses.field(default=default, metadata=rule)


def inside(value: float, interval: str) -> bool:
    """Whether ``value`` lies in an interval written as ``"[0, 0.5)"``; NaN lies in none.

    Example:
        >>> inside(0.0, "[0, 0.5)"), inside(0.5, "[0, 0.5)")
        (True, False)
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    below = value <= high if interval[-1] == "]" else value < high
    return above and below


class ChosenRejected(NamedTuple):
    """One value per response of each pair, (B,) and (B,)."""

    chosen: Tensor
    rejected: Tensor

    @property
    def margin(self) -> Tensor:
        """(B,) chosen minus rejected, in the units of the two."""
        return self.chosen - self.rejected


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Per-token values of one response of each pair: float32, 0 where ``mask`` is False.

    A field is None unless a loss of the group names it in ``Loss.token_fields``.

    Attributes:
        mask: (B, T) bool, True on response tokens; its row sums are the response lengths.
        logps: (B, T) log pi(y_t | x, y_<t) in nats. Carries gradient.
        ref_logps: (B, T) the same under the reference; comes with ``logps`` when a reference was scored.
        log_collision: (B, T) log sum_v pi(v | x, y_<t)^2 in nats. No gradient.
        ref_kl: (B, T) KL(pi_ref || pi) of the next-token distributions, in nats. Carries gradient.
        uniform: (B, T) counter-based noise in [0, 1), the same for every variant at a seed and step.
    """

    mask: Tensor
    logps: Tensor | None = None
    ref_logps: Tensor | None = None
    log_collision: Tensor | None = None
    ref_kl: Tensor | None = None
    uniform: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Log-probabilities of B preference pairs: float32, nats, summed over response tokens.

    Attributes:
        chosen: (B,) log pi(y_w | x). Carries gradient.
        rejected: (B,) log pi(y_l | x). Carries gradient.
        chosen_len: (B,) response tokens summed in ``chosen``, each >= 1.
        rejected_len: (B,) likewise.
        ref_chosen: (B,) log pi_ref(y_w | x), or None when no reference was scored.
        ref_rejected: (B,) likewise.
        chosen_score: (B,) preference strength of y_w as the data gives it, or None.
        rejected_score: (B,) likewise.
        chosen_tokens: per-token values of y_w, or None unless the loss asks for them.
        rejected_tokens: likewise.
        mismatched: (B, 2) log pi / pi_ref of the next pair's chosen and rejected response given this prompt, without
            gradient, or None unless the loss asks for it (KTO's estimate of the KL). Over the batch every one of the
            2B responses stands here once.
        running: () or (N,) the moving average of ``Loss.statistic`` over the steps so far, this one included,
            without gradient, or None for a loss that keeps none.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_len: Tensor
    rejected_len: Tensor
    ref_chosen: Tensor | None = None
    ref_rejected: Tensor | None = None
    chosen_score: Tensor | None = None
    rejected_score: Tensor | None = None
    chosen_tokens: TokenStats | None = None
    rejected_tokens: TokenStats | None = None
    mismatched: Tensor | None = None
    running: Tensor | None = None

    def per_token(self) -> PairLogps:
        """The same pairs with means over response tokens in place of sums, nats per token."""

        def mean(value: Tensor | None, length: Tensor) -> Tensor | None:
            return None if value is None else value / length

        return dataclasses.replace(
            self,
            chosen=self.chosen / self.chosen_len,
            rejected=self.rejected / self.rejected_len,
            ref_chosen=mean(self.ref_chosen, self.chosen_len),
            ref_rejected=mean(self.ref_rejected, self.rejected_len),
        )

    def logratios(self) -> ChosenRejected:
        """Log pi / pi_ref of both responses, (B,) each, in the units of the log-probabilities.

        Raises:
            ValueError: If no reference was scored.
        """
        if self.ref_chosen is None or self.ref_rejected is None:
            raise ValueError(
                "log-ratios need reference log-probabilities, and none were scored; "
                "a loss that calls logratios() must declare needs_reference = True"
            )
        return ChosenRejected(self.chosen - self.ref_chosen, self.rejected - self.ref_rejected)

    def scores(self) -> ChosenRejected:
        """The preference strengths that the data gives, (B,) each.

        Raises:
            DataError: If the data has none.
        """
        if self.chosen_score is None or self.rejected_score is None:
            raise DataError(
                "this loss needs a score for each response, and the data has none; "
                "give every row chosen_score and rejected_score, or drop the loss"
            )
        return ChosenRejected(self.chosen_score, self.rejected_score)


@dataclass(frozen=True)
class Loss(ABC):
    """A pairwise preference loss; its dataclass fields, each made with ``hyper``, are its hyperparameters.

    Class attributes say what the loss needs; ``prefopt.testing.check_loss`` checks each of them by behaviour.

    Attributes:
        name: The registry's name, set by ``@register``.
        source: Paper and equation.
        needs_reference: Whether it reads the reference log-probabilities.
        length_normalized: Whether it works on means over tokens, so that repeating every token changes nothing.
        batch_coupled: Whether one pair's loss depends on the other pairs of the optimizer batch. Such a loss is
            given the whole optimizer batch whatever the micro-batch.
        token_fields: The fields of ``TokenStats`` that it reads.
        needs_scores: Whether it reads ``chosen_score`` and ``rejected_score``.
        needs_mismatched: Whether it reads ``mismatched``.
        raises_margin: Whether its first step at policy = reference raises chosen and lowers rejected.
        stops_gradient: Whether it holds a part of itself constant under the gradient (a weight, an adaptive beta).
        lr_scale: Multiple of the comparison's learning rate that it trains with by default: its authors' rate over
            DPO's rate in the same setting, where they give one, with the source in the docstring.
        takes_groups: Whether it is a ``GroupLoss``, which trains on K responses of a prompt where there are as many.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    needs_reference: ClassVar[bool]
    length_normalized: ClassVar[bool]
    batch_coupled: ClassVar[bool] = False
    token_fields: ClassVar[frozenset[TokenField]] = frozenset()
    needs_scores: ClassVar[bool] = False
    needs_mismatched: ClassVar[bool] = False
    raises_margin: ClassVar[bool] = True
    stops_gradient: ClassVar[bool] = False
    lr_scale: ClassVar[float] = 1.0
    takes_groups: ClassVar[bool] = False

    def __post_init__(self) -> None:
        name = getattr(self, "name", type(self).__name__)
        for field in dataclasses.fields(self):
            value, rule = getattr(self, field.name), field.metadata
            if rule.get("choices") and value not in rule["choices"]:
                raise ValueError(f"{name}: {field.name} must be one of {', '.join(rule['choices'])}; got {value!r}")
            if isinstance(value, str) or not rule:
                continue
            if not inside(value, rule["within"]):
                raise ValueError(f"{name}: {field.name} must lie in {rule['within']}; got {value}")
            if rule["paper"] and not rule["paper"][0] <= value <= rule["paper"][1]:
                low, high = rule["paper"]
                usual = f"the paper and its users take {low:g} to {high:g}"
                told = f"{name}: {field.name} = {value:g} is off its scale; {usual}"
                warnings.warn(told, OffScaleWarning, stacklevel=3)

    @abstractmethod
    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """The implicit rewards, (B,) each, in the loss's own units."""

    @abstractmethod
    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) the loss of each pair; a step minimises its mean over the optimizer batch."""

    def statistic(self, logps: PairLogps) -> Tensor | None:
        """() or (N,) what this loss keeps a moving average of from step to step, or None.

        The average is ``running = decay * running + (1 - decay) * statistic`` with the loss's field ``decay``,
        starts at the first batch's value, and reaches the loss as ``logps.running``.
        """
        return None

    def spec(self) -> dict[str, Any]:
        """Name and hyperparameters as plain values: ``make_loss(loss.spec()) == loss``."""
        return {"loss": self.name, **dataclasses.asdict(self)}

    @property
    def label(self) -> str:
        """The name with the hyperparameters that differ from their defaults: ``simpo[beta=2.5]``."""
        changed = [
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return self.name + (f"[{','.join(changed)}]" if changed else "")
