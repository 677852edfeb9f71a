"""What a foreign loss may return: one statistic or several, and nothing of another shape."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps
from prefopt.train.foreign import Guarded, LossError, guarded


@dataclass(frozen=True)
class Averaged(Loss):
    """A loss that keeps averages of some shape."""

    source = "none"
    needs_reference = False
    length_normalized = False
    shape: tuple[int, ...] = ()

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        return ChosenRejected(logps.chosen, logps.rejected)

    def statistic(self, logps: PairLogps) -> torch.Tensor:
        return logps.chosen.mean().expand(self.shape)

    def __call__(self, logps: PairLogps) -> torch.Tensor:
        return -self.rewards(logps).margin


def pairs() -> PairLogps:
    values = torch.tensor([-1.0, -2.0, -3.0])
    return PairLogps(values, values - 1, torch.ones(3), torch.ones(3), None, None)


@pytest.mark.parametrize("shape", [(), (1,), (2,)])
def test_statistics_of_one_number_and_of_several(shape: tuple[int, ...]) -> None:
    loss = guarded(Averaged(shape))
    assert isinstance(loss, Guarded)
    value = loss.statistic(pairs())
    assert value is not None
    assert value.shape == shape
    assert (value == -2).all()
    assert loss(pairs()).tolist() == [-1.0, -1.0, -1.0]


def test_a_statistic_of_another_shape_is_refused() -> None:
    with pytest.raises(LossError, match=r"the statistic has shape \(2, 2\)"):
        guarded(Averaged((2, 2))).statistic(pairs())
