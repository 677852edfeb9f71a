"""What a run logs: named rows that are the columns of the history on disk, fetched from the device when asked for."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from prefopt import make_loss
from prefopt.contract.examples import ordinary_pairs
from prefopt.contract.loss import PairLogps
from prefopt.storage.schema import HISTORY_COLUMNS
from prefopt.train.state import Means, Metrics, Pending, Run, batch_means, collect, latest


def batch() -> PairLogps:
    return ordinary_pairs(make_loss("dpo"))


def test_rows_have_the_columns_of_the_history() -> None:
    assert Metrics._fields == tuple(name.replace("/", "_") for name in HISTORY_COLUMNS)
    assert Means._fields == Metrics._fields[2:-2]
    run = Run("dpo", make_loss("dpo"), 1e-3, 0)
    run.pending.append(Pending(3, "train", batch_means(run.loss, batch()), 1e-4, torch.tensor(2.5)))
    assert latest([run]) == {"dpo": {}}
    collect(run)
    (row,) = run.history
    assert (row.step, row.split, row.learning_rate, row.grad_norm) == (3, "train", 1e-4, 2.5)
    assert row.loss == pytest.approx(float(run.loss(batch()).mean().detach()))
    assert row.logratio_margins == pytest.approx(float(batch().logratios().margin.mean().detach()))
    assert latest([run])["dpo"]["rewards/margins"] == row.rewards_margins
    assert pd.DataFrame(run.history, columns=list(HISTORY_COLUMNS))["grad_norm"].tolist() == [2.5]


def test_the_first_row_that_is_not_finite_is_where_a_run_diverged() -> None:
    run, means = Run("dpo", make_loss("dpo"), 1e-3, 0), batch_means(make_loss("dpo"), batch())
    broken = means.clone()
    broken[Means._fields.index("rewards_chosen")] = math.nan
    run.pending.append(Pending(0, "heldout", means))  # it has no gradient norm, which is no divergence
    run.pending.append(Pending(1, "train", means, 1e-3, torch.tensor(math.inf)))
    run.pending.append(Pending(2, "train", broken, 1e-3, torch.tensor(1.0)))
    assert run.n_logged == 3
    collect(run)
    assert (run.n_logged, run.pending, run.outcome.diverged_at) == (3, [], 1)
    assert [row.not_finite() for row in run.history] == [[], ["grad_norm"], ["rewards/chosen"]]
