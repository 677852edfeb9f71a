"""A judge as labeller: mean wins by hand, both orders, what is asked once, ties, and rounds that train on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from command import SHORT, run, without_report

from prefopt.judges.contract import Shown, Verdict
from prefopt.judges.labelling import JudgeScorer
from prefopt.storage.results import ResultsFolder


class Longest:
    """Prefers the longer response, and the first one by a quarter; cannot say where a response is empty."""

    name, fingerprint = "longest", "longest 1"

    def __init__(self) -> None:
        self.questions: list[Shown] = []

    @property
    def calls(self) -> int:
        return len(self.questions)

    def ask(self, questions: Sequence[Shown]) -> Iterator[tuple[int, Verdict]]:
        for i, q in enumerate(questions):
            self.questions.append(q)
            longer = 1.0 if len(q.first) > len(q.second) else 0.25
            yield i, Verdict(None if not (q.first and q.second) else longer)

    def facts(self) -> dict[str, object]:
        return {}


def test_mean_wins_by_hand(tmp_path: Path) -> None:
    judge = Longest()
    scorer = JudgeScorer(judge, ["p", "q"], tmp_path / "cache.sqlite")
    # Of p: aaa beats b in both orders (1, and 1 - 1/4); of q: equal texts are a tie that nobody is asked about.
    scores = scorer([0, 1, 0, 1], ["aaa", "c", "b", "c"])
    assert scores.tolist() == [(1 + 0.75) / 2, 0.5, (0 + 0.25) / 2, 0.5]
    assert {(q.prompt, q.first, q.second) for q in judge.questions} == {("p", "aaa", "b"), ("p", "b", "aaa")}
    assert scorer([0, 0], ["aaa", "b"]).tolist() == [0.875, 0.125]
    assert (judge.calls, scorer.verdicts, scorer.cached) == (2, 4, 2)
    assert scorer([1, 1], ["", "x"]).tolist() == [0.5, 0.5]
    assert scorer.unusable == 2


def test_rounds_are_labelled_by_a_local_model(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_report(monkeypatch)
    (tmp_path / "prompts.txt").write_text("".join(f"the cat {i} sat\n" for i in range(12)), encoding="utf-8")
    (tmp_path / "mine.py").write_text("def f(p, r):\n    return [float(len(x)) for x in r]\n", encoding="utf-8")
    sizes = ("pairs.prompts=4", "pairs.heldout_prompts=3", "pairs.samples=2", "pairs.max_new_tokens=5", "train.steps=2")
    settings = [word for setting in (*SHORT[1:], *sizes) for word in ("--set", setting)]
    model, prompts = tiny_folder("llama"), str(tmp_path / "prompts.txt")
    words = [
        "compare", "--prompts", prompts, "--reward", f"{tmp_path}/mine.py:f", "--model", str(model),
        "--results", str(tmp_path / "results"), "--device", "cpu", "--seeds", "0", "--quiet", "--losses", "dpo@2rounds",
        *settings,
    ]  # fmt: skip
    assert run(monkeypatch, [*words, "--name", "judged", "--set", f"rounds.label=lm:{model}"]) == 0, (
        capsys.readouterr().err
    )
    assert run(monkeypatch, [*words, "--name", "rewarded"]) == 0
    adapters = [
        (ResultsFolder(tmp_path / "results" / name).run("dpo@2rounds", 0) / "adapter" / "adapter_model.safetensors")
        for name in ("judged", "rewarded")
    ]
    assert adapters[0].read_bytes() != adapters[1].read_bytes()
    for label, said in (("gpt", "write reward, lm:MODEL"), ("openai:x", "needs rounds.base_url")):
        assert run(monkeypatch, [*words, "--name", "bad", "--set", f"rounds.label={label}"]) == 2
        assert said in capsys.readouterr().err
    assert json.loads((adapters[0].parent / "adapter_config.json").read_text(encoding="utf-8"))["r"] == 4
