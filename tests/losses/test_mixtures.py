"""``mix``: a weighted sum of losses that a user writes out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden import PAIRS, TOKENS, t

from prefopt import Loss, make_loss
from prefopt.contract.labels import split_labels
from prefopt.errors import UsageError
from prefopt.storage.results import check_name


@pytest.mark.parametrize(
    "text",
    ["mix[0.8*dpo+0.2*bco+1.0*sft]", "mix[0.8dpo+0.2bco+1.0sft]", "mix[ 0.80*dpo + 0.2*bco + 1*sft ]", "mix"],
)
def test_one_sum_however_it_is_written(text: str) -> None:
    loss = make_loss(text)
    assert loss == make_loss("mix")
    assert loss.label == "mix[0.8dpo+0.2bco+1.0sft]"


def test_label_and_spec_build_it_again_and_the_label_is_a_folder_s_name() -> None:
    loss = make_loss("mix[0.00001*dpo[beta=0.2]+2*cpo_simpo[beta=2,gamma_beta_ratio=0.5]]")
    assert loss.label == "mix[0.00001dpo[beta=0.2]+2.0cpo_simpo[beta=2.0,gamma_beta_ratio=0.5]]"
    assert make_loss(loss.label) == make_loss(loss.spec()) == loss
    assert check_name(loss.label, "variant") == loss.label
    assert split_labels(f"dpo,{loss.label},sft") == ["dpo", loss.label, "sft"]


def test_it_declares_what_its_terms_do() -> None:
    def declared(loss: Loss) -> tuple[object, ...]:
        return (
            loss.needs_reference, loss.length_normalized, loss.batch_coupled, loss.needs_scores, loss.needs_mismatched,
            loss.token_fields, loss.lr_scale,
        )  # fmt: skip

    assert declared(make_loss("mix[1*simpo+1*sft]")) == (False, True, False, False, False, frozenset(), 1.2)
    assert declared(make_loss("mix[1*kto+1*odpo]")) == (True, False, True, True, True, frozenset(), 1.0)
    assert make_loss("mix[1*tdpo+1*ld_dpo]").token_fields == {"ref_kl", "logps"}


def test_each_term_has_its_own_moving_average() -> None:
    loss = make_loss("mix[1*dpo+2*bco+0.5*alpha_dpo+3*beta_dpo]")
    kept = loss.statistic(PAIRS)
    assert kept is not None
    assert kept.shape == (5,)
    parts = {"bco": t(2)[0], "alpha_dpo": t(0.5, 0.25), "beta_dpo": t(3, 4)}
    values = {name: make_loss(name)(replace(PAIRS, running=value)) for name, value in parts.items()}
    expected = make_loss("dpo")(PAIRS) + 2 * values["bco"] + 0.5 * values["alpha_dpo"] + 3 * values["beta_dpo"]
    torch.testing.assert_close(loss(replace(PAIRS, running=t(2, 0.5, 0.25, 3, 4))), expected)


def test_terms_that_read_tokens() -> None:
    expected = make_loss("wpo")(TOKENS) + 0.5 * make_loss("sft")(TOKENS)
    torch.testing.assert_close(make_loss("mix[1*wpo+0.5*sft]")(TOKENS), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mix[dpo]", "mix: cannot read the term 'dpo'; write weight\\*loss, such as 0.8\\*dpo, the weight above 0"),
        ("mix[0*dpo+1*sft]", "cannot read the term '0\\*dpo'"),
        ("mix[-1*dpo]", "cannot read the term '-1\\*dpo'"),
        ("mix[1*mix[1*dpo]]", "cannot read the term"),
        ("mix[1*dop]", "unknown loss 'dop'; did you mean dpo"),
        ("mix[1*dpo[beta=-1]]", "dpo: beta must lie in"),
        ("mix[1*bco+1*beta_dpo[decay=0.5]]", r"mix: terms that keep a moving average need one decay; got \[0.5, 0.9\]"),
    ],
)
def test_a_sum_that_cannot_be_had_is_refused_in_a_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make_loss(text)
    assert "\n" not in str(caught.value)
