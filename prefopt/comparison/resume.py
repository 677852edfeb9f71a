"""Continues a results folder: mends it, asks what is missing, and refuses it if it holds another experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from prefopt.comparison import provenance, record
from prefopt.config.schema import Config, Variant
from prefopt.errors import UsageError
from prefopt.prepare.materials import Materials
from prefopt.runtime.device import device_facts
from prefopt.runtime.progress import Progress
from prefopt.storage import durable
from prefopt.storage.records import Manifest
from prefopt.storage.redact import portable
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import LOCK, REFERENCE, TUNING


def mend(folder: ResultsFolder, config: Config, device: torch.device, progress: Progress) -> None:
    """Leave every run of the comparison either whole or missing.

    Runs with damaged files are set aside, and checkpoints that a killed process left in finished runs are removed.

    Raises:
        UsageError: If a finished run of that name is there and is not this comparison's.
    """
    for variant in (*config.variants, None):
        name = variant.name if variant else REFERENCE
        key = provenance.run_key(config, variant, device) if variant else provenance.reference_key(config, device)
        for seed in config.seeds:
            if (damage := folder.damage(name, seed)) is not None:
                record.set_aside(folder, name, seed, damage, progress)
            elif (run := folder.finished(name, seed)) is not None:
                _require_same_run(folder, name, seed, run.key, key)
                record.drop_checkpoints(folder, name, seed)


def missing(folder: ResultsFolder, config: Config, seed: int) -> list[Variant | None]:
    """The variants of one seed that have not finished; None stands for the reference."""
    return [v for v in (*config.variants, None) if folder.finished(v.name if v else REFERENCE, seed) is None]


def manifest_before(folder: ResultsFolder) -> Manifest | None:
    """What the folder was made of, or None where nothing was made yet."""
    return folder.manifest() if folder.manifest_path.is_file() else None


_ABSENT = "-"


def refuse_other(folder: ResultsFolder, config: Config, device: torch.device) -> None:
    """Refuse a folder that holds another experiment under the same name, before anything is loaded or written.

    Variants, seeds and the report's settings may be added; what every run depends on may not change.

    Raises:
        UsageError: Naming the first thing that differs, with both values.
    """
    refuse_other_settings(folder, config)
    before = manifest_before(folder)
    if before is None:
        return
    _require_same(folder, "packages", before.packages, provenance.packages())
    _require_same(folder, "device", before.device, device_facts(device))
    if before.data_files is not None:
        _require_same(folder, "data file", before.data_files, provenance.data_files(config))
    if before.code_files is not None:
        _require_same(folder, "code", before.code_files, provenance.code_files())
    _require_same(folder, "hashes", {"code": before.hashes.get("code")}, {"code": provenance.code_hash()})


# What a comparison puts into its folder before anything of it is finished: it goes on from there, or writes it anew.
_BEGUN = (LOCK, TUNING, "runs", "prompts.parquet", "judgements.parquet", "checksums.json")


def _refuse_foreign(folder: ResultsFolder) -> None:
    """Refuse a folder without a manifest that holds more than the beginnings of runs.

    Raises:
        UsageError: Naming what it holds.
    """
    for path in folder.root.glob("*"):
        if not durable.is_temporary(path) and path.name not in _BEGUN:
            raise UsageError(
                f"{folder.root} holds files that prefopt did not write, such as {path.name!r}; choose another --name"
            )
    for path in folder.root.glob("runs/*/*/run.json"):
        raise UsageError(
            f"{folder.root} has lost its manifest.json, and holds finished runs such as {path.parent}; put the "
            "manifest back, or move the folder away, or choose another --name"
        )


def refuse_other_settings(folder: ResultsFolder, config: Config) -> None:
    """The part of ``refuse_other`` that needs no device: settings, and files that are not a comparison's.

    Raises:
        UsageError: Naming the first setting that differs, with both values.
    """
    before = manifest_before(folder)
    if before is None:
        _refuse_foreign(folder)
        return
    stored = provenance.settings_before(before)
    for section, values in provenance.settings(config).items():
        old = stored.get(section, {})
        _require_same(folder, section, {key: old.get(key, value) for key, value in values.items()}, values)


def refuse_other_materials(folder: ResultsFolder, materials: Materials) -> None:
    """The same for what can be seen only once model and pairs are loaded.

    Raises:
        UsageError: Naming what differs, with both values.
    """
    before = manifest_before(folder)
    if before is None:
        return
    _require_same(folder, "model", {"hash": before.model.get("hash")}, {"hash": materials.model.base.hash})
    now = provenance.material_hashes(materials)
    _require_same(folder, "hashes", {key: before.hashes.get(key, value) for key, value in now.items()}, now)


def _require_same_run(
    folder: ResultsFolder, name: str, seed: int, stored: Mapping[str, Any], key: Mapping[str, Any]
) -> None:
    """Refuse a finished run that was made from something else than is asked for now.

    Raises:
        UsageError: Naming what differs, with both values.
    """
    if name == REFERENCE:
        stored = {field: stored.get(field, _ABSENT) for field in key}
    _require_same(folder, f"{name} seed {seed}", stored, key)


def _require_same(folder: ResultsFolder, what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for field, before, now in _differences(_portable(old), _portable(new)):
        raise UsageError(
            f"{folder.root} was made with {what}.{field} = {before!r}, and now it is {now!r}; "
            "give another --name, or move the old folder away"
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for field in sorted(old.keys() | new.keys()):
        if old.get(field, _ABSENT) != new.get(field, _ABSENT):
            yield field, old.get(field, _ABSENT), new.get(field, _ABSENT)


def _portable(value: Any) -> Any:
    """``value`` with every text as it may be written into a manifest."""
    if isinstance(value, Mapping):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(item) for item in value]
    return portable(value) if isinstance(value, str) else value
