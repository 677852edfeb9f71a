"""Records of runs and manifests read what they and earlier versions wrote, and refuse what is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import UsageError
from prefopt.storage.conditions import Conditions
from prefopt.storage.hashing import seal
from prefopt.storage.records import Manifest, RunRecord

MADE = sorted((Path(__file__).parents[1] / "fixtures").glob("results-v*"))
NEWEST = MADE[-1]


@pytest.mark.parametrize("path", sorted(NEWEST.rglob("run.json")), ids=lambda path: "/".join(path.parts[-3:-1]))
def test_a_record_is_written_as_it_was_read(path: Path) -> None:
    value = json.loads(path.read_bytes())
    assert seal(RunRecord.from_dict(value, path).as_dict()) == value


@pytest.mark.parametrize("folder", MADE, ids=lambda path: path.name)
def test_a_manifest_is_written_as_it_was_read(folder: Path) -> None:
    path = folder / "manifest.json"
    value = json.loads(path.read_bytes())
    manifest = Manifest.from_dict(value, path)
    assert seal(manifest.as_dict()) == value
    assert manifest.variant_names == ("dpo", "bco")


def record(tmp_path: Path, **fields: Any) -> RunRecord:
    return RunRecord.from_dict(
        {"variant": "dpo", "seed": 0, **fields}, tmp_path / "runs" / "dpo" / "seed-0" / "run.json"
    )


def test_what_the_first_version_left_out_has_its_meaning(tmp_path: Path) -> None:
    run = record(tmp_path, cost={"train_s": 2.0})
    assert run.is_complete
    assert run.has_numbers
    assert run.conditions == Conditions()
    assert run.cost == {"train_s": 2.0}


@pytest.mark.parametrize(
    ("status", "complete", "numbers"), [("complete", True, True), ("diverged", False, True), ("failed", False, False)]
)
def test_what_a_status_means(tmp_path: Path, status: str, complete: bool, numbers: bool) -> None:
    run = record(tmp_path, status=status)
    assert (run.is_complete, run.has_numbers) == (complete, numbers)


def test_fields_of_a_later_version_are_kept(tmp_path: Path) -> None:
    assert record(tmp_path, carbon=3).as_dict()["carbon"] == 3
    assert Manifest.from_dict({"carbon": 3}, tmp_path).as_dict()["carbon"] == 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"status": "perhaps"}, "status is 'perhaps'"),
        ({"conditions": 5}, "conditions is not a JSON object"),
        ({"files": ["a"]}, "files is not a JSON object"),
        ({"diverged_at": "soon"}, "diverged_at is not a whole number or null"),
        ({"seed": 1}, "is of dpo/seed-1: folders of runs keep their names"),
    ],
)
def test_a_damaged_record_is_refused_by_its_field(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        record(tmp_path, **fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"task": None}, "task is not a JSON object"),
        ({"variants": [{}]}, "one of variants has no name"),
        ({"seeds": 3}, "seeds is not a list"),
    ],
)
def test_a_damaged_manifest_is_refused_by_its_field(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=rf"manifest.json is damaged: {said}"):
        Manifest.from_dict(fields, tmp_path / "manifest.json")
