"""What the hash of the code covers: every room that can change a run, and nothing else."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from test_architecture import FILES, ours, room

from prefopt import ChosenRejected, Loss, PairLogps, loss_names, register
from prefopt.comparison import provenance
from prefopt.config.schema import Variant

# What a run calls of rooms that are not hashed: a check that refuses, and verdicts that are made of finished samples.
ALLOWED = {"prefopt.testing", "prefopt.judges.gold"}


def test_every_room_is_hashed_or_named_as_a_reader() -> None:
    labelling = set(provenance.LABELLERS)  # files of a reader's room that make training data
    hashed = {name.split("/")[0] for name in provenance.code_files() if name not in labelling}
    entries = {
        path.name for path in provenance.ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert hashed | set(provenance.READERS) == entries
    assert not hashed & set(provenance.READERS)


@pytest.mark.parametrize(
    "name",
    [
        "__init__.py", "errors.py", "comparison/seed_group.py", "config/schema.py", "contract/loss.py",
        "data/encode.py", "evaluate/samples.py", "losses/dpo.py", "model/adapters.py", "prepare/onpolicy.py",
        "runtime/seeding.py", "storage/hashing.py", "tasks/imdb.py", "train/step.py",
    ],
)  # fmt: skip
def test_files_that_change_a_run_are_hashed(name: str) -> None:
    assert len(provenance.code_files()[name]) == 16


def test_hashed_rooms_do_not_rest_on_readers() -> None:
    """What a hashed file imports is hashed, too, so that no change of a run goes unseen."""
    labelling = {f"prefopt.{file[:-3].replace('/', '.').removesuffix('.__init__')}" for file in provenance.LABELLERS}
    for name, path in FILES.items():
        if room(name) in {Path(reader).stem for reader in provenance.READERS}:
            continue
        unseen = {target for target in ours(path) - labelling if room(target) in provenance.READERS}
        assert unseen <= ALLOWED, f"{name} imports {sorted(unseen - ALLOWED)}"


@pytest.mark.parametrize("label", loss_names())
def test_a_loss_of_the_package_has_no_code_of_its_own(label: str) -> None:
    assert provenance.loss_code(Variant(loss=label)) == ""


def test_the_file_of_a_loss_of_somebody_else_is_hashed() -> None:
    @register("elsewhere")
    @dataclass(frozen=True)
    class Elsewhere(Loss):
        """Defined in this test."""

        source = "test"
        needs_reference = True
        length_normalized = False

        def rewards(self, logps: PairLogps) -> ChosenRejected:
            return logps.logratios()

        def __call__(self, logps: PairLogps) -> torch.Tensor:
            return -self.rewards(logps).margin

    assert len(provenance.loss_code(Variant(loss="elsewhere"))) == 16


def test_the_commit_is_that_of_the_checkout() -> None:
    root = provenance.ROOT.parent
    if not (root / ".git").exists():
        pytest.skip("the package is not in a checkout")
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert provenance.commit().removesuffix("+changes") == head.stdout.strip()
