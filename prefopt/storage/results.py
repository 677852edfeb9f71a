"""The results folder: its layout, its atomic writes, and its contents as tidy frames.

The only module that knows paths below ``results/<name>/``. Needs no torch. Layout:

    manifest.json                        resolved config, variants, seeds, hashes, packages, device, command
    runs/<variant>/seed-<n>/run.json     written last: says that the run is complete, or diverged, or failed and why
                            history.csv  HISTORY_COLUMNS, a row for each logged step and split
                            pairs.parquet    PAIR_COLUMNS, a row for each held-out pair, after training
                            scores.parquet   SCORE_COLUMNS, a row for each sample on an evaluation prompt
                            sampled.parquet  SAMPLED_COLUMNS, samples on the way, with evaluation.every
                            samples.parquet  SAMPLE_COLUMNS, the text of those samples
                            adapter/     a PEFT folder
                            cost.json    seconds and memory
                            checkpoints/step-<n>/    of a run that is not complete; its newest two
    runs/reference/seed-<n>/scores.parquet, samples.parquet    the reference policy's own samples
    prompts.parquet                      PROMPT_COLUMNS, the evaluation prompts
    judgements.parquet                   JUDGEMENT_COLUMNS
    checksums.json                       SHA-256 of the Parquet files above that no run.json lists
    judge/<judge>/judge.json             what is known about a judge: controls, position, unusable share, problems
    judge/lead.json                      the judge whose verdicts count, where one was chosen
    tuning/                              of a tuned comparison: the folder of its trials, laid out as this one
    trackers/<tracker>/sent.json         hashes of the runs that the tracker has, beside files of its own
    selftest.json                        controls with a known answer, put to the code that makes the report
    tables/ figures/ report.md report.html results.json

``RunRecord`` and ``Manifest`` in ``records`` say what ``run.json`` and ``manifest.json`` hold.

What one command writes twice is equal to the byte, but for ``cost.json``, ``created`` in ``manifest.json``, and what
the report says about cost. JSON that this version writes carries its own SHA-256.

Samples hold text of prompts and models, everything else only numbers, so that a result can be published
without the text: the report is then made without its section of samples.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from prefopt.errors import UsageError
from prefopt.storage.durable import write_bytes
from prefopt.storage.formats import frame_bytes, write_json
from prefopt.storage.hashing import seal, sha256_file, sha256_json
from prefopt.storage.records import Manifest, RunRecord
from prefopt.storage.schema import JUDGEMENT_COLUMNS, SCHEMA

MAX_NAME = 120
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._\[\]=,+@-]{{0,{MAX_NAME - 1}}}")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def is_name(name: str) -> bool:
    """Whether a name is safe as one folder name on any system."""
    return bool(_NAME.fullmatch(name)) and name.lower().split(".")[0] not in _RESERVED and not name.endswith(".")


def check_name(name: str, what: str) -> str:
    """``name`` itself if it is safe as one folder name on any system.

    Raises:
        UsageError: Otherwise, naming ``what`` it was for.
    """
    if not is_name(name):
        raise UsageError(
            f"{what} {name!r} cannot be a folder name: start with a letter or digit, then letters, digits "
            "and . _ - [ ] = , + @ only, at most 120"
        )
    return name


@dataclass(frozen=True)
class ResultsFolder:
    """Paths below one ``results/<name>/`` folder, and typed access to what lies there."""

    root: Path

    def run(self, variant: str, seed: int) -> Path:
        """The folder of one run."""
        return self.root / "runs" / check_name(variant, "variant") / f"seed-{seed}"

    @property
    def selftest_path(self) -> Path:
        """Where ``prefopt selftest --out`` leaves what it found, for the report."""
        return self.root / "selftest.json"

    @property
    def trackers(self) -> Path:
        """Where experiment trackers keep their files, and we what each has been sent."""
        return self.root / "trackers"

    @property
    def manifest_path(self) -> Path:
        """Where the manifest lies."""
        return self.root / "manifest.json"

    def manifest(self) -> Manifest:
        """The manifest.

        Raises:
            UsageError: If there is none, or a newer version of prefopt wrote it.
        """
        return Manifest.from_dict(self.read_json(self.manifest_path), self.manifest_path)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest."""
        write_json(self.manifest_path, seal(manifest.as_dict()))

    def read_json(self, path: Path) -> dict[str, Any]:
        """A JSON object from a file of this folder.

        Raises:
            UsageError: If the file is missing, damaged, or of a newer version of prefopt.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{path} does not exist; is {self.root} the results folder of a comparison?") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as problem:
            raise UsageError(f"{path} is damaged: {problem}; move it away and run the comparison again") from None
        if not isinstance(value, dict):
            raise UsageError(f"{path} is damaged: not a JSON object")
        schema, expected = value.get("schema", 1), value.pop("sha256", None)
        if isinstance(schema, int) and schema > SCHEMA:
            raise UsageError(
                f"{path} has schema {schema}, written by prefopt {value.get('prefopt_version', '?')}; this version "
                f"reads up to {SCHEMA}: install that one"
            )
        if schema not in range(1, SCHEMA + 1):
            raise UsageError(f"{path} has schema {schema!r}, which no version of prefopt wrote; move it away")
        if (expected is not None or schema != 1) and sha256_json(value) != expected:  # version 1 did not seal its files
            raise UsageError(f"{path} is damaged: not as it was written; move it away and run the comparison again")
        return value

    def complete(self, variant: str, seed: int) -> RunRecord | None:
        """The record of a finished run whose files are all there unchanged, else None.

        ``run.json`` lists its files with their SHA-256; ``samples.parquet`` and ``adapter/`` count too.
        """
        return None if self.damage(variant, seed) is not None else self.finished(variant, seed)

    def finished(self, variant: str, seed: int) -> RunRecord | None:
        """The record of a run that is complete or diverged, whatever became of its files since, else None."""
        path = self.run(variant, seed) / "run.json"
        record = self._record(path) if path.is_file() else None
        return record if record is not None and record.has_numbers else None

    def _record(self, path: Path) -> RunRecord:
        return RunRecord.from_dict(self.read_json(path), path)

    def write_record(self, record: RunRecord) -> None:
        """Write a run's ``run.json``, which says durably what became of it: after all its other files."""
        write_json(self.run(record.variant, record.seed) / "run.json", seal(record.as_dict()))

    def damage(self, variant: str, seed: int) -> str | None:
        """What is wrong with the files of a finished run, or None if nothing is, or it is not finished."""
        folder = self.run(variant, seed)
        try:
            record = self.finished(variant, seed)
        except UsageError as problem:
            return str(problem)
        for name, expected in record.files.items() if record is not None else ():
            file = folder / name
            if not file.is_file():
                return f"{file} is missing"
            if sha256_file(file) != expected:
                return f"{file} has other bytes than were written"
        return None

    def runs(self) -> dict[tuple[str, int], RunRecord]:
        """The record of every run by (variant, seed), whether or not its text and adapter are at hand."""
        records = {}
        for path in self._of_runs("run.json"):
            record, cost = self._record(path), path.with_name("cost.json")
            if cost.is_file():
                record = replace(record, cost={k: v for k, v in self.read_json(cost).items() if k != "schema"})
            records[record.variant, record.seed] = record
        return records

    def _of_runs(self, file: str) -> list[Path]:
        """One kind of file of every run, without those of folders that were set aside."""
        paths = self.root.glob(f"runs/*/seed-*/{file}")
        return sorted(path for path in paths if path.parent.name.removeprefix("seed-").isdigit())

    def frames(self, file: str, columns: Iterable[str]) -> pd.DataFrame:
        """One kind of file of every run, concatenated, with columns variant and seed in front.

        Args:
            file: ``history.csv``, ``pairs.parquet``, ``scores.parquet`` or ``samples.parquet``.
            columns: The columns that each must have.

        Raises:
            UsageError: If a file lacks a column or cannot be read.
        """
        wanted = list(columns)
        parts = []
        runs = self._of_runs("run.json")
        listed = {path.with_name(file) for path in runs if file in self._record(path).files}
        for path in sorted({*listed, *self._of_runs(file)}):
            if not path.is_file() and file == "samples.parquet":
                continue  # published without its text
            self._require_unchanged(path)
            try:
                part = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
                part = part[wanted]
            except (KeyError, ValueError, OSError) as problem:
                raise UsageError(f"{path} is damaged: {problem}; delete that run's folder and run again") from None
            part.insert(0, "variant", path.parent.parent.name)
            part.insert(1, "seed", int(path.parent.name.removeprefix("seed-")))
            parts.append(part)
        if not parts:
            return pd.DataFrame(columns=["variant", "seed", *wanted], dtype=float)
        return pd.concat(parts, ignore_index=True)

    def _require_unchanged(self, path: Path) -> None:
        """Refuse a run's file that differs from what its ``run.json`` lists."""
        record = path.with_name("run.json")
        expected = self._record(record).files.get(path.name) if record.is_file() else None
        if expected is not None and not path.is_file():
            raise UsageError(f"{path} is missing; run the comparison again, which redoes that run")
        if expected is not None and sha256_file(path) != expected:
            raise UsageError(f"{path} is damaged: not as it was written; run the comparison again, which redoes it")

    def judgements(self, *, may_be_missing: bool = False) -> pd.DataFrame:
        """``judgements.parquet``, or an empty frame of its columns.

        Args:
            may_be_missing: Take a file that was written once and is gone for an empty one, since it is written next.

        Raises:
            UsageError: If it is damaged or missing.
        """
        path = self.root / "judgements.parquet"
        if not self.check(path.name, may_be_missing=may_be_missing):
            return pd.DataFrame(columns=list(JUDGEMENT_COLUMNS))
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as problem:
            raise UsageError(f"{path} is damaged: {problem}; move it away, compare again, then judge again") from None

    def check(self, name: str, *, may_be_missing: bool = False) -> bool:
        """Whether a Parquet file of the folder's top level is there unchanged.

        Raises:
            UsageError: If it has other bytes, or is missing though it was written once and may not be.
        """
        path = self.root / name
        known = self._checksums().get(name)
        again = "compare again, then judge again" if name == "judgements.parquet" else "compare again"
        if not path.is_file():
            if known is not None and not may_be_missing:
                raise UsageError(f"{path} is missing; {again}")
            return False
        sealed = self.manifest_path.is_file() and self.manifest().schema > 1
        if (known is None and sealed) or (known is not None and sha256_file(path) not in known):
            raise UsageError(f"{path} is damaged: not as it was written; move it away, {again}")
        return True

    def write_frame(self, name: str, frame: pd.DataFrame) -> None:
        """Write a Parquet file of the folder's top level; its checksum comes first, and the old file's still counts."""
        path = self.root / name
        data = frame_bytes(path, frame)
        sums = self._checksums()
        new = hashlib.sha256(data).hexdigest()
        old = {sha256_file(path)} if path.is_file() else set()
        if old == {new} and new in sums.get(name, []):
            return
        unlisted = name not in sums and self.manifest().schema == 1  # an earlier version wrote it
        kept = old if unlisted else old & set(sums.get(name, []))
        write_json(self.root / "checksums.json", seal({"files": {**sums, name: sorted({new, *kept})}}))
        write_bytes(path, data)

    def _checksums(self) -> dict[str, list[str]]:
        path = self.root / "checksums.json"
        sums: dict[str, list[str]] = self.read_json(path)["files"] if path.is_file() else {}
        return sums
