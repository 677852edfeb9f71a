"""Several comparisons in one report: what is shared, what is not, and what a reader must know."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import synthetic

import prefopt
from prefopt.errors import PrefoptError
from prefopt.report import across

BETTER = {"dpo": synthetic.Planted(gain=1.2), "ipo": synthetic.Planted(gain=0.6), "noop": synthetic.Planted()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("across")
    worlds = {
        "films": synthetic.World(variants=BETTER, seeds=3, prompts=20),
        "<i>chat": synthetic.World(variants={**BETTER, "simpo": synthetic.Planted(gain=0.9)}, seeds=5, prompts=20),
    }
    for name, world in worlds.items():
        world.write(root / name, random_state=len(name))
    return [root / name for name in worlds]


@pytest.fixture(scope="module")
def page(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prefopt.across(folders, tmp_path_factory.mktemp("out") / "both")


def test_losses_by_comparisons_with_mean_ranks(page: Path) -> None:
    results = json.loads((page.parent / "results.json").read_text())
    assert results["shared"] == ["dpo", "ipo", "noop"]
    ranks = {row["variant"]: row["rank"] for row in results["losses"]}
    assert ranks["dpo"]["value"] == 1.0
    assert ranks["noop"]["value"] == 3.0
    assert ranks["simpo"] is None, "it is in one of them only"
    table = pd.read_csv(page.parent / "tables" / "losses.csv")
    assert list(table["variant"])[:3] == ["dpo", "ipo", "noop"]
    assert table.set_index("variant").loc["simpo"].isna()["at_0"]
    first = results["improvement"][0]
    assert (first["a"], first["b"]) == ("dpo", "noop")
    assert first["probability"]["value"] == 1.0


def test_the_page_is_whole_and_shows_names_as_text(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "&lt;i&gt;chat" in text
    assert "<i>chat" not in text
    assert "<script" not in text
    assert "Probability of improvement" in text
    markdown = (page.parent / "report.md").read_text(encoding="utf-8")
    assert "mean rank" in markdown
    assert "Fewer than 5 seeds in films" in markdown


def test_the_same_folders_give_the_same_bytes(page: Path, folders: list[Path], tmp_path: Path) -> None:
    again = across.build(folders, tmp_path / "again")
    assert again.read_bytes() == page.read_bytes()


def test_a_loss_that_is_not_the_same_everywhere_is_named(folders: list[Path], tmp_path: Path) -> None:
    shutil.copytree(folders[0], tmp_path / "other" / "films")
    path = tmp_path / "other" / "films" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["variants"][0]["spec"] = {"loss": "dpo", "beta": 0.7}
    path.write_text(json.dumps(manifest))
    out = across.build([folders[0], tmp_path / "other" / "films"], tmp_path / "out").parent
    results = json.loads((out / "results.json").read_text())
    names = [entry["comparison"] for entry in results["comparisons"]]
    assert names == [f"{folders[0].parent.name}/films", "other/films"], "folders of one name are told apart"
    assert any("dpo is not the same everywhere" in caution and "beta=0.7" in caution for caution in results["cautions"])


def test_what_cannot_be_put_together_is_said(folders: list[Path], tmp_path: Path) -> None:
    unjudged = tmp_path / "unjudged"
    synthetic.World(variants={"dpo": synthetic.Planted()}, seeds=2, prompts=5, gold=False).write(unjudged)
    for options, message in (
        ({"folders": [folders[0], folders[0]], "out": tmp_path / "x"}, "is given twice"),
        ({"folders": folders}, "several comparisons: give --out FOLDER"),
        ({"folders": folders[:1], "out": tmp_path / "x"}, "lies in its own folder"),
        ({"folders": folders, "out": folders[0]}, "is a comparison's own folder"),
        ({"folders": [folders[0], unjudged], "out": tmp_path / "x"}, "unjudged: nobody has judged it"),
        ({"folders": [folders[0], tmp_path / "none"], "out": tmp_path / "x"}, "manifest.json does not exist"),
    ):
        with pytest.raises(PrefoptError, match=message):
            prefopt.run("report", **options)
    assert not (tmp_path / "x").exists()
