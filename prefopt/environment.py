"""What a result depends on besides its configuration: code, packages, device."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from prefopt.errors import UnequalConditions
from prefopt.results import digest

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "numpy", "scikit-learn", "safetensors", "bitsandbytes")
# What runs after training, on files alone, and cannot change a run.
_READERS = {
    "__main__.py", "catalogue.py", "claims.py", "cli.py", "commands.py", "console.py", "doctor.py", "examples.py",
    "judges", "judging.py", "locks.py", "places.py", "plan.py", "power.py", "report", "selftest", "stats",
    "stopping.py", "supervise.py", "testing.py", "testing_fields.py", "trl_peer.py", "worker.py",
}  # fmt: skip
_NOT_ONLY_READERS = {"stats/texts.py"}  # describes a run's samples when they are drawn


def packages() -> dict[str, str]:
    """Versions of what a run depends on, and of Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def device_facts(device: torch.device) -> dict[str, Any]:
    """Kind, name and threads of the device."""
    if device.type == "cuda":
        return {"kind": "cuda", "name": torch.cuda.get_device_name(device), "threads": torch.get_num_threads()}
    capability = torch.backends.cpu.get_cpu_capability()
    return {"kind": "cpu", "name": f"{_cpu_model()}, {capability}", "threads": torch.get_num_threads()}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@functools.cache
def code_files() -> dict[str, str]:
    """Hashes of this package's sources that decide what a run computes, by path inside the package; read once."""
    root = Path(__file__).parent
    paths = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*.py"))}
    kept = [name for name in paths if name.split("/")[0] not in _READERS or name in _NOT_ONLY_READERS]
    return {name: hashlib.sha256(paths[name].read_bytes()).hexdigest()[:16] for name in kept}


def code_hash() -> str:
    """Hash of all of ``code_files``."""
    return digest(code_files())


def commit() -> str:
    """The checkout's commit, with ``+changes`` where the work tree differs, or an empty string outside one."""
    root = Path(__file__).resolve().parent.parent
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


def require_equal(seed: int, first: str, a: dict[str, str], second: str, b: dict[str, str]) -> None:
    """Refuse two variants of one seed whose conditions differ.

    Raises:
        UnequalConditions: Naming the field and both values.
    """
    for name in sorted(a.keys() | b.keys()):
        if a.get(name) != b.get(name):
            raise UnequalConditions(
                f"seed {seed}: variants {first!r} and {second!r} differ in {name} "
                f"({a.get(name)} / {b.get(name)}); rerun both or drop one"
            )
