"""Examples in docstrings, run: they are the shortest way to say what a function does, as long as they are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import prefopt.contract
import prefopt.stats

MODULES = [
    f"{package.__name__}.{module.name}"
    for package in (prefopt.contract, prefopt.stats)
    for module in pkgutil.iter_modules(package.__path__)
] + ["prefopt.runtime.seeding", "prefopt.tuning.space"]
WITH_EXAMPLES = {
    "prefopt.contract.labels", "prefopt.contract.loss", "prefopt.contract.registry", "prefopt.runtime.seeding",
    "prefopt.stats.scales", "prefopt.stats.tuning", "prefopt.tuning.space",
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
    assert result.attempted or name not in WITH_EXAMPLES


def test_stats_is_explained_by_examples() -> None:
    finder = doctest.DocTestFinder()
    modules = [importlib.import_module(name) for name in MODULES if name.startswith("prefopt.stats.")]
    assert sum(bool(test.examples) for module in modules for test in finder.find(module)) >= 10
