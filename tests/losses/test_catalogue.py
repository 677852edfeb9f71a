from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest

from prefopt import loss_names, make_loss
from prefopt.contract import registry
from prefopt.contract.registry import loss_class
from prefopt.errors import UsageError
from prefopt.losses import catalogue


def test_rows_are_plain_values_of_every_loss() -> None:
    rows = catalogue.catalogue_rows()
    assert {row["name"] for row in rows} == set(loss_names())
    assert json.loads(json.dumps(rows)) == rows
    for row in rows:
        assert row["summary"].endswith("."), row["name"]
        assert "\n" not in row["summary"]
        assert make_loss({"loss": row["name"], **row["defaults"]}) == make_loss(row["name"])
        assert row["arxiv"] or row["name"] in ("cdpo", "mix", "noop", "dpo_flipped"), row["name"]


def test_every_number_has_a_range_and_a_scale() -> None:
    for row in catalogue.catalogue_rows():
        for h in row["hyperparameters"]:
            assert h["meaning"], (row["name"], h["name"])
            free = h["name"] == "terms"  # a sum written out
            assert free or h["choices"] or (h["within"] and len(h["paper"]) == 2), (row["name"], h["name"])


def test_controls_come_last() -> None:
    assert [row["name"] for row in catalogue.catalogue_rows()][-3:] == ["dpo_flipped", "noop", "sft"]


def test_one_loss_in_full() -> None:
    text = catalogue.describe("simpo")
    for part in (
        "loss      = -log sigmoid(reward(y_w) - reward(y_l) - gamma)",
        "gamma_beta_ratio  (default 0.5; in [0, inf); in use 0 to 1)",
        "needs no reference",
        "arXiv:2405.14734, Eq. 6",
        "cpo_alpha = 1 adds an NLL term (our cpo_simpo)",
    ):
        assert part in text
    assert "``" not in text


@pytest.mark.parametrize("name", loss_names())
def test_every_loss_can_be_described(name: str) -> None:
    text = catalogue.describe(name)
    assert text.startswith(f"{name}: ")
    assert "loss" in text
    assert max(map(len, text.splitlines())) <= 120


def test_what_a_loss_reads_is_said() -> None:
    assert "reads single tokens: log_collision, logps" in catalogue.describe("wpo")
    assert "reads chosen_score and rejected_score" in catalogue.describe("odpo")
    assert "mismatched" in catalogue.describe("kto")


def test_a_learning_rate_of_its_own_is_said_with_its_source() -> None:
    for name in ("simpo", "cpo_simpo", "alphapo", "simper", "alpha_dpo"):
        scale = loss_class(name).lr_scale
        text = " ".join(catalogue.describe(name).split())
        assert f"trains at {scale:g} times the comparison's learning rate" in text
        assert f"Learning rate: {scale:g} times DPO's" in text
    others = {name for name in loss_names() if loss_class(name).lr_scale == 1}
    assert len(others) == len(loss_names()) - 5


def test_a_label_describes_its_loss_and_an_unknown_name_is_refused() -> None:
    assert catalogue.describe("dpo[beta=0.2]") == catalogue.describe("dpo")
    assert catalogue.describe("irpo") == catalogue.describe("rpo")
    with pytest.raises(UsageError, match="did you mean dpo"):
        catalogue.describe("dop")


def test_tables_have_a_line_for_each_loss() -> None:
    text, markdown = catalogue.text_table().splitlines(), catalogue.markdown_table().splitlines()
    assert len(text) == 1 + len(loss_names())
    assert len(markdown) == 2 + len(loss_names())
    assert len({line.count("|") for line in markdown}) == 1
    assert "| `dpo` |" in catalogue.markdown_table()
    assert "[2305.18290](https://arxiv.org/abs/2305.18290)" in catalogue.markdown_table()


def test_a_plugin_appears_in_the_catalogue(tmp_path: Path) -> None:
    source = (Path(catalogue.__file__).parent / "controls.py").read_text(encoding="utf-8")
    plugin = tmp_path / "mine.py"
    plugin.write_text(re.sub(r'@register\("(\w+)"\)', r'@register("my_\1")', source), encoding="utf-8")
    registry.load_plugin(str(plugin))
    assert {"my_noop", "my_sft", "my_dpo_flipped"} <= {row["name"] for row in catalogue.catalogue_rows()}


def test_curves_are_those_of_the_losses() -> None:
    gaps, values, slopes = catalogue.loss_curve(make_loss("hinge"), points=25)
    assert gaps[0] == pytest.approx(-6)
    assert values[0] == pytest.approx(7)
    assert values[-1] == 0
    assert slopes[0] == pytest.approx(-1)
    _, values, slopes = catalogue.loss_curve(make_loss("noop"), points=5)
    assert values == slopes == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_picture_of_the_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    few = {name: registry.REGISTRY[name] for name in ("dpo", "kto", "tdpo", "noop", "orpo", "odpo", "bco", "sft")}
    monkeypatch.setattr(registry, "REGISTRY", few)
    catalogue.plot_family(tmp_path / f"family{suffix}")
    head = (tmp_path / f"family{suffix}").read_bytes()[:200]
    assert b"svg" in head or head.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("kto", "each of the 2B responses enters z once"),
        ("wpo", "with one pair a micro-batch the weight is 0 and nothing is learnt; with more it raises"),
        ("rpo", "later ones by that of the response, as here"),
        ("orpo", "unless --disable_prompt_loss is given. Leaving the prompt out is our departure"),
        ("sppo", "half of this, the mean of the two squared errors"),
        ("cal_dpo", "give it a weight of 1/2"),
        ("sampo", "draws the tokens of policy and reference apart"),
        ("focalpo", "detaches the factor p^gamma"),
        ("exo", "has log e = -10 written into it"),
        ("gpo", "ipo_sum times 4 tau^2 where beta = 2 tau"),
        ("fdpo", "the same below e^20, where our tangent begins"),
        ("mpo", "its BCO has no shift"),
    ],
)
def test_how_a_loss_departs_from_its_authors_or_peers_is_said(name: str, said: str) -> None:
    assert said in " ".join(catalogue.describe(name).split())


@pytest.mark.parametrize(
    "label", ["simpo[gamma_beta_ratio=1.0]", "cpo_simpo[gamma_beta_ratio=1.0]", "exo[beta=0.5,label_smoothing=4.5e-5]"]
)
def test_what_authors_use_is_on_the_scale(label: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_loss(label)
