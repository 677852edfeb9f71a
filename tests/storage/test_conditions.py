"""Variants of one seed that were not trained alike are refused by name."""

from __future__ import annotations

import pytest

from prefopt.errors import UnequalConditions
from prefopt.storage.conditions import NAMES, Conditions
from prefopt.storage.records import RunRecord, check_conditions

ALIKE = Conditions.from_dict({name: f"{name}-hash" for name in NAMES})


def test_equal_conditions_pass() -> None:
    ALIKE.require_equal(Conditions.from_dict(ALIKE.as_dict()), seed=3, own="dpo", others="simpo")


@pytest.mark.parametrize("name", NAMES)
def test_unequal_conditions_are_refused_by_name(name: str) -> None:
    other = Conditions.from_dict({**ALIKE.as_dict(), name: "41aa"})
    said = rf"seed 3: variants 'dpo' and 'simpo' differ in {name} \({name}-hash / 41aa\); rerun both or drop one"
    with pytest.raises(UnequalConditions, match=said):
        ALIKE.require_equal(other, seed=3, own="dpo", others="simpo")


def test_the_runs_of_a_seed_are_compared_and_failed_ones_left_out() -> None:
    other = Conditions.from_dict({**ALIKE.as_dict(), "data": "41aa"})
    runs = {
        ("dpo", 0): RunRecord(variant="dpo", seed=0, conditions=ALIKE),
        ("ipo", 0): RunRecord(variant="ipo", seed=0, status="failed", conditions=other),
        ("ipo", 1): RunRecord(variant="ipo", seed=1, conditions=other),
    }
    check_conditions(runs)
    runs["simpo", 0] = RunRecord(variant="simpo", seed=0, status="diverged", conditions=other)
    with pytest.raises(UnequalConditions, match=r"seed 0: variants 'dpo' and 'simpo' differ in data"):
        check_conditions(runs)


def test_variants_that_make_their_own_data_share_a_stream_in_place_of_an_order() -> None:
    from dataclasses import replace

    plain = Conditions(data="d", pair_order="o", stream="s")
    own = replace(plain, pair_order=None)
    three, again, one = (replace(own, rounds=text) for text in ("3 a", "3 b", "1 c"))
    for a, b in ((plain, own), (plain, three), (three, one), (own, replace(plain, stream=None))):
        a.require_equal(b, seed=0, own="a", others="b")
        b.require_equal(a, seed=0, own="b", others="a")
    for a, b, name in (
        (three, again, "rounds"),
        (own, replace(own, stream="t"), "stream"),
        (plain, replace(plain, pair_order="p"), "pair_order"),
    ):
        with pytest.raises(UnequalConditions, match=name):
            a.require_equal(b, seed=0, own="a", others="b")
