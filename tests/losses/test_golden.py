"""One value of each loss, worked out with a pencil.

Two pairs, in nats and tokens (s = log pi, h = log pi/pi_ref, a = log pi per token):

            log pi       log pi_ref    h        length    a            h per token
    pair 1  -10, -14     -12, -13      2, -1    5, 4      -2, -3.5     0.4, -0.25
    pair 2   -9, -10     -10, -12      1,  2    3, 5      -3, -2       1/3, 0.4
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, log, sqrt

import pytest
import torch
from golden import GOLDEN, PAIRS, TOKENS, batch_of, drawn, nls, t

from prefopt import PairLogps, TokenStats, loss_names, make_loss, register
from prefopt.config.schema import Config
from prefopt.errors import UsageError
from prefopt.losses import SFT


@pytest.mark.filterwarnings("ignore::prefopt.OffScaleWarning")
@pytest.mark.parametrize("label", GOLDEN)
def test_value(label: str) -> None:
    loss = make_loss(label)
    value = loss(batch_of(loss))[0]
    assert value.item() == pytest.approx(GOLDEN[label], rel=1e-12, abs=1e-15)


def test_every_loss_has_a_golden_value() -> None:
    assert {label.partition("[")[0] for label in GOLDEN} == set(loss_names())


def test_at_least_fifty_two_losses() -> None:
    assert len(loss_names()) >= 52


SECOND: dict[str, float] = {
    # Pair 2: h = (1, 2), D = -1; the terms that are silent on pair 1.
    "aot": nls(0.01 * (1 - 1)),
    "aot_unpaired": nls(0.01 * (1 + 1)),
    "slic": 0 + 0.9,
    "r_dpo": nls(-0.1 + 0.05 * (3 - 5)),
    "odpo": nls(-0.1 - log(1)),
    "alphapo[alpha=0.0]": nls(2.5 * (-3 + 2) - 0.1),
    "chipo[r_max=1.0,beta=1.0]": nls(-2),  # e + 1 - e^2 - 2 = -5.67, clipped at -2
    "minor_dpo": nls(0.1 - 0.2),
    "bpo": nls(-0.3 * 0.2),
    "dpo_shift": nls(0.1 - 0.75 * 0.2),
    "h_dpo": nls(0.1 * (0.95 * 1 - 2)),
    "simper": exp(-2) - exp(-3),
    "c2_dpo": nls(-0.1) + 2e-4 * 9,
}


@pytest.mark.parametrize("label", SECOND)
def test_value_of_the_second_pair(label: str) -> None:
    assert make_loss(label)(PAIRS)[1].item() == pytest.approx(SECOND[label], rel=1e-12)


def test_dpop_charges_for_a_fall_of_the_chosen() -> None:
    fallen = PairLogps(t(-13), t(-13), t(5), t(5), t(-12), t(-12))  # h = -1, -1
    assert make_loss("dpop")(fallen).item() == pytest.approx(nls(0.1 * (0 - 50 * 1)))
    pair = PairLogps(t(-1), t(-3), t(1), t(1), t(0), t(0))
    assert make_loss("dpop")(pair).item() == pytest.approx(4.808, abs=5e-4)
    assert make_loss("dpop", lam=5.0)(pair).item() == pytest.approx(0.854, abs=5e-4)


def test_beta_dpo_gives_nothing_to_the_pairs_it_drops() -> None:
    assert make_loss("beta_dpo", keep=0.5)(PAIRS)[1].item() == 0


def test_beta_dpo_draws_a_far_pair_now_and_then() -> None:
    # Log weights -1/32 and -9/32, Gumbel noise -0.83 and 2.25: the farther gap, -1, is drawn; beta' ends at its floor.
    value = make_loss("beta_dpo")(drawn(0.1, 0.9))
    assert value.tolist() == pytest.approx([0, 2 * nls(-0.001)])
    source = torch.Generator().manual_seed(0)
    noise = torch.rand(4000, 2, generator=source, dtype=torch.float64)
    far = sum(make_loss("beta_dpo")(drawn(*pair))[1].item() > 0 for pair in noise.tolist()) / 4000
    assert far == pytest.approx(exp(-9 / 32) / (exp(-1 / 32) + exp(-9 / 32)), abs=0.02)


def test_without_a_history_the_batch_is_its_own() -> None:
    alone = replace(PAIRS, running=None)
    shift = 0.01 * (2 - 1 + 1 + 2) / 4
    assert make_loss("bco")(alone)[0].item() == pytest.approx(nls(0.02 - shift) + nls(0.01 + shift))
    assert make_loss("beta_dpo", keep=1.0)(alone)[0].item() == pytest.approx(nls(0.1 * 3))
    assert make_loss("beta_dpo")(alone)[0].item() == pytest.approx(2 * nls(0.22 * 3))
    # Gaps per token 0.65 and -1/15: mean 7/24, and each half the spread away, 1/sqrt(2) standard deviations.
    assert make_loss("alpha_dpo")(alone)[0].item() == pytest.approx(nls(2.5 * (1.5 - 0.6 - 0.2 / sqrt(2))))


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


@pytest.mark.parametrize(("count", "kept"), [(16, 12), (32, 25), (1, 1)])
def test_beta_dpo_keeps_as_many_pairs_as_its_authors(count: int, kept: int) -> None:
    zero, one = torch.zeros(count), torch.ones(count)
    gaps = torch.linspace(-1, 1, count)
    value = make_loss("beta_dpo")(PairLogps(gaps, zero, one, one, zero, zero))
    assert int((value > 0).sum()) == kept


def confident(p: float) -> PairLogps:
    """A pair at policy = reference, every token of probability p and the rest spread thin."""
    logps = torch.full((1, 4), log(p), dtype=torch.float64)
    tokens = TokenStats(torch.ones(1, 4, dtype=torch.bool), logps, logps, log_collision=2 * logps)
    total = logps.sum(1)
    return PairLogps(total, total, t(4), t(4), total, total, chosen_tokens=tokens, rejected_tokens=tokens)


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_wpo_s_weight_stops_at_one(p: float) -> None:
    # Without the stop: 2.773 and .856.
    assert make_loss("wpo")(confident(p)).item() == pytest.approx(log(2))


def test_tdpo_s_rewards_are_its_authors() -> None:
    for name in ("tdpo", "tdpo1"):
        rewards = make_loss(name).rewards(TOKENS)
        assert (rewards.chosen.item(), rewards.rejected.item()) == pytest.approx((0.4, 0.5)), name
    # tdpo1's loss is the logistic of that margin, so the logged accuracy and the loss agree.
    assert make_loss("tdpo1")(TOKENS).item() == pytest.approx(nls(0.4 - 0.5))


def test_sppo_soft_between_its_ends() -> None:
    h = PairLogps(t(2), t(-1), t(1), t(1), t(0), t(0), chosen_score=t(50), rejected_score=t(0))
    assert make_loss("sppo_soft")(h).item() == pytest.approx(make_loss("sppo")(h).item()) == 497005
    even = replace(h, chosen_score=t(0))
    assert make_loss("sppo_soft")(even).item() == pytest.approx(2**2 + 1**2)


def test_the_square_of_gpo_is_ipo_sum() -> None:
    tau = 0.25
    square = (2 * tau * PAIRS.logratios().margin - 1).square()
    torch.testing.assert_close(square, 4 * tau**2 * make_loss("ipo_sum", tau=tau)(PAIRS))


def test_losses_that_are_dpo_at_the_end_of_a_range() -> None:
    dpo = make_loss("dpo")(PAIRS)
    for label in (
        "dpo_shift[lam=1.0]",
        "h_dpo[alpha=1.0]",
        "c2_dpo[lam=0.0]",
        "mpo[w_p=1.0,w_q=0.0,w_g=0.0]",
        "mix[1*dpo]",
    ):
        torch.testing.assert_close(make_loss(label)(PAIRS), dpo, msg=label)
    torch.testing.assert_close(
        make_loss("alpha_dpo[alpha=0.0]")(replace(PAIRS, running=None)),
        make_loss("simpo[beta=2.5,gamma_beta_ratio=0.6]")(PAIRS),
    )


def test_asft_at_beta_one_is_its_closed_form() -> None:
    value = make_loss("asft")(PAIRS)[0].item()
    assert value == pytest.approx(2 + 2 - log(1 - exp(-3.5)))


@pytest.mark.parametrize("distance", ["bwd_kl", "fwd_kl", "sq"])
def test_rpo_reward_is_zero_where_the_gaps_agree(distance: str) -> None:
    agreed = PairLogps(t(5), t(-15), t(1), t(1), t(0), t(0), chosen_score=t(3), rejected_score=t(1))
    assert make_loss("rpo_reward", distance=distance)(agreed).item() == pytest.approx(0, abs=1e-12)


def test_irpo_is_another_name_of_rpo() -> None:
    assert make_loss("irpo[beta=0.2]") == make_loss("rpo[beta=0.2]")
    assert make_loss("irpo").spec()["loss"] == "rpo"
    assert "irpo" not in loss_names()


@pytest.mark.parametrize(("name", "aliases"), [("irpo", ()), ("mine", ("dpo",)), ("mine", ("irpo",))])
def test_a_name_that_an_alias_has_is_taken(name: str, aliases: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"is taken by prefopt\.losses"):
        register(name, aliases=aliases)(dataclass(frozen=True)(type("Mine", (SFT,), {"__annotations__": {}})))


def test_a_loss_trains_at_its_own_multiple_of_the_rate_unless_told() -> None:
    config = Config(variants=({"loss": "dpo"}, {"loss": "simpo"}, {"loss": "simpo[beta=10.0]", "learning_rate": 1e-3}))
    rate = config.train.learning_rate
    assert [config.learning_rate(v) for v in config.variants] == pytest.approx([rate, 1.2 * rate, 1e-3])
