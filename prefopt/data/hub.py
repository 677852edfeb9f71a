"""Reads datasets of the Hugging Face hub as rows. It runs no code, unpacks no archive and guesses no revision."""

from __future__ import annotations

import re

from prefopt.data.parse import Rows
from prefopt.data.problems import show
from prefopt.errors import MachineError, UsageError

HUB_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?(:(?P<split>[\w.-]+))?", re.ASCII
)
# Builders of datasets that only parse data; others may unpickle or run what they find.
_BUILDERS = ("json", "csv", "parquet", "arrow", "text")


def read_hub(name: str, *, revision: str | None, split: str | None) -> Rows:
    """Rows of one split (train unless named), numbered from 1.

    Raises:
        UsageError: If the dataset is not made of plain data files.
        MachineError: If the hub cannot be reached or has no such dataset.
    """
    import datasets

    try:
        builder = datasets.load_dataset_builder(name, revision=revision)
        kind = type(builder).__module__.rpartition(".")[2]
        if kind in _BUILDERS:
            rows = datasets.load_dataset(name, revision=revision, split=split or "train")
    # Dozens of libraries' errors end here: no network, no such name, no rights, no such split.
    except Exception as problem:
        reason = str(problem).split("\n", maxsplit=1)[0] or type(problem).__name__
        raise MachineError(
            f"dataset {name} cannot be had from the hub: {show(reason, 200)}; check name, revision, split, network "
            "and rights, or give a local file"
        ) from None
    if kind not in _BUILDERS:
        raise UsageError(f"dataset {name} is read by {show(kind)}; only {', '.join(_BUILDERS)} files are: download it")
    return ((number, dict(row)) for number, row in enumerate(rows, start=1))
