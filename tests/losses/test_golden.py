"""One value of each loss, worked out with a pencil.

Two pairs, in nats and tokens (s = log pi, h = log pi/pi_ref, a = log pi per token):

            log pi       log pi_ref    h        length    a            h per token
    pair 1  -10, -14     -12, -13      2, -1    5, 4      -2, -3.5     0.4, -0.25
    pair 2   -9, -10     -10, -12      1,  2    3, 5      -3, -2       1/3, 0.4
"""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch
from golden import GOLDEN, PAIRS, TOKENS, nls, t

from prefopt import PairLogps, loss_names, make_loss


@pytest.mark.parametrize("label", GOLDEN)
def test_value(label: str) -> None:
    loss = make_loss(label)
    value = loss(TOKENS if loss.token_fields else PAIRS)[0]
    assert value.item() == pytest.approx(GOLDEN[label], rel=1e-12, abs=1e-15)


def test_every_loss_has_a_golden_value() -> None:
    assert {label.partition("[")[0] for label in GOLDEN} == set(loss_names())


def test_at_least_thirty_five_losses() -> None:
    assert len(loss_names()) >= 35


SECOND: dict[str, float] = {
    # Pair 2: h = (1, 2), D = -1; the terms that are silent on pair 1.
    "aot": nls(0.01 * (1 - 1)),
    "aot_unpaired": nls(0.01 * (1 + 1)),
    "slic": 0 + 0.9,
    "r_dpo": nls(-0.1 + 0.05 * (3 - 5)),
    "odpo": nls(-0.1 - log(1)),
    "alphapo[alpha=0.0]": nls(2.5 * (-3 + 2) - 0.1),
    "chipo[r_max=1.0,beta=1.0]": nls(-2),  # e + 1 - e^2 - 2 = -5.67, clipped at -2
}


@pytest.mark.parametrize("label", SECOND)
def test_value_of_the_second_pair(label: str) -> None:
    assert make_loss(label)(PAIRS)[1].item() == pytest.approx(SECOND[label], rel=1e-12)


def test_dpop_charges_for_a_fall_of_the_chosen() -> None:
    fallen = PairLogps(t(-13), t(-13), t(5), t(5), t(-12), t(-12))  # h = -1, -1
    assert make_loss("dpop")(fallen).item() == pytest.approx(nls(0.1 * (0 - 5 * 1)))


def test_beta_dpo_gives_nothing_to_the_pairs_it_drops() -> None:
    assert make_loss("beta_dpo", keep=0.5)(PAIRS)[1].item() == 0


def test_without_a_history_the_batch_is_its_own() -> None:
    alone = replace(PAIRS, running=None)
    shift = 0.01 * (2 - 1 + 1 + 2) / 4
    assert make_loss("bco")(alone)[0].item() == pytest.approx(nls(0.02 - shift) + nls(0.01 + shift))
    assert make_loss("beta_dpo")(alone)[0].item() == pytest.approx(nls(0.1 * 3))


def test_ms_swift_table_at_a_margin_of_six() -> None:
    # The values that a fix of Megatron-SWIFT's DPO (ms-swift#10167) lists: margin 6, beta 0.1.
    six = PairLogps(t(6), t(0), t(1), t(1), t(0), t(0))
    assert make_loss("dpo")(six).item() == pytest.approx(0.437488, abs=1e-6)
    assert make_loss("hinge", beta=0.1)(six).item() == pytest.approx(0.4)
    assert make_loss("ipo", tau=0.1)(six).item() == pytest.approx(1.0)


START = {
    "dpo": log(2), "rdpo": log(2), "cdpo": log(2), "dpo_norm": log(2), "hinge": 1, "ipo": 1, "ipo_sum": 25,
    "kto": 0.5, "bco": 2 * log(2), "nca": 2 * log(2), "apo_zero": 1, "apo_down": 1, "gpo": 1, "sppo": 2 * 500**2,
    "dr_dpo": log(2), "aot": log(2), "fdpo": log(2), "chipo": log(2), "discopop": (log(2) + 1) / 2,
}  # fmt: skip


@pytest.mark.parametrize("name", START)
def test_value_at_the_start(name: str) -> None:
    zero = PairLogps(t(-7), t(-9), t(5), t(4), t(-7), t(-9), mismatched=t(0))
    assert make_loss(name)(zero).item() == pytest.approx(START[name])


def test_kto_weighs_rejected_responses_in_z_too() -> None:
    # z = max(0, (10 + 20 - 30 - 40) / 4) = 0; over the chosen alone it would be 15, and the loss .4769.
    pair = PairLogps(t(2), t(-1), t(1), t(1), t(0), t(0), mismatched=torch.stack([t(10, 20), t(-30, -40)], dim=1))
    assert make_loss("kto")(pair).item() == pytest.approx(0.4626, abs=5e-5)
