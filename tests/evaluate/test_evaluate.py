"""Held-out pairs, exact KL, diversity and the gold reward's judgements, against plain computations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from drawing import prompts, run
from rows import draw
from training import pair_set, scored, shaken

from prefopt import make_loss
from prefopt.evaluate.divergence import policy_and_reference
from prefopt.evaluate.diversity import diversity
from prefopt.judges.gold import oracle_judgements
from prefopt.model.base import Base
from prefopt.storage.schema import JUDGEMENT_COLUMNS, PAIR_COLUMNS, REFERENCE
from prefopt.train.heldout import heldout_frame
from prefopt.train.state import Run


def by_hand(base: Base, rows: Sequence[int]) -> torch.Tensor:
    """(T, V) log-probabilities of the next token by the model's own attention, with the adapters as they are set."""
    base.model.set_attn_implementation("eager")
    with torch.no_grad():
        out: torch.Tensor = base.model(torch.tensor([list(rows)])).logits[0].double().log_softmax(-1)
    base.model.set_attn_implementation("prefopt_packed")
    return out


def test_kl_is_the_sum_over_positions_of_the_exact_divergence(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    model = shaken(base, 2)
    prompt_ids = prompts(4)
    sampled = run(model, prompt_ids, slice(1, 2))[0]
    kl, logp, ref_logp = policy_and_reference(model, 1, prompt_ids, sampled)
    for i, one in enumerate(sampled):
        whole, start = [*prompt_ids[one.prompt], *one.tokens], len(prompt_ids[one.prompt]) - 1
        with model.use(slice(1, 2)):
            p = by_hand(base, whole)[start:-1]
        with model.off():
            r = by_hand(base, whole)[start:-1]
        at = torch.tensor(one.tokens)[:, None]
        assert kl[i] == pytest.approx(float((p.exp() * (p - r)).sum()), abs=1e-3)
        assert logp[i] == pytest.approx(float(p.gather(1, at).sum()), abs=1e-3)
        assert ref_logp[i] == pytest.approx(float(r.gather(1, at).sum()), abs=1e-3)
    assert (kl > 0.01).all()


def test_kl_of_the_reference_with_itself_is_exactly_zero(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    model = shaken(base, 2)
    model.adapters.params[1] = 0
    prompt_ids = prompts(3)
    sampled = run(model, prompt_ids, None)[0]
    kl, logp, ref_logp = policy_and_reference(model, 1, prompt_ids, sampled)
    assert (kl == 0).all()
    assert (logp == ref_logp).all()


def test_kl_agrees_with_its_monte_carlo_estimate(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    model = shaken(base, 1)
    sampled = run(model, prompts(2), slice(0, 1), samples=400, max_new_tokens=4)[0]
    kl, logp, ref_logp = policy_and_reference(model, 0, prompts(2), sampled)
    naive = logp - ref_logp
    assert kl.mean() == pytest.approx(naive.mean(), abs=4 * naive.std() / np.sqrt(len(sampled)))
    assert kl.std() < naive.std()


def test_heldout_frame_holds_what_the_loss_sees(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    model = shaken(base, 1)
    with model.off():
        pairs = pair_set(base, scored(5, 3))
    loss = make_loss("dpo[beta=0.5]")
    frame = heldout_frame(model, Run("x", loss, 1e-3, 0), pairs, seed=0)
    assert tuple(frame.columns) == PAIR_COLUMNS
    h = frame["logps_chosen"] - frame["ref_logps_chosen"]
    np.testing.assert_allclose(frame["reward_chosen"], 0.5 * h, atol=1e-5)
    assert frame["gold_chosen"].tolist() == [p.chosen_score for p in pairs.pairs]


def frame(rewards: list[list[float]]) -> pd.DataFrame:
    rows = [(p, s, r) for p, row in enumerate(rewards) for s, r in enumerate(row)]
    return pd.DataFrame(rows, columns=["prompt_id", "sample", "reward"])


def test_judgements_compare_every_sample_with_every_other() -> None:
    scores = {
        ("dpo", 0): frame([[1.0, 3.0], [0.0, 0.0]]),
        ("ipo", 0): frame([[2.0, 2.0], [0.0, 1.0]]),
        (REFERENCE, 0): frame([[0.0, 3.0], [5.0, 5.0]]),
    }
    out = oracle_judgements(scores, ["dpo", "ipo"])
    assert tuple(out.columns) == JUDGEMENT_COLUMNS
    got = {(r.variant, r.opponent, r.prompt_id): (r.score, r.ties) for r in out.itertuples()}
    assert got["dpo", "ipo", 0] == (0.5, 0.0)  # 3 beats 2 twice, 1 loses twice
    assert got["dpo", "ipo", 1] == (0.25, 0.5)  # two ties, two losses
    assert got["dpo", REFERENCE, 0] == (0.625, 0.25)  # 1>0, 1<3, 3>0, 3=3
    assert got["ipo", REFERENCE, 1] == (0.0, 0.0)
    assert (out["n"] == 4).all()


def test_diversity_takes_as_many_tokens_of_every_policy() -> None:
    few = diversity([[1, 2, 1, 2]], ["abab"])
    assert few["distinct1"] == 0.5
    assert few["distinct2"] == pytest.approx(2 / 3)
    source = torch.Generator().manual_seed(0)
    short = diversity([draw(200, source) for _ in range(10)], ["x"])
    long = diversity([draw(200, source) for _ in range(40)], ["x"])
    assert long["distinct1"] == pytest.approx(short["distinct1"], abs=0.02)
    assert diversity([[1]], ["la " * 500])["compression"] > 20
