"""The commands judge, power and selftest, and compare's claims, as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import chat_server
import command
import judged
import pytest
import synthetic

from prefopt import selftest
from prefopt.selftest.control import Control
from prefopt.storage import locks

run = command.run


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))


def test_claims_and_verdicts_of_people_on_a_whole_comparison(
    tmp_path: Path, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    model = tiny_folder("llama")
    words = command.arguments(tmp_path, model, "--losses", "dpo,noop", "--seeds", "0", "--quiet")
    root = tmp_path / "results" / "mine"
    assert run(monkeypatch, [*words, "--assert", "nop >= 0.5"]) == 2
    assert "did you mean noop" in capsys.readouterr().err
    assert not root.exists(), "nothing is trained for a claim that cannot be read"

    assert run(monkeypatch, [*words, "--assert", "noop >= 0.5"]) == 7
    assert "no judge" in capsys.readouterr().err
    blank = tmp_path / "people.jsonl"
    assert run(monkeypatch, ["judge", str(root), "--judge", "file:none", "--questions", str(blank), "--quiet"]) == 0
    rows = [json.loads(line) for line in blank.read_text(encoding="utf-8").splitlines()]
    assert rows
    blank.write_text("".join(json.dumps({**row, "verdict": "tie"}) + "\n" for row in rows), encoding="utf-8")
    capsys.readouterr()
    assert run(monkeypatch, ["judge", str(root), "--judge", f"file:{blank}"]) == 0
    shown = capsys.readouterr().out
    assert "win rate, %" in shown
    assert f"report: {root / 'report.html'}" in shown
    assert "file:people" in (root / "report.md").read_text(encoding="utf-8"), "the report is that of the new verdicts"
    assert run(monkeypatch, [*words[:-1], "--assert", "noop >= dpo - 0.02", "--assert", "dpo <= 0.5"]) == 0
    assert '"noop >= dpo - 0.02" holds: dpo 50.0 %, noop 50.0 %' in capsys.readouterr().out
    assert run(monkeypatch, [*words, "--assert", "noop > dpo", "--assert", "dpo <= 0.5"]) == 7
    problem = capsys.readouterr().err
    assert '"noop > dpo" fails' in problem
    assert "dpo <= 0.5" not in problem
    with locks.hold(root):  # another process at work does not keep anybody from looking
        assert run(monkeypatch, ["report", str(root), "--judge", "file:people"]) == 0
    assert "in use by process" in capsys.readouterr().err
    assert json.loads((root / "results.json").read_text(encoding="utf-8"))["running"] is True
    assert run(monkeypatch, ["report", str(root), "--judge", "file:peopel"]) == 2
    assert "did you mean file:people" in capsys.readouterr().err


def test_local_model_judges_from_the_command_line(
    tmp_path: Path, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    folder = judged.write(tmp_path / "x", {"better": 2}, seeds=1)
    words = ["judge", str(folder.root), "--judge", f"lm:{tiny_folder('llama')}", "--prompts", "2", "--device", "cpu"]
    # The tiny model reads 256 tokens: every question is longer, so every verdict is unusable, and that is said.
    assert run(monkeypatch, [*words, "--quiet", "--json"]) == 4
    out, err = capsys.readouterr()
    assert json.loads(out)["invalid_share"] == 1.0
    assert "fails the control with two identical texts" in err
    assert folder.judgements()["score"].isna().all()


def test_server_judges_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = judged.write(tmp_path / "x", {"better": 2}, seeds=1)
    monkeypatch.setenv("SOME_KEY", chat_server.KEY)
    with chat_server.serve() as server:
        words = [
            "judge",
            str(folder.root),
            "--judge",
            "openai:tiny",
            "--base-url",
            server.url,
            "--api-key-env",
            "SOME_KEY",
        ]
        assert run(monkeypatch, [*words, "--dry-run"]) == 0
        assert "calls" in (plan := capsys.readouterr().out)
        assert "tokens" in plan
        assert server.requests == []
        assert run(monkeypatch, [*words, "--max-calls", "3"]) == 2
        assert server.requests == []
        server.faults = [401]
        assert run(monkeypatch, words) == 6
        assert run(monkeypatch, [*words, "--quiet"]) == 4, "always A balances over both orders, and is no judge"
        assert run(monkeypatch, [*words, "--base-url", "http://example.com/v1"]) == 2
    out, err = capsys.readouterr()
    assert "same winner in both orders in only 0 %" in err
    assert chat_server.KEY not in plan + out + err
    assert (folder.judgements()["score"] == 0.5).all()


def test_verdicts_of_people_and_servers_need_no_torch(tmp_path: Path) -> None:
    folder = judged.write(tmp_path / "x", {"better": 2}, seeds=1)
    program = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "peft", "datasets", "safetensors"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from prefopt.cli import main
main()
"""
    questions, judged_by = tmp_path / "q.jsonl", tmp_path / "people.jsonl"
    judging = [sys.executable, "-c", program, "judge", str(folder.root)]
    subprocess.run([*judging, "--judge", "file:none", "--questions", str(questions)], check=True, timeout=120)
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    judged_by.write_text("".join(json.dumps({**row, "verdict": "tie"}) + "\n" for row in rows), encoding="utf-8")
    subprocess.run([*judging, "--judge", f"file:{judged_by}", "--quiet"], check=True, timeout=120)
    assert (folder.judgements()["score"] == 0.5).all()
    server = ["--judge", "openai:some", "--base-url", "http://127.0.0.1:9/v1", "--dry-run"]
    subprocess.run([*judging, *server], check=True, timeout=120)


@pytest.mark.parametrize("words", [["--judge", "oracle"], ["--judge", "gpt"], ["--judge", "file:no-such-file"]])
def test_judges_that_cannot_be_had_are_one_line(tmp_path: Path, monkeypatch, capsys, words: list[str]) -> None:
    folder = judged.write(tmp_path / "x", {"better": 2}, seeds=1)
    assert run(monkeypatch, ["judge", str(folder.root), *words]) in (2, 3)
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_power_as_typed(tmp_path: Path, monkeypatch, capsys) -> None:
    assert run(monkeypatch, ["power", "--seeds", "5", "--prompts", "256", "--json"]) == 0
    assumed = json.loads(capsys.readouterr().out)
    assert assumed["seed_sd"] == pytest.approx(0.025)
    root = synthetic.World(seeds=3).write(tmp_path / "x")
    assert run(monkeypatch, ["power", "--from", str(root), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["judge"] == "oracle"
    assert answer["prompts"] == 256
    assert answer["measured_prompts"] == 64
    assert run(monkeypatch, ["power", "--prompt-sd", "0.9"]) == 2
    assert run(monkeypatch, ["power", "--from", str(tmp_path / "nothing")]) == 2


def test_selftest_as_typed(tmp_path: Path, monkeypatch, capsys) -> None:
    good, bad = Control("good", "?", 0.5, 0.0, 1.0), Control("bad", "?", 2.0, 0.0, 1.0)
    levels_run = []

    def levels(levels, *, seed):
        levels_run.append(tuple(levels))
        return [good] if levels == (0,) else [good, bad]

    monkeypatch.setattr(selftest, "run_levels", levels)
    assert run(monkeypatch, ["selftest", "--level", "0", "--out", str(tmp_path / "c.json")]) == 0
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["controls"][0]["passed"] is True
    assert (written["levels"], written["seed"]) == ([0], 0)
    assert "1 of 1 controls pass" in capsys.readouterr().out
    assert run(monkeypatch, ["selftest"]) == 1
    assert "1 of 2 controls fail: bad" in capsys.readouterr().err
    assert levels_run == [(0,), (0, 1)]
    assert run(monkeypatch, ["selftest", "--level", "0", "--out", str(tmp_path / "c.json")]) == 0
    assert "1 of 1 controls pass" in capsys.readouterr().out
    assert levels_run == [(0,), (0, 1)], "what is there for this code is not run again"
    for changed in ({"seed": 1}, {"code": "0"}, {"prefopt_version": "0"}, {"controls": [{}]}):
        (tmp_path / "c.json").write_text(json.dumps({**written, **changed}))
        levels_run.clear()
        assert run(monkeypatch, ["selftest", "--level", "0", "--out", str(tmp_path / "c.json")]) == 0
        assert levels_run == [(0,)], changed
    assert run(monkeypatch, ["selftest", "--level", "0", "--seed", "1", "--out", str(tmp_path / "c.json")]) == 0
    assert levels_run == [(0,), (0,)]
