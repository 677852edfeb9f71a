"""Value and gradient against the code of TRL 1.16, in float64, on the same made-up responses."""

from __future__ import annotations

import inspect
import re
from math import log

import pytest
import torch
import torch.nn.functional as F

trl = pytest.importorskip("trl")

from prefopt.contract.registry import make_loss  # noqa: E402
from prefopt.testing.parity import CASES, Case, difference, fixed_responses, our_value, trl_version  # noqa: E402
from prefopt.testing.trl import cpo_trainer, dpo_trainer, orpo_trainer  # noqa: E402

pytestmark = [
    pytest.mark.skipif(trl_version() != "1.16.0", reason="the table of divergences is that of TRL 1.16.0"),
    pytest.mark.filterwarnings("ignore::prefopt.OffScaleWarning"),
]

SAME = [case for case in CASES if not case.why]
DIFFERENT = [case for case in CASES if case.why]


def name(case: Case) -> str:
    return f"{case.label}-{case.peer}"


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


def value_of(label: str, *, equal_lengths: bool = False) -> float:
    return our_value(make_loss(label), fixed_responses(equal_lengths=equal_lengths)).item()


def test_cdpo_in_trl_is_dpo() -> None:
    given = fixed_responses()
    assert dpo_trainer(given, "sigmoid", beta=0.1, label_smoothing=0.3).item() == pytest.approx(value_of("dpo"))


def test_bco_in_trl_is_ours_with_a_zero_shift() -> None:
    given = fixed_responses()
    h = ((given.policy - given.reference) * given.mask).sum(1) * 0.01
    plain = (-F.logsigmoid(h[:5]) - F.logsigmoid(-h[5:])).mean()
    assert dpo_trainer(given, "bco_pair", beta=0.01).item() == pytest.approx(plain.item())


def test_slic_in_trl_is_our_hinge() -> None:
    given = fixed_responses()
    assert dpo_trainer(given, "hinge", beta=1.0).item() == pytest.approx(value_of("hinge[beta=1.0]"))


def test_ipo_in_trl_is_our_mean_reading() -> None:
    given = fixed_responses()
    assert dpo_trainer(given, "ipo", beta=0.1).item() == pytest.approx(value_of("ipo[tau=0.1]"))


def test_simpo_in_trl_at_its_defaults_is_cpo_simpo_off_the_scale() -> None:
    given = fixed_responses(equal_lengths=True)
    ours = value_of("cpo_simpo[beta=0.1,gamma_beta_ratio=5.0]", equal_lengths=True)
    assert cpo_trainer(given, "simpo").item() == pytest.approx(ours)


def test_orpo_in_trl_differs_by_its_likelihood_of_the_prompt() -> None:
    given = fixed_responses()
    policy = (given.policy * given.mask).detach()
    chosen, mask = policy[:5], given.mask[:5]
    # A prompt word of probability 1/2 for each pair, and every token of the batch in one mean.
    theirs = (5 * log(2) - chosen.sum()) / (5 + mask.sum())
    ours = -(chosen.sum(1) / mask.sum(1)).mean()
    gap = orpo_trainer(given, beta=0.1).item() - value_of("orpo")
    assert gap == pytest.approx((theirs - ours).item(), abs=1e-6)


def test_discopop_in_trl_breaks_where_ours_does_not() -> None:
    given = fixed_responses()
    far = torch.where(given.mask, given.policy.detach() + torch.tensor([-900.0] * 5 + [0.0] * 5)[:, None], 0.0)
    moved = type(given)(far.double().requires_grad_(), given.reference, given.collision, given.mask, given.mismatched)
    assert not dpo_trainer(moved, "discopop", beta=1.0, discopop_tau=0.05).isfinite()
    assert our_value(make_loss("discopop[beta=1.0]"), moved).isfinite()
