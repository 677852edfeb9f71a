"""The speed script runs from end to end on a tiny model; what it measures is for a quiet machine and not tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

SECTIONS = "gemm,parity,speed,variants,decode"

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.speed import ablate, cases, ours, render

    return type("Speed", (), {"ablate": ablate, "cases": cases, "ours": ours, "render": render})


@pytest.mark.slow
def test_a_quick_run_shows_parity_and_writes_its_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.speed", "--device", "cpu", "--quick", "--shape", "tiny"]
    done = subprocess.run(
        [*command, "--sections", SECTIONS, "--out", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    parity = pd.read_csv(tmp_path / "parity.csv")
    assert parity.ok.all()
    assert set(parity.quantity) == {"loss", "1 - gradient cosine", "gradient norm"}
    exact = parity[(parity["dtype"] == "float32") & (parity.quantity == "loss")]
    assert (exact.difference.abs() < 1e-5).all()
    assert exact.trl.nunique() > 1  # the curve moves: the two sides train, not only agree at the start
    rows = pd.read_csv(tmp_path / "speed.csv")
    assert {"trl default", "trl tuned", "prefopt"} <= set(rows.row)
    assert (rows.pairs_per_s > 0).all()
    assert list(json.loads((tmp_path / "manifest.json").read_text())["sections"]) == sorted(SECTIONS.split(","))
    page = (tmp_path / "speed.md").read_text()
    assert "A quick run" in page
    assert "| trl tuned |" in page
    assert {path.name for path in (tmp_path / "figures").iterdir()} >= {"speed.svg", "speed.png", "parity.svg"}


def test_every_saving_turned_off_computes_the_same(speed: Any) -> None:
    case = speed.cases.Case(shape="tiny", dtype="float32", pairs=4, prompt=9, response=7, n_pairs=8)
    side = speed.ours.Side(case, 1)
    start = side.model.adapters.params.clone()

    def gradient(without: str) -> torch.Tensor:
        side.model.adapters.params.copy_(start)
        with speed.ablate.without(without, side):
            options = speed.ablate.OPTIONS.get(without, {})
            side.group(["dpo"], lambda step: None, steps=2, max_grad_norm=1e9, **options)
        return side.model.adapters.grads[0].clone()

    wanted = gradient("")
    assert wanted.norm() > 0
    for name in speed.ablate.SAVINGS:
        torch.testing.assert_close(gradient(name), wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()), msg=name)
    torch.testing.assert_close(gradient(""), wanted)  # and each is on again afterwards


def test_useful_arithmetic_by_hand(speed: Any) -> None:
    case = speed.cases.Case(shape="tiny", prompt=10, response=20, jitter=0.0, n_pairs=2)
    # A layer: q and o 64 x 64, k and v (2 of 4 heads) 64 x 32, and three of 64 x 128.
    backbone = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    head = 64 * 256
    wanted = 4 * (backbone * (10 + 20 + 20) + head * (20 + 20)) / 1e12
    assert speed.cases.useful_tflop(case) == pytest.approx(wanted, rel=1e-12)
    assert speed.cases.mean_tokens(speed.cases.make_pairs(case)) == (50.0, 40.0)


def test_a_parity_row_out_of_tolerance_is_refused(speed: Any) -> None:
    from benchmarks.speed import sections
    from prefopt.errors import ClaimError

    good = sections.parity_row("float32", "loss", 1, 0.7, 0.7, 0.0, 1e-4)
    sections.check_parity([good])
    with pytest.raises(ClaimError, match="loss at step 2"):
        sections.check_parity([good, sections.parity_row("float32", "loss", 2, 0.7, 0.701, 1e-3, 1e-4)])
    with pytest.raises(ClaimError):
        sections.check_parity([sections.parity_row("float32", "loss", 3, 0.7, float("nan"), float("nan"), 1e-4)])
