"""Level 0 of the self-test: every control passes, in time, and the controls can fail."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from prefopt import stats
from prefopt.selftest import estimators, simulate, statistics, write
from prefopt.selftest.control import Control


def test_all_controls_pass_in_time() -> None:
    start = time.process_time()
    controls = statistics.run_level0()
    assert time.process_time() - start < 60
    failed = [c for c in controls if not c.passed]
    assert not failed, failed
    names = [c.name for c in controls]
    assert len(set(names)) == len(names)
    assert {n.split("/")[0] for n in names} >= {
        "false-positives", "naive", "coverage", "power", "family-wise", "ratings", "length", "kl", "judges", "verdicts",
        "scales",
    }  # fmt: skip


def test_the_band_decides() -> None:
    assert Control("a", "b", 0.05, 0.03, 0.07).passed
    assert not Control("a", "b", 0.08, 0.03, 0.07).passed
    assert not Control("a", "b", float("nan"), 0.0, 1.0).passed
    assert Control("a", "b", 1.0, 0.0, 1.0).as_dict()["passed"] is True


def test_every_control_can_be_written(tmp_path: Path) -> None:
    """Numbers of numpy, too, and one that is none."""
    controls = [*estimators.judges(np.random.default_rng(0)), *statistics.words(np.random.default_rng(0))]
    controls.append(Control("bad", "?", np.float64("nan"), np.float64(0), 1))
    path = write(tmp_path, controls, levels=(0,), seed=3)
    assert path == tmp_path / "selftest.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["controls"]
    assert [row["passed"] for row in rows] == [True] * (len(rows) - 1) + [False]
    assert rows[-1]["value"] is None


def test_a_naive_test_in_place_of_ours_fails_the_control(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of false positives is about the test that it is given, not about the simulation."""

    def pooled(y: np.ndarray, null: float = 0.5) -> np.ndarray:
        z = np.abs(y.mean((1, 2)) - null) / (y.std((1, 2), ddof=1) / np.sqrt(y[0].size))
        return np.where(z > 1.96, 0.01, 0.5)

    monkeypatch.setattr(statistics, "p_values", pooled)
    monkeypatch.setattr(statistics, "REPETITIONS", 1000)
    failed = [c for c in statistics.false_positives(np.random.default_rng(0)) if not c.passed]
    assert any("seed-sd-0.05" in c.name for c in failed)


def test_the_controls_do_not_depend_on_each_other() -> None:
    alone = estimators.judges(np.random.default_rng([0, statistics.PARTS.index(estimators.judges)]))
    assert alone == estimators.judges(np.random.default_rng([0, statistics.PARTS.index(estimators.judges)]))


def test_best_of_mixture_has_the_stated_win_rate() -> None:
    y, truth = simulate.best_of_mixture(
        np.random.default_rng(0), repetitions=1, seeds=400, prompts=400, n=3, share=0.6, spread=0.1
    )
    assert truth == pytest.approx(0.5 + 0.6 * 0.25)
    assert y.mean() == pytest.approx(truth, abs=0.01)


def test_intervals_on_the_plain_scale_fail_the_control(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control is about the scale: without it intervals reach what cannot be."""
    plain = stats.many_two_way
    monkeypatch.setattr(stats, "many_two_way", lambda y, scale: plain(y))
    failed = {c.name for c in estimators.scales(np.random.default_rng(0)) if not c.passed}
    assert {"scales/possible/seeds-3", "scales/possible/seeds-5"} <= failed


def test_tiny_language_by_hand() -> None:
    world = simulate.TinyLanguage(np.random.default_rng(0), vocabulary=2, length=1)
    p, q = np.exp(world.policy[2]), np.exp(world.reference[2])
    assert world.exact_kl() == pytest.approx((p * np.log(p / q)).sum())
    assert world.sample(np.random.default_rng(1), 20_000).mean() == pytest.approx(p[1], abs=0.02)


def test_statistics_need_no_torch() -> None:
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'torch': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from prefopt import stats; from prefopt.selftest import statistics\n"
        "print(stats.two_way([[1.0, 2.0], [3.0, 4.0]]).value)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "2.5", done.stderr


def test_public_names_exist() -> None:
    assert all(hasattr(stats, name) for name in stats.__all__)
