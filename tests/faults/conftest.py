from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rig import Rig

SEED = int(os.environ.get("PREFOPT_FAULT_SEED", "20261"))


@pytest.fixture
def seed() -> int:
    """Of everything random; it is printed, and PREFOPT_FAULT_SEED replays it or tries another."""
    print(f"PREFOPT_FAULT_SEED={SEED}")
    return SEED


@contextmanager
def empty() -> Iterator[Path]:
    """An empty folder, in memory where there is such a thing: trials write thousands of times."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="prefopt-faults-", dir=memory if os.access(memory, os.W_OK) else None))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def place() -> Iterator[Path]:
    with empty() as path:
        yield path


@pytest.fixture(scope="session")
def rig() -> Iterator[Rig]:
    with empty() as path:
        yield Rig(path)
