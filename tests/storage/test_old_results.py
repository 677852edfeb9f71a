"""Results folders that versions of this project made are read by this one, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from prefopt.analysis.load import load
from prefopt.errors import UsageError
from prefopt.report import build
from prefopt.storage.formats import write_json
from prefopt.storage.hashing import seal
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import SCHEMA

FIXTURES = Path(__file__).parents[1] / "fixtures"
MADE = sorted(FIXTURES.glob("results-v*"))


def test_this_version_has_left_a_folder() -> None:
    """With a new schema: python tests/fixtures/make_results.py, and keep the old ones."""
    assert FIXTURES / f"results-v{SCHEMA}" in MADE
    assert all(sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) < 300_000 for path in MADE)


@pytest.fixture(params=MADE, ids=lambda path: path.name)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.param, tmp_path / "mine"))


def test_it_is_read_and_reported(old: Path) -> None:
    folder = ResultsFolder(old)
    assert all(folder.damage(*run) is None for run in folder.runs())
    comparison = load(old)
    assert comparison.variants == ("dpo", "bco")
    assert comparison.seeds == (0, 1)
    assert all(comparison.is_complete(variant) for variant in comparison.variants)
    assert comparison.judges() == ["oracle"]
    assert len(comparison.samples) == len(comparison.scores) == 2 * 2 * 4 + 2 * 4
    page = build(old).read_text(encoding="utf-8")
    assert "dpo" in page
    board = pd.read_csv(old / "tables" / "leaderboard.csv")
    assert set(board["variant"]) >= {"dpo", "bco"}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (
            SCHEMA + 1,
            rf"manifest.json has schema {SCHEMA + 1}, written by prefopt .*; this version reads up to {SCHEMA}",
        ),
        (0, "manifest.json has schema 0, which no version of prefopt wrote"),
    ],
)
def test_an_unknown_schema_is_refused_by_name(old: Path, schema: int, said: str) -> None:
    path = old / "manifest.json"
    value: dict[str, Any] = {**json.loads(path.read_bytes()), "schema": schema}
    write_json(path, value)
    before = {p: p.read_bytes() for p in old.rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match=said):
        build(old)
    assert {p: p.read_bytes() for p in old.rglob("*") if p.is_file()} == before


def test_a_record_without_its_seal_is_refused(old: Path) -> None:
    path = old / "runs" / "dpo" / "seed-0" / "run.json"
    value = json.loads(path.read_bytes())
    write_json(path, seal({**value, "steps": 4}))
    load(old)
    del value["sha256"]
    write_json(path, value)
    with pytest.raises(UsageError, match=r"run\.json is damaged: not as it was written"):
        load(old)
