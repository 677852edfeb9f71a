"""The results folder: names, atomic writes, completeness, schema."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from prefopt.errors import MachineError, UsageError
from prefopt.storage import durable
from prefopt.storage.durable import write_bytes
from prefopt.storage.formats import write_frame, write_json
from prefopt.storage.hashing import file_hashes
from prefopt.storage.results import ResultsFolder, check_name


@pytest.mark.parametrize("name", ["imdb", "simpo[beta=2.5]", "a.b-c_d+e", "x" * 120])
def test_good_names_pass(name: str) -> None:
    assert check_name(name, "name") == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/abs", "a/b", "a\\b", "-rf", "CON", "nul.txt", "a\0", "x" * 121, "a b", "a.", "é"]
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a folder name"):
        check_name(name, "name")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content_and_no_litter(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, failing, fail)
    with pytest.raises(MachineError, match="No space left on device"):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_run_is_complete_only_with_all_its_files_unchanged(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    run = folder.run("dpo", 0)
    write_bytes(run / "adapter" / "weights", b"abc")
    write_frame(run / "scores.parquet", pd.DataFrame({"a": [1]}))
    assert folder.complete("dpo", 0) is None
    hashes = dict(file_hashes(run, ["scores.parquet", "adapter"]))
    assert set(hashes) == {"scores.parquet", "adapter/weights"}
    write_json(run / "run.json", {"variant": "dpo", "seed": 0, "files": hashes})
    assert folder.complete("dpo", 0) is not None
    (run / "adapter" / "weights").write_bytes(b"abd")
    assert folder.complete("dpo", 0) is None
    assert ("dpo", 0) in folder.runs()


def test_not_a_number_is_never_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_newer_schema_is_refused_by_name(tmp_path: Path) -> None:
    write_json(tmp_path / "manifest.json", {"schema": 99, "prefopt_version": "9.1"})
    with pytest.raises(UsageError, match=r"written by prefopt 9\.1"):
        ResultsFolder(tmp_path).manifest()


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_damaged_manifest_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match="is damaged"):
        ResultsFolder(tmp_path).manifest()


def test_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is .* the results folder of a comparison"):
        ResultsFolder(tmp_path / "none").manifest()


def test_frames_carry_variant_and_seed(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    for seed in (0, 1):
        write_frame(folder.run("dpo", seed) / "history.csv", pd.DataFrame({"step": [0, 1]}))
    frame = folder.frames("history.csv", ["step"])
    assert frame["seed"].tolist() == [0, 0, 1, 1]
    with pytest.raises(UsageError, match="is damaged"):
        folder.frames("history.csv", ["loss"])
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
