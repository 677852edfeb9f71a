from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from prefopt.contract.registry import loss_names
from prefopt.testing import parity


def test_without_trl_every_loss_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "trl_version", lambda: None)
    rows = parity.report_rows()
    assert {row["loss"] for row in rows} == set(loss_names())
    assert {row["verdict"] for row in rows} == {"not there"}
    assert {row["why"] for row in rows} == {"TRL is not installed"}


def test_importing_the_doctor_does_not_import_trl() -> None:
    code = "import prefopt.testing.parity, sys; sys.exit('trl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_peer_that_fails_is_a_row_and_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(given: parity.Responses) -> None:
        raise AttributeError("gone since 1.17\nand more")

    monkeypatch.setattr(parity, "CASES", (dataclasses.replace(parity.CASES[0], run=broken),))
    monkeypatch.setattr(parity, "trl_version", lambda: "9.9")
    row = parity.report_rows()[0]
    assert (row["verdict"], row["why"]) == ("cannot run", "AttributeError: gone since 1.17")


def test_an_unknown_difference_is_reported_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = parity.CASES[0]
    peer = dataclasses.replace(ours, run=lambda given: 2 * parity.our_value(parity.make_loss("dpo"), given))
    monkeypatch.setattr(parity, "CASES", (peer, dataclasses.replace(peer, run=lambda g: peer.run(g) / 2)))
    monkeypatch.setattr(parity, "trl_version", lambda: "9.9")
    twice, once = parity.report_rows()[:2]
    assert twice["verdict"] == "differs"
    assert "no reason" in twice["why"]
    assert (once["verdict"], once["why"]) == ("same", "")


def test_report_on_the_installed_trl() -> None:
    pytest.importorskip("trl")
    rows = parity.report_rows()
    assert {row["loss"].partition("[")[0] for row in rows} == set(loss_names())
    verdicts = {(row["loss"], row["lengths"]): row["verdict"] for row in rows}
    assert [row for row in rows if row["verdict"] == "cannot run"] == []
    if parity.trl_version() == "1.16.0":
        assert verdicts["dpo", "different"] == "same"
        assert verdicts["cdpo", "different"] == "differs"
        assert verdicts["rpo", "equal"] == "same"
        assert verdicts["tdpo", ""] == "not there"
        told = {(row["loss"], row["verdict"]): row["why"] for row in rows}
        assert "not clamped to at most 1" in told["wpo", "differs"]
        assert "the same responses, chosen and rejected, enter z" in told["kto", "same"]
        assert "z is that of the micro-batch" in told["kto", "differs"]
        assert "twenty times its authors'" in told["cpo_simpo", "differs"]
        assert "half" in told["sppo", "same"]
    for row in rows:
        assert row["why"] or row["verdict"] != "differs"


def test_text_table_has_a_line_for_each_case_and_its_reason() -> None:
    keys = ("loss", "peer", "lengths", "verdict", "value", "gradient", "why")
    cases = (
        ("dpo", "TRL 9 A", "different", "same", 0.0, 0.0, ""),
        ("cdpo", "TRL 9 B", "equal", "differs", 1e-3, 2e-3, "it does"),
        ("tdpo", "TRL 9", "", "not there", None, None, ""),
    )
    rows = [dict(zip(keys, case, strict=True)) for case in cases]
    assert [" ".join(line.split()) for line in parity.text_table(rows).splitlines()] == [
        "dpo same TRL 9 A, lengths different (value 0e+00, gradient 0e+00)",
        "cdpo differs TRL 9 B, lengths equal (value 1e-03, gradient 2e-03)",
        "it does",
        "tdpo not there TRL 9",
        "",
        "1 same, 1 differs, 1 not there",
    ]
