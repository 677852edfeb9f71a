"""What a results folder was made from, and the refusal to go on with anything else, by the name of what differs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from prefopt import durable, environment
from prefopt.config import Config, Variant
from prefopt.errors import UsageError
from prefopt.materials import Materials
from prefopt.redact import portable
from prefopt.results import LOCK, REFERENCE, ResultsFolder, digest, sha256_file

# What may differ between two invocations: names, what is added, and what changes no run.
_FREE: dict[str, Any] = {
    "name": True, "seeds": True, "variants": True, "device": True,
    "train": {"checkpoint_every"}, "evaluation": {"delta"},
}  # fmt: skip
_ABSENT = "-"


def settings(config: Config) -> dict[str, Any]:
    """The sections of a configuration on which every run depends."""
    return config.model_dump(mode="json", exclude=_FREE)


def run_key(config: Config, variant: Variant, device: torch.device) -> dict[str, Any]:
    """What a run is, before anything is loaded: kept in its ``run.json`` and its checkpoints."""
    return {
        "settings": digest(settings(config)),
        "loss": variant.build().spec(),
        "loss_code": loss_code(variant),
        "learning_rate": config.learning_rate(variant),
        "code": environment.code_hash(),
        "packages": digest(environment.packages()),
        "device": digest(environment.device_facts(device)),
    }


def reference_key(config: Config, device: torch.device) -> dict[str, Any]:
    """``run_key`` of the reference's samples, which have no loss."""
    whole = run_key(config, Variant(loss="noop"), device)
    return {key: value for key, value in whole.items() if key not in ("loss", "loss_code", "learning_rate")}


def loss_code(variant: Variant) -> str:
    """Hash of the file that defines a loss of somebody else's; empty for one of ours, which ``code`` covers."""
    file = inspect.getsourcefile(type(variant.build()))
    ours = Path(__file__).parent
    return "" if file is None or Path(file).is_relative_to(ours) else sha256_file(Path(file))[:16]


def facts(config: Config) -> dict[str, Any]:
    """For the manifest: hashes of the code and of the user's files, one by one, so that a change can be named."""
    files = {field: getattr(config.data, field) for field in ("source", "heldout")}
    local = {field: sha256_file(Path(path)) for field, path in files.items() if path and Path(path).is_file()}
    return {"code_files": environment.code_files(), "data_files": local}


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
    _require_same(folder, "packages", before.get("packages", {}), environment.packages())
    _require_same(folder, "device", before.get("device", {}), environment.device_facts(device))
    now = facts(config)
    _require_same(folder, "data file", before.get("data_files", now["data_files"]), now["data_files"])
    _require_same(folder, "code", before.get("code_files", {}), now["code_files"] if "code_files" in before else {})
    _require_same(folder, "hashes", {"code": before.get("hashes", {}).get("code")}, {"code": environment.code_hash()})


def refuse_other_materials(folder: ResultsFolder, materials: Materials) -> None:
    """The same for what can be seen only once model and pairs are loaded.

    Raises:
        UsageError: Naming what differs, with both values.
    """
    if not folder.manifest_path.is_file():
        return
    before = folder.manifest()
    _require_same(folder, "model", {"hash": before["model"]["hash"]}, {"hash": materials.base.hash})
    old, now = before["hashes"], material_hashes(materials)
    _require_same(folder, "hashes", {key: old.get(key, value) for key, value in now.items()}, now)


def material_hashes(materials: Materials) -> dict[str, str]:
    """Hashes of the pairs and of their reference log-probabilities."""
    return {
        "data": materials.data_hash,
        "reference_train": materials.train.reference.hash,
        "reference_heldout": materials.heldout.reference.hash,
    }


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
