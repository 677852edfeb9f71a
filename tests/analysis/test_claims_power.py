from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic

from prefopt import stats
from prefopt.analysis import claims, power
from prefopt.errors import ClaimError, UsageError
from prefopt.storage import formats, results, schema

NAMES = ["dpo", "ipo", "simpo[beta=2.5,gamma_beta_ratio=0.5]", "ipo-2"]


def folder(root: Path, rates: dict[str, list[list[float]]], judge: str = "oracle") -> results.ResultsFolder:
    """Judgements against the reference: rates by variant, (seeds, prompts)."""
    judged = results.ResultsFolder(root)
    rows = [
        (judge, name, schema.REFERENCE, seed, prompt, score, int(not np.isnan(score)), 0.0, int(np.isnan(score)))
        for name, table in rates.items()
        for seed, row in enumerate(table)
        for prompt, score in enumerate(row)
    ]
    formats.write_frame(root / "judgements.parquet", pd.DataFrame(rows, columns=list(schema.JUDGEMENT_COLUMNS)))
    formats.write_json(judged.manifest_path, {"schema": 1, "seeds": list(range(max(map(len, rates.values()))))})
    return judged


RATES = {
    "dpo": [[0.5, 0.5], [0.7, 0.5]],  # mean 0.55
    "ipo": [[0.5, 0.6], [0.5, 0.52]],  # mean 0.53
    "simpo[beta=2.5,gamma_beta_ratio=0.5]": [[1.0, 1.0], [1.0, 0.8]],  # mean 0.95
    "ipo-2": [[0.0, 0.0], [0.0, 0.4]],  # mean 0.1
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("ipo >= dpo - 0.02", True),  # 0.53 against 0.53
        ("ipo>=dpo - 0.02", True),
        ("ipo > dpo - 0.02", False),
        ("ipo >= dpo - 0.019", False),
        ("dpo - 0.02 <= ipo", True),
        ("ipo + .02 < dpo", False),
        ("dpo > reference", True),
        ("ipo < 0.54", True),
        ("0.52 > ipo", False),
        ("simpo[beta=2.5,gamma_beta_ratio=0.5] >= dpo + 0.4", True),
        ("simpo[beta=2.5,gamma_beta_ratio=0.5] >= dpo + 0.41", False),
        ("ipo-2 < ipo - 2e-1", True),
        ("ipo >= reference + 0.03", True),
    ],
)
def test_claims_by_hand(tmp_path: Path, text: str, holds: bool) -> None:
    judged = folder(tmp_path, RATES)
    (outcome,) = claims.check(judged, [claims.parse(text, NAMES)])
    assert outcome.holds is holds, outcome.sentence
    assert text in outcome.sentence
    if holds:
        claims.require([outcome])
    else:
        with pytest.raises(ClaimError) as problem:
            claims.require([outcome])
        assert problem.value.exit_code == 7


@pytest.mark.parametrize(
    "text",
    ["ipo", "ipo >= ", ">= dpo", "ipo = dpo", "ipo >= dpo >= simpo", "ipo >= dpo * 2", "1 >= 0", "", "ipo >= nan"],
)
def test_what_is_no_claim_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--assert"):
        claims.parse(text, NAMES)


def test_misspelt_variant_has_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean dpo"):
        claims.parse("ipo >= dop - 0.02", NAMES)


def test_sentence_has_the_paired_interval(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.8, (4, 50))
    judged = folder(tmp_path, {"dpo": base.tolist(), "ipo": (base - 0.01).tolist()})
    (outcome,) = claims.check(judged, [claims.parse("ipo >= dpo - 0.02", NAMES)])
    # Paired cell by cell the difference is constant, however much prompts differ.
    assert "+1.0 points, 95 % [+1.0, +1.0]" in outcome.sentence


def test_unfinished_variants_prove_nothing(tmp_path: Path) -> None:
    judged = folder(tmp_path, {"dpo": RATES["dpo"], "ipo": RATES["ipo"][:1]})
    with pytest.raises(ClaimError, match="ipo has no win rate at seed 1"):
        claims.check(judged, [claims.parse("ipo >= dpo - 0.02", NAMES)])
    claims.check(judged, [claims.parse("dpo >= 0.5", NAMES)])


def test_unusable_verdicts_are_no_win_rate(tmp_path: Path) -> None:
    judged = folder(tmp_path, {"dpo": RATES["dpo"], "ipo": [[np.nan, np.nan], [0.5, 0.5]]})
    with pytest.raises(ClaimError, match="ipo has no win rate at seed 0"):
        claims.check(judged, [claims.parse("ipo >= 0.5", NAMES)])


def test_no_judge_no_claim(tmp_path: Path) -> None:
    judged = results.ResultsFolder(tmp_path)
    formats.write_json(judged.manifest_path, {"schema": 1, "seeds": [0]})
    with pytest.raises(ClaimError, match="no judge"):
        claims.check(judged, [claims.parse("ipo >= dpo", NAMES)])


def test_the_gold_reward_goes_before_other_judges(tmp_path: Path) -> None:
    judged = folder(tmp_path, {"dpo": [[0.1, 0.2], [0.1, 0.2]]}, judge="a-judge")
    other = judged.judgements()
    judged = folder(tmp_path, {"dpo": [[0.9, 0.8], [0.9, 0.8]]})
    formats.write_frame(tmp_path / "judgements.parquet", pd.concat([other, judged.judgements()]))
    assert claims.check(judged, [claims.parse("dpo > 0.5", NAMES)])[0].holds


def test_power_recovers_planted_variances(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tables = {}
    for name in ("dpo", "ipo", "simpo", "cdpo"):
        seed, prompt = 0.03 * rng.standard_normal((40, 1)), 0.1 * rng.standard_normal((1, 200))
        tables[name] = np.clip(0.5 + seed + prompt + 0.15 * rng.standard_normal((40, 200)), 0, 1).tolist()
    folder(tmp_path, tables)
    components, origin = power.measured(tmp_path)
    assert components.seed**0.5 == pytest.approx(0.03, rel=0.15)
    assert components.prompt**0.5 == pytest.approx(0.1, rel=0.1)
    assert components.rest**0.5 == pytest.approx(0.15, rel=0.05)
    assert (origin.measured_seeds, origin.measured_prompts, origin.variants) == (40, 200, 4)


def test_power_of_a_written_comparison(tmp_path: Path) -> None:
    root = synthetic.World(seeds=4).write(tmp_path / "x")
    components, origin = power.measured(root)
    text = power.as_text(power.answer(components, seeds=5, prompts=256), origin)
    assert "With 5 seeds and 256 prompts" in text
    assert "measured in" in text


def test_power_answers_agree_with_each_other() -> None:
    components = stats.Components.assumed()
    sizes = power.answer(components, seeds=5, prompts=256)
    least = sizes.minimum_detectable
    assert stats.power(least, components, seeds=5, prompts=256) == pytest.approx(0.8, abs=0.01)
    by_size = {effect.difference: effect for effect in sizes.effects}
    assert by_size[0.01].power < 0.2
    assert by_size[0.1].power > 0.9
    for effect in sizes.effects:
        if effect.seeds_needed:
            enough = stats.power(effect.difference, components, seeds=effect.seeds_needed, prompts=256)
            assert enough >= 0.8
    assert power.answer(components, seeds=5, prompts=256, tests=10).minimum_detectable > least
    assert "of the loss it says nothing" in power.as_text(power.answer(components, seeds=1, prompts=64))


def test_power_refuses_what_it_cannot_measure(tmp_path: Path) -> None:
    folder(tmp_path, {"dpo": [[0.5, 0.6]]})
    with pytest.raises(UsageError, match="two seeds"):
        power.measured(tmp_path)
    with pytest.raises(UsageError, match="prefopt power"):
        power.answer(stats.Components.assumed(), seeds=0, prompts=256)
