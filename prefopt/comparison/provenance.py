"""What a result depends on: settings, loss, code, packages, device, and the user's files."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import prefopt
from prefopt.comparison import provenance
from prefopt.config.schema import Config, Variant
from prefopt.prepare.materials import Materials
from prefopt.runtime.device import device_facts
from prefopt.storage.hashing import digest, sha256_file

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "numpy", "scikit-learn", "safetensors", "bitsandbytes")
ROOT = Path(prefopt.__file__).resolve().parent
# Rooms that start a run, check a loss before it, or read files after it: they cannot change what a run computes.
READERS = ("__main__.py", "analysis", "cli", "judges", "launch", "report", "selftest", "stats", "testing")


def packages() -> dict[str, str]:
    """Versions of what a run depends on, and of Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@functools.cache
def code_files() -> dict[str, str]:
    """Hashes of this package's sources that decide what a run computes, by path inside the package; read once."""
    paths = {path.relative_to(ROOT): path for path in sorted(ROOT.rglob("*.py"))}
    return {
        name.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for name, path in paths.items()
        if name.parts[0] not in READERS
    }


def code_hash() -> str:
    """Hash of all of ``code_files``."""
    return digest(code_files())


def commit() -> str:
    """The checkout's commit, with ``+changes`` where the work tree differs, or an empty string outside one."""
    root = ROOT.parent
    if not (root / ".git").exists():
        return ""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return done.stdout.strip()

    head = git("rev-parse", "HEAD")
    return head + ("+changes" if head and git("status", "--porcelain", "--", "prefopt") else "")


def conditions(
    *, data: str, pair_order: str, initial_adapter: str, reference: str, evaluation: str, device: torch.device
) -> dict[str, str]:
    """What must be equal for every variant of one seed, as hashes."""
    return {
        "data": data,
        "pair_order": pair_order,
        "initial_adapter": initial_adapter,
        "reference": reference,
        "evaluation": evaluation,
        "code": code_hash(),
        "packages": digest(packages()),
        "device": digest(device_facts(device)),
    }


# What may differ between two invocations: names, what is added, and what changes no run.
_FREE: dict[str, Any] = {
    "name": True, "seeds": True, "variants": True, "device": True,
    "train": {"checkpoint_every"}, "evaluation": {"delta"},
}  # fmt: skip


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
        "code": provenance.code_hash(),
        "packages": digest(provenance.packages()),
        "device": digest(device_facts(device)),
    }


def reference_key(config: Config, device: torch.device) -> dict[str, Any]:
    """``run_key`` of the reference's samples, which have no loss."""
    whole = run_key(config, Variant(loss="noop"), device)
    return {key: value for key, value in whole.items() if key not in ("loss", "loss_code", "learning_rate")}


def loss_code(variant: Variant) -> str:
    """Hash of the file that defines a loss of somebody else's; empty for one of ours, which ``code`` covers."""
    file = inspect.getsourcefile(type(variant.build()))
    return "" if file is None or Path(file).resolve().is_relative_to(ROOT) else sha256_file(Path(file))[:16]


def facts(config: Config) -> dict[str, Any]:
    """For the manifest: hashes of the code and of the user's files, one by one, so that a change can be named."""
    files = {field: getattr(config.data, field) for field in ("source", "heldout")}
    local = {field: sha256_file(Path(path)) for field, path in files.items() if path and Path(path).is_file()}
    return {"code_files": provenance.code_files(), "data_files": local}


def material_hashes(materials: Materials) -> dict[str, str]:
    """Hashes of the pairs and of their reference log-probabilities."""
    return {
        "data": materials.data_hash,
        "reference_train": materials.train.reference.hash,
        "reference_heldout": materials.heldout.reference.hash,
    }
