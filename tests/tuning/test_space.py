"""Where trials lie: pure functions of loss and index, inside declared ranges, the same rates for every loss."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from prefopt.config.schema import Config, Variant
from prefopt.contract.loss import OffScaleWarning
from prefopt.errors import UsageError
from prefopt.losses import loss_names
from prefopt.tuning.space import UNTUNED, axes, point, trials


def config(*losses: str, **tune: object) -> Config:
    return Config.model_validate({"variants": [{"loss": loss} for loss in losses], "tune": {"trials": 8, **tune}})


def test_every_loss_can_be_tuned_and_all_meet_the_same_rates() -> None:
    every = config(*loss_names())
    rates = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", OffScaleWarning)
        for variant in every.variants:
            tried = trials(every, variant, 16)
            assert all(Variant.model_validate({"loss": t.name}).build() == t.build() for t in tried), variant.name
            rates[variant.name] = [t.learning_rate for t in tried[1:]]
    assert {name for name, found in rates.items() if not found} == UNTUNED
    assert {tuple(found) for found in rates.values() if found} == {tuple(rates["dpo"])}
    assert len(set(rates["dpo"])) == 15


def test_more_trials_leave_those_before_as_they_are() -> None:
    some = config("dpo", "simpo", "gpo")
    for variant in some.variants:
        assert trials(some, variant, 16)[:8] == trials(some, variant, 8)
        assert trials(some, variant, 8)[0].build() == variant.build()


def test_the_points_fill_the_space_evenly() -> None:
    places = np.stack([point(index) for index in range(1, 17)])
    for coordinate in range(4):
        assert np.histogram(places[:, coordinate], bins=4, range=(0, 1))[0].tolist() == [4] * 4


def test_what_a_label_sets_stays_and_ranges_may_be_given() -> None:
    some = config("cdpo[label_smoothing=0.2]", ranges={"cdpo": {"beta": [0.2, 0.4], "lr": [1e-5, 1e-4]}})
    (variant,) = some.variants
    assert [axis.name for axis in axes(some, variant)] == ["lr", "beta"]
    for one in trials(some, variant, 8)[1:]:
        loss = one.build().spec()
        assert loss["label_smoothing"] == 0.2
        assert 0.2 <= loss["beta"] <= 0.4
        assert 1e-5 <= (one.learning_rate or 0) <= 1e-4
    common = config("dpo", learning_rate=[1e-4, 2e-4])
    assert all(1e-4 <= (t.learning_rate or 0) <= 2e-4 for t in trials(common, common.variants[0], 8)[1:])


BAD = {
    "no such setting": ({"dpo": {"bta": [0.1, 0.2]}}, "dpo has no setting bta; did you mean beta?"),
    "falling": ({"dpo": {"beta": [0.2, 0.1]}}, "give the lowest and the highest value"),
    "outside": ({"dpo": {"beta": [-1.0, 0.1]}}, "beta must lie in"),
    "rate": ({"dpo": {"lr": [1e-4, 2.0]}}, "between 0 and 1"),
    "words": ({"gpo": {"link": ["savage", "nope"]}}, "link must be one of"),
    "mixed": ({"gpo": {"link": ["savage", 1]}}, "different words, or two numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_range_is_named(case: str) -> None:
    ranges, said = BAD[case]
    some = config(*ranges, ranges=ranges)
    with pytest.raises(UsageError, match=said.replace("?", r"\?")):
        axes(some, some.variants[0])


def test_a_label_that_leaves_nothing_open_is_refused() -> None:
    some = config("dpo[beta=0.1,lr=1e-3]")
    with pytest.raises(UsageError, match="leaves nothing to tune"):
        trials(some, some.variants[0], 8)


def test_seeds_of_trials_are_not_those_of_the_report() -> None:
    with pytest.raises(ValueError, match="fresh seeds"):
        config("dpo", seeds=[0, 5])
