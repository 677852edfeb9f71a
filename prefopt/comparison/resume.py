"""What a results folder was made from, what of it is missing, and the refusal to go on with anything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from prefopt.comparison import provenance, record, resume
from prefopt.comparison.provenance import facts, material_hashes, settings
from prefopt.config.schema import Config, Variant
from prefopt.errors import UsageError
from prefopt.prepare.materials import Materials
from prefopt.runtime.device import device_facts
from prefopt.runtime.progress import Progress
from prefopt.storage import durable
from prefopt.storage.redact import portable
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import LOCK, REFERENCE


def missing(
    folder: ResultsFolder, config: Config, device: torch.device, progress: Progress
) -> list[tuple[Variant | None, int]]:
    """What is not in the folder yet, None for the reference; damaged runs are set aside, leftovers removed.

    Raises:
        UsageError: If a run of that name is there and is not this one.
    """
    found: list[tuple[Variant | None, int]] = []
    for seed in config.seeds:
        for variant in (*config.variants, None):
            name = variant.name if variant else REFERENCE
            if (damage := folder.damage(name, seed)) is not None:
                record.set_aside(folder, name, seed, damage, progress)
            run = folder.finished(name, seed)
            if run is None:
                found.append((variant, seed))
                continue
            key = provenance.run_key(config, variant, device) if variant else provenance.reference_key(config, device)
            resume.require_same_run(folder, name, seed, run.get("key", {}), key)
            record.drop_checkpoints(folder, name, seed)
    return found


_ABSENT = "-"


def refuse_other(folder: ResultsFolder, config: Config, device: torch.device) -> None:
    """Refuse a folder that holds another experiment under the same name, before anything is loaded or written.

    Variants, seeds and the report's settings may be added; what every run depends on may not change.

    Raises:
        UsageError: Naming the first thing that differs, with both values.
    """
    if not folder.manifest_path.is_file():
        foreign = [path for path in folder.root.glob("*") if not durable.is_temporary(path) and path.name != LOCK]
        if foreign:
            raise UsageError(f"{folder.root} holds files that prefopt did not write; choose another --name")
        return
    before = folder.manifest()
    now = settings(config)
    old = {section: before.get("config", {}).get(section, {}) for section in now}
    for section, values in now.items():
        _require_same(folder, section, {key: old[section].get(key, value) for key, value in values.items()}, values)
    _require_same(folder, "packages", before.get("packages", {}), provenance.packages())
    _require_same(folder, "device", before.get("device", {}), device_facts(device))
    now = facts(config)
    _require_same(folder, "data file", before.get("data_files", now["data_files"]), now["data_files"])
    _require_same(folder, "code", before.get("code_files", {}), now["code_files"] if "code_files" in before else {})
    _require_same(folder, "hashes", {"code": before.get("hashes", {}).get("code")}, {"code": provenance.code_hash()})


def refuse_other_materials(folder: ResultsFolder, materials: Materials) -> None:
    """The same for what can be seen only once model and pairs are loaded.

    Raises:
        UsageError: Naming what differs, with both values.
    """
    if not folder.manifest_path.is_file():
        return
    before = folder.manifest()
    _require_same(folder, "model", {"hash": before["model"]["hash"]}, {"hash": materials.model.base.hash})
    old, now = before["hashes"], material_hashes(materials)
    _require_same(folder, "hashes", {key: old.get(key, value) for key, value in now.items()}, now)


def require_same_run(
    folder: ResultsFolder, name: str, seed: int, stored: Mapping[str, Any], key: dict[str, Any]
) -> None:
    """Refuse to take a finished run for one that it is not.

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
    """``value`` with every text as a manifest may hold it."""
    if isinstance(value, Mapping):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(item) for item in value]
    return portable(value) if isinstance(value, str) else value
