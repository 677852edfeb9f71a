"""Every setting of the schema, in every kind of comparison: it changes what a run is, or it is refused."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from bad_inputs import ROWS, jsonl
from pydantic import BaseModel

import prefopt.losses  # noqa: F401 - a configuration builds its losses
from prefopt.comparison import provenance
from prefopt.config import describe
from prefopt.config.load import load
from prefopt.config.open_settings import SITUATIONAL
from prefopt.config.schema import Config
from prefopt.config.situation import enough_prompts, lora_rate, settle, settle_split, shown
from prefopt.config.tune import Tune
from prefopt.errors import UsageError

# What makes a comparison of each kind, by dotted name.
SITUATIONS: dict[str, dict[str, Any]] = {
    "embedded": {},
    "embedded, base as reference": {"sft.steps": 0},
    "own pairs": {"task.name": "data", "data.source": "pairs.jsonl", "model.name": "./m"},
    "own pairs, two files": {
        "task.name": "data", "data.source": "pairs.jsonl", "data.heldout": "held.jsonl", "model.name": "./m",
    },
    "losses tuned": {"tune.trials": 2},
    "in rounds": {"variants": [{"loss": "dpo@2rounds"}]},
    "own pairs, tuned": {"task.name": "data", "data.source": "pairs.jsonl", "model.name": "./m", "sft.on": "chosen"},
}  # fmt: skip
CANDIDATES: tuple[Any, ...] = (
    3, 7, 0.25, 0.3, 1e-4, 2.0, True, False, "held.jsonl", "drop", "q_proj", {"prompt": "question"}, "other", (5,),
    8, "data", "imdb", "rm:./m", "lm:./m", "openai:x", 0.5, (1e-4, 1e-3), {"dpo": {"beta": [0.05, 0.5]}},
    ["User:"], ("mlflow",),
)  # fmt: skip
# What a report or a folder depends on, and no run.
OF_THE_REPORT = {"name", "seeds", "device", "track", "evaluation.delta", "train.checkpoint_every", "variants"} | {
    f"tune.{key}" for key in Tune.model_fields
}


def settings() -> Iterator[tuple[str, Any]]:
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from ((f"{name}.{key}", inner.annotation) for key, inner in section.model_fields.items())
        else:
            yield name, section


def choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(choice for part in get_args(annotation) for choice in choices(part))


SETTINGS = dict(settings())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pairs.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "held.jsonl").write_bytes(jsonl(ROWS[:3]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def value_at(config: Config, dotted: str) -> Any:
    section, _, key = dotted.rpartition(".")
    return getattr(getattr(config, section) if section else config, key)


def outcome(situation: dict[str, Any], dotted: str, value: Any) -> str:
    """ "changed", "refused" or, for a value that the setting cannot have, "invalid"."""
    before = load(None, situation)
    try:
        after = load(None, {**situation, dotted: value})
    except UsageError as problem:
        said = str(problem)
        known = (
            "has no effect",
            "both given",
            "needs data.source",
            "task data",
            "go together",
            "brings its own",
            "sets no prompt apart",
            "needs --reward",
        )
        return "refused" if any(part in said for part in known) else "invalid"
    if value_at(after, dotted) == value_at(before, dotted):
        return "invalid"
    if dotted in OF_THE_REPORT:
        return "changed" if after.model_dump() != before.model_dump() else "ignored"
    return "changed" if provenance.settings(after) != provenance.settings(before) else "ignored"


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_setting_changes_what_a_run_is_or_is_refused(situation: str) -> None:
    ignored, untried = [], []
    for dotted, annotation in SETTINGS.items():
        if dotted in SITUATIONS[situation] or dotted == "variants":
            continue
        outcomes = [outcome(SITUATIONS[situation], dotted, value) for value in (*choices(annotation), *CANDIDATES)]
        if "ignored" in outcomes:
            ignored.append(dotted)
        if not {"changed", "refused"} & set(outcomes):
            untried.append(dotted)
    assert not ignored
    assert not untried


REFUSED = {
    "embedded": {
        "data.dedup",
        "data.max_length",
        "data.column_map",
        "data.on_bad_rows",
        "data.heldout_share",
        "rounds.prompts",
        "tune.prompts",
        "task.reward_s",
        "pairs.offpolicy",
    },
    "embedded, base as reference": {"sft.texts_per_step", "sft.text_tokens", "sft.learning_rate"},
    "own pairs": {"pairs.label_noise", "pairs.samples", "pairs.seed", "sft.text_tokens", "sft.learning_rate"},
    "own pairs, two files": {"data.heldout_share"},
    "in rounds": {"rounds.base_url", "rounds.max_calls"},
    "own pairs, tuned": {"sft.text_tokens"},
}


@pytest.mark.parametrize("situation", REFUSED)
def test_settings_without_an_effect_are_named_with_what_to_do(situation: str) -> None:
    for dotted in REFUSED[situation]:
        values = (*choices(SETTINGS[dotted]), *CANDIDATES)
        said = []
        for value in values:
            try:
                load(None, {**SITUATIONS[situation], dotted: value})
            except UsageError as problem:
                said.append(str(problem))
        assert [text for text in said if f"{dotted} has no effect" in text and ";" in text], dotted


def test_a_setting_without_an_effect_is_refused_at_its_default_too() -> None:
    with pytest.raises(UsageError, match=r"pairs\.label_noise has no effect with your own pairs"):
        load(None, {**SITUATIONS["own pairs"], "pairs.label_noise": 0.0})


def test_every_setting_is_read_by_the_code_that_runs_comparisons() -> None:
    root = Path(describe.__file__).parents[1]
    trees = [ast.parse(path.read_text()) for path in root.rglob("*.py") if path.parent.name != "config"]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    read |= {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    # Settings that only decide others are read where those are decided.
    assert {dotted for dotted in SETTINGS if dotted.rpartition(".")[2] not in read} <= {"train.epochs"}


def test_every_setting_is_explained_and_the_file_to_start_from_is_the_default(tmp_path: Path) -> None:
    rows = describe.settings()
    assert {row["setting"] for row in rows} == SETTINGS.keys() - {"variants"}
    assert not [row["setting"] for row in rows if len(row["meaning"]) < 10]
    (tmp_path / "x.toml").write_text(describe.as_toml(load(None, {})), encoding="utf-8")
    assert load(tmp_path / "x.toml", {}).model_dump() == Config().model_dump()
    given = load(None, {"train.steps": 7, "model.name": 'a"b'})
    (tmp_path / "y.toml").write_text(describe.as_toml(given), encoding="utf-8")
    assert load(tmp_path / "y.toml", {}).model_dump() == given.model_dump()


def own(**more: Any) -> Config:
    return load(None, {**SITUATIONS["own pairs"], **more})


def decided(config: Config, **facts: Any) -> Config:
    return settle(
        config, **{"pairs": 1001, "chosen_tokens": [*range(1, 101)], "parameters": 135_000_000, "prompts": 99} | facts
    )


def test_what_is_not_given_follows_from_pairs_and_model() -> None:
    config = decided(own())
    assert config.train.steps == math.ceil(1001 / 8)
    assert config.train.learning_rate == 1e-4
    assert config.train.eval_every == 16
    assert (config.evaluation.max_new_tokens, config.evaluation.prompts, config.sft_steps) == (96, 99, 0)
    assert set(shown(config)) == {*SITUATIONAL} - {"sft.learning_rate"}
    assert "1 epoch of 1,001 pairs" in shown(config)["train.steps"]
    assert "alignment-handbook" in shown(config)["train.learning_rate"]
    assert f"to see 5 points {enough_prompts(config)} would be needed" in shown(config)["evaluation.prompts"]
    assert decided(own(), chosen_tokens=[900] * 10).evaluation.max_new_tokens == 512
    assert decided(own(), prompts=5000).evaluation.prompts == enough_prompts(config)
    assert decided(own(**{"sft.on": "chosen"})).sft_steps == math.ceil(1001 / 12)
    assert decided(own(**{"train.epochs": 2.0})).train.steps == math.ceil(2002 / 8)


def test_what_is_given_stays_and_the_embedded_experiment_is_as_it_was() -> None:
    given = {"train.steps": 48, "train.learning_rate": 3e-3, "evaluation.prompts": 7, "evaluation.max_new_tokens": 24}
    config = decided(own(**given))
    assert {name: value_at(config, name) for name in given} == given
    assert not set(given) & set(shown(config))
    embedded = load(None, {})
    assert settle(embedded, pairs=9, chosen_tokens=[1], parameters=1, prompts=9) is embedded
    assert (embedded.train.steps, embedded.train.learning_rate, embedded.sft_steps) == (48, 1.5e-3, 40)


def test_a_run_is_the_same_before_and_after_its_settings_are_decided() -> None:
    config = own()
    assert provenance.settings(config) == provenance.settings(decided(config))
    assert provenance.settings(config) != provenance.settings(own(**{"train.steps": 126}))
    again = Config.model_validate(config.model_dump(exclude_unset=True))  # as it goes to the working process
    assert again.open_settings == config.open_settings


def test_rates_fall_with_the_size_of_the_model_between_the_two_that_are_known() -> None:
    assert lora_rate(7_000_000_000) == lora_rate(70_000_000_000) == 5e-6
    assert lora_rate(135_000_000) == 1e-4
    assert 5e-6 < lora_rate(1_500_000_000) < lora_rate(500_000_000) < 1e-4 < lora_rate(1_000_000) <= 1e-3


def test_the_share_that_is_held_out_gives_enough_prompts_where_it_can() -> None:
    enough = enough_prompts(own())
    assert settle_split(own(), 100_000).data.heldout_share == 0.1
    assert settle_split(own(), 300).data.heldout_share == 0.25
    assert settle_split(own(), 6 * enough).data.heldout_share == pytest.approx(1 / 6, abs=1e-3)
    assert settle_split(own(**{"data.heldout_share": 0.5}), 300).data.heldout_share == 0.5


def test_the_same_file_by_another_path_is_the_same_data(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "other.jsonl").write_bytes(jsonl(ROWS))
    here = provenance.settings(own())
    assert provenance.settings(own(**{"data.source": str(tmp_path / "sub" / "other.jsonl")})) == here
    (tmp_path / "pairs.jsonl").write_bytes(jsonl(ROWS[1:]))
    assert provenance.settings(own()) != here


def test_steps_and_epochs_are_not_both_given() -> None:
    with pytest.raises(UsageError, match=r"train\.steps and train\.epochs are both given"):
        own(**{"train.steps": 3, "train.epochs": 1.0})
