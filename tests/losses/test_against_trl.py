"""Value and gradient against the code of TRL 1.16, in float64, on the same made-up responses."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from math import log

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

trl = pytest.importorskip("trl")

from prefopt.contract.registry import make_loss  # noqa: E402
from prefopt.testing.cases import CASES, Case  # noqa: E402
from prefopt.testing.parity import difference, fixed_responses, mismatched, our_value, trl_version  # noqa: E402
from prefopt.testing.trl import Responses, cpo_trainer, dpo_trainer, kto_trainer, orpo_trainer  # noqa: E402

pytestmark = [
    pytest.mark.skipif(trl_version() != "1.16.0", reason="the table of divergences is that of TRL 1.16.0"),
    pytest.mark.filterwarnings("ignore::prefopt.OffScaleWarning"),
]

SAME = [case for case in CASES if not case.why]
DIFFERENT = [case for case in CASES if case.why]


def name(case: Case) -> str:
    return f"{case.label}-{case.peer}-{case.given}"


@pytest.mark.parametrize("case", SAME, ids=name)
def test_same(case: Case) -> None:
    value, gradient = difference(case)
    assert value <= case.tolerance
    assert gradient <= case.tolerance


@pytest.mark.parametrize("case", DIFFERENT, ids=name)
def test_known_divergence(case: Case) -> None:
    value, gradient = difference(case)
    assert max(value, gradient) > 1e-6, "TRL has come round to ours: take the case off the list of divergences"


def test_only_float32_of_trl_loosens_the_tolerance() -> None:
    assert {case.label for case in SAME if case.tolerance > 1e-9} == {"exo", "fdpo[alpha=0.3]"}


def test_every_loss_type_of_trl_is_covered() -> None:
    known = set(re.findall(r'loss_type == "(\w+)"', inspect.getsource(trl.DPOTrainer._compute_loss)))
    known |= set(re.findall(r'f_divergence_type == "(\w+)"', inspect.getsource(trl.DPOTrainer._compute_loss)))
    assert len(known) >= 19
    asked = " ".join(case.peer for case in CASES)
    assert [word for word in known if f"'{word}'" not in asked] == []


def value_of(label: str, given: str = "ordinary") -> float:
    return our_value(make_loss(label), fixed_responses(given)).item()


def test_cdpo_in_trl_is_dpo() -> None:
    given = fixed_responses()
    assert dpo_trainer(given, "sigmoid", beta=0.1, label_smoothing=0.3).item() == pytest.approx(value_of("dpo"))


def test_bco_in_trl_is_ours_with_a_zero_shift() -> None:
    given = fixed_responses()
    h = ((given.policy - given.reference) * given.mask).sum(1) * 0.01
    plain = (-F.logsigmoid(h[:6]) - F.logsigmoid(-h[6:])).mean()
    assert dpo_trainer(given, "bco_pair", beta=0.01).item() == pytest.approx(plain.item())


def test_slic_in_trl_is_our_hinge() -> None:
    given = fixed_responses()
    assert dpo_trainer(given, "hinge", beta=1.0).item() == pytest.approx(value_of("hinge[beta=1.0]"))


def test_ipo_in_trl_is_our_mean_reading() -> None:
    given = fixed_responses()
    assert dpo_trainer(given, "ipo", beta=0.1).item() == pytest.approx(value_of("ipo[tau=0.1]"))


def test_simpo_in_trl_at_its_defaults_is_cpo_simpo_off_the_scale() -> None:
    given = fixed_responses("equal lengths")
    ours = value_of("cpo_simpo[beta=0.1,gamma_beta_ratio=5.0,nll_weight=1.0]", "equal lengths")
    assert cpo_trainer(given, "simpo").item() == pytest.approx(ours)


def test_orpo_in_trl_differs_by_its_likelihood_of_the_prompt() -> None:
    given = fixed_responses()
    policy = (given.policy * given.mask).detach()
    chosen, mask = policy[:6], given.mask[:6]
    # A prompt word of probability 1/2 for each pair, and every token of the batch in one mean.
    theirs = (6 * log(2) - chosen.sum()) / (6 + mask.sum())
    ours = -(chosen.sum(1) / mask.sum(1)).mean()
    gap = orpo_trainer(given, beta=0.1).item() - value_of("orpo")
    assert gap == pytest.approx((theirs - ours).item(), abs=1e-6)


def test_discopop_in_trl_breaks_where_ours_does_not() -> None:
    given = fixed_responses()
    far = torch.where(given.mask, given.policy.detach() + torch.tensor([-900.0] * 6 + [0.0] * 6)[:, None], 0.0)
    moved = replace(given, policy=far.double().requires_grad_())
    assert not dpo_trainer(moved, "discopop", beta=1.0, discopop_tau=0.05).isfinite()
    assert our_value(make_loss("discopop[beta=1.0]"), moved).isfinite()


def test_wpo_in_trl_without_the_clamp_that_ours_has() -> None:
    given = fixed_responses("sure of its tokens")
    excess = ((given.policy - given.collision) * given.mask).sum(1) / given.mask.sum(1)
    weight = (excess[:6] + excess[6:]).exp().detach()
    assert (weight > 1).any()
    h = ((given.policy - given.reference) * given.mask).sum(1)
    plain = -F.logsigmoid(0.01 * (h[:6] - h[6:]))
    assert dpo_trainer(given, beta=0.01, use_weighting=True).item() == pytest.approx((weight * plain).mean().item())
    assert value_of("wpo", "sure of its tokens") == pytest.approx((weight.clamp(max=1) * plain).mean().item())


def kto_by_hand(given: Responses, z: Tensor) -> float:
    h = ((given.policy - given.reference) * given.mask).sum(1)
    chosen, rejected = torch.sigmoid(0.1 * (z - h[:6])), torch.sigmoid(0.1 * (h[6:] - z))
    return ((chosen + rejected) / 2).mean().item()


def test_kto_in_trl_takes_the_response_before_where_ours_takes_the_one_after() -> None:
    given = fixed_responses()
    prompt = torch.arange(12) % 6  # all chosen, then all rejected, as TRL lays the examples out
    before = given.crossed[prompt, torch.arange(12).roll(1)]
    assert sorted(torch.arange(12).roll(1).tolist()) == list(range(12)), "each of the batch's responses once"
    assert kto_trainer(given, beta=0.1).item() == pytest.approx(kto_by_hand(given, before.mean().clamp(min=0)))
    after = mismatched(given).mean().clamp(min=0)
    assert value_of("kto") == pytest.approx(kto_by_hand(given, after))
    # Ours is the roll by one the other way over the same 2B examples.
    assert after.item() == pytest.approx(given.crossed[prompt, torch.arange(12).roll(-1)].mean().item())


def test_mpo_in_trl_is_a_sum_without_shift() -> None:
    given = fixed_responses("equal lengths")
    h = ((given.policy - given.reference) * given.mask).sum(1) * 0.1
    quality = (-F.logsigmoid(h[:6]) - F.logsigmoid(-h[6:])).mean()
    parts = 0.8 * value_of("dpo", "equal lengths") + 0.2 * quality.item() + value_of("sft", "equal lengths")
    theirs = dpo_trainer(given, ["sigmoid", "bco_pair", "sft"], beta=0.1, loss_weights=[0.8, 0.2, 1.0])
    assert theirs.item() == pytest.approx(parts)


def test_what_is_not_given_has_the_default_of_trl() -> None:
    given = fixed_responses()
    assert cpo_trainer(given, "simpo").item() == pytest.approx(
        cpo_trainer(given, "simpo", beta=0.1, simpo_gamma=0.5, cpo_alpha=1.0, alpha=0.0).item()
    )


def test_a_part_of_the_pairs_sends_its_gradient_to_the_whole() -> None:
    given = fixed_responses()
    (gradient,) = torch.autograd.grad(dpo_trainer(given.part(slice(2)), beta=0.1), given.policy)
    assert gradient.abs().sum(1).bool().tolist() == [True, True, False, False, False, False] * 2
