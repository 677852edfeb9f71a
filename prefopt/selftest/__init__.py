"""Controls whose right answer is known beforehand, run against the code that makes the report.

``statistics`` is level 0: seconds, simulated data, no torch. ``training`` is level 1: a minute, a tiny model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import prefopt
from prefopt.selftest.control import Control
from prefopt.storage.formats import write_json
from prefopt.storage.results import ResultsFolder

__all__ = ["Control", "as_text", "run_levels", "write", "written"]


def run_levels(levels: Sequence[int], *, seed: int = 0) -> list[Control]:
    """All controls of some levels.

    Args:
        levels: Of 0 and 1.
        seed: Of simulations and training.
    """
    controls: list[Control] = []
    if 0 in levels:
        from prefopt.selftest.statistics import run_level0

        controls += run_level0(seed)
    if 1 in levels:
        from prefopt.selftest.training import run_level1

        controls += run_level1(seed)
    return controls


def write(out: Path, controls: Sequence[Control], *, levels: Sequence[int], seed: int) -> Path:
    """Write the outcome as JSON, into a results folder for its report to show, or to a file.

    Args:
        out: A results folder, or the file to write.
        controls: From ``run_levels``.
        levels: That were run.
        seed: As given to ``run_levels``.

    Returns:
        The file.
    """
    path = _place(out)
    write_json(path, {**_key(levels, seed), "controls": [control.as_dict() for control in controls]})
    return path


def written(out: Path, *, levels: Sequence[int], seed: int) -> list[Control] | None:
    """The controls in a file that ``write`` made for the same question and the same code, or None.

    Args:
        out: A results folder, or a file.
        levels: That are asked for.
        seed: Of simulations and training.
    """
    try:
        facts = json.loads(_place(out).read_text(encoding="utf-8"))
        if {name: facts.get(name) for name in _KEY} != _key(levels, seed):
            return None
        return [Control.from_dict(row) for row in facts["controls"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not there, or not as it was written: the controls are run again


_KEY = ("levels", "seed", "prefopt_version", "code")


def _key(levels: Sequence[int], seed: int) -> dict[str, Any]:
    """What the outcome depends on: the question, and every source file of this package."""
    total = hashlib.sha256()
    root = Path(prefopt.__file__).parent
    for path in sorted(root.rglob("*.py")):
        total.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    values = (list(levels), seed, prefopt.__version__, total.hexdigest()[:16])
    return dict(zip(_KEY, values, strict=True))


def _place(out: Path) -> Path:
    return ResultsFolder(out).selftest_path if out.is_dir() else out


def as_text(controls: Sequence[Control]) -> str:
    """A line for each control, and how many passed."""
    width = max((len(control.name) for control in controls), default=0)
    lines = [
        f"{'ok  ' if c.passed else 'FAIL'} {c.name:{width}}  {c.value:>10.4g}  in [{c.low:.4g}, {c.high:.4g}]"
        for c in controls
    ]
    return "\n".join([*lines, f"{sum(c.passed for c in controls)} of {len(controls)} controls pass"])
