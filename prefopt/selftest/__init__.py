"""Controls whose right answer is known beforehand, run against the code that makes the report.

``statistics`` is level 0: seconds, simulated data, no torch. ``training`` is level 1: a minute, a tiny model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefopt.selftest.control import Control
from prefopt.storage.formats import write_json
from prefopt.storage.results import ResultsFolder

__all__ = ["Control", "as_text", "run_levels", "write"]


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


def write(out: Path, controls: Sequence[Control], *, levels: Sequence[int], seed: int, version: str) -> Path:
    """Write the outcome as JSON, into a results folder for its report to show, or to a file.

    Args:
        out: A results folder, or the file to write.
        controls: From ``run_levels``.
        levels: That were run.
        seed: As given to ``run_levels``.
        version: Of prefopt.

    Returns:
        The file.
    """
    path = ResultsFolder(out).selftest_path if out.is_dir() else out
    facts = {"levels": list(levels), "seed": seed, "prefopt_version": version}
    write_json(path, {**facts, "controls": [control.as_dict() for control in controls]})
    return path


def as_text(controls: Sequence[Control]) -> str:
    """A line for each control, and how many passed."""
    width = max((len(control.name) for control in controls), default=0)
    lines = [
        f"{'ok  ' if c.passed else 'FAIL'} {c.name:{width}}  {c.value:>10.4g}  in [{c.low:.4g}, {c.high:.4g}]"
        for c in controls
    ]
    return "\n".join([*lines, f"{sum(c.passed for c in controls)} of {len(controls)} controls pass"])
