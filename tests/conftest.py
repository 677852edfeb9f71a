from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

import prefopt.losses  # noqa: F401 - some tests name losses before they import anything that knows them
from prefopt.contract import registry
from prefopt.model.base import Base, load_base

# Side by side, each process has a core: two threads each would wait for one another.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1))

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's cache out of the tests, except for the converted embedded model, which takes long to make."""
    os.environ.setdefault("PREFOPT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses that a test registers are gone after it."""
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random model by kind, made once."""
    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = tiny.save(tmp_path_factory.mktemp(kind), kind)
        return folders[kind]

    return folder


@pytest.fixture
def tiny_base(tiny_folder: Callable[[str], Path]) -> Callable[..., Base]:
    """A fresh tiny base by kind: adapters wrap its layers, so tests do not share it."""

    def load(kind: str = "llama", dtype: str = "float32") -> Base:
        return load_base(str(tiny_folder(kind)), dtype=dtype, device=torch.device("cpu"))

    return load


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that use it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real data are not at {SHARED}")
    return SHARED
