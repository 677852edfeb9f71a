"""Sweeps by hand: products of values, and learning rates in labels."""

from __future__ import annotations

import pytest

from prefopt.config.load import load_command
from prefopt.config.schema import Config
from prefopt.errors import UsageError


def test_a_sweep_is_the_product_of_its_values() -> None:
    config = load_command(None, {}, losses="dpo[beta=0.05|0.1|0.5,lr=5e-4|1e-3],simpo[lr=2e-4]")
    assert [variant.name for variant in config.variants] == [
        "dpo[beta=0.05,lr=0.0005]", "dpo[beta=0.05,lr=0.001]", "dpo[lr=0.0005]", "dpo[lr=0.001]",
        "dpo[beta=0.5,lr=0.0005]", "dpo[beta=0.5,lr=0.001]", "simpo[lr=0.0002]",
    ]  # fmt: skip
    assert [config.learning_rate(variant) for variant in config.variants] == [5e-4, 1e-3] * 3 + [2e-4]
    assert Config.model_validate(config.model_dump()) == config  # as a worker reads it


def test_a_rate_without_a_name_for_it_stays_out_of_the_name() -> None:
    config = Config.model_validate({"variants": [{"loss": "dpo", "learning_rate": 1e-4}]})
    assert config.variants[0].name == "dpo"
    mixed = load_command(None, {}, losses="mix[0.8*dpo+1.0*sft,lr=1e-4]").variants[0]
    assert mixed.learning_rate == 1e-4
    assert mixed.build().label == "mix[0.8dpo+1.0sft]"


BAD = {
    "dpo[lr=fast]": "lr must be a learning rate",
    "dpo[lr=1e-3,lr=1e-4]": "lr is given twice",
    "dpo[lr=7]": "less than 1",
    "dpo[beta=0.1|]": "write key=value",
    "dpo[beta=0.1|0.10]": "given twice",
    "dpo[lr=1.5e-3],dpo": "are the same experiment",
    "dpo[beta=" + "|".join(f"{n}" for n in range(1, 1100)) + "]": "write at most 1,000",
}


@pytest.mark.parametrize("losses", BAD)
def test_a_bad_sweep_is_named(losses: str) -> None:
    with pytest.raises(UsageError, match=BAD[losses]):
        load_command(None, {}, losses=losses)


def test_a_rate_is_given_once() -> None:
    with pytest.raises(ValueError, match="drop one"):
        Config.model_validate({"variants": [{"loss": "dpo[lr=1e-3]", "learning_rate": 1e-4}]})
    with pytest.raises(ValueError, match="drop label"):
        Config.model_validate({"variants": [{"loss": "dpo[beta=0.1|0.2]", "label": "x"}]})
